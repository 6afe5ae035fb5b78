package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits on an archive. What is in it may be as much as a directory may hold; the
// file itself is not larger than that either.
const (
	maxArchiveEntries = 2 * maxBundleFiles // files, directories and what does not count
	maxArchiveName    = 512
	// Text and JSON shrink to a tenth, a large table of data to a fortieth. What
	// shrinks to less is made to be unpacked, and not to be read.
	maxArchiveRatio = 200
	freeOfRatio     = 1 << 20 // bytes that may have any ratio: a small file of spaces does no harm
)

// An archive is a bundle as opa build writes it: a tar file in gzip. Everything in it
// is in memory; nothing is unpacked to a disk.
type archive struct {
	files map[string][]byte
	names []string // in the order of the archive
}

func (a *archive) Close() error { return nil }

func (a *archive) each(f func(name string) error) error {
	for _, name := range slices.Sorted(maps.Keys(a.files)) {
		if dir, ok := parent(name); ok && hidden(dir) {
			continue
		}
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}

// parent returns the directory of a name, if it is not the top.
func parent(name string) (dir string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", false
	}
	return name[:i], true
}

// hidden reports whether a directory or one above it is.
func hidden(dir string) bool { return strings.HasPrefix(dir, ".") || strings.Contains(dir, "/.") }

func (a *archive) read(name string, most int) ([]byte, error) {
	data, ok := a.files[name]
	switch {
	case !ok:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case len(data) > most:
		return nil, fmt.Errorf("%s: the bundle is larger than %d bytes", name, maxBundleBytes)
	}
	return data, nil
}

func openArchive(at string) (*archive, error) {
	at, err := filepath.EvalSymlinks(at) // the newest of several is often a link
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(at))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	raw, err := readFile(root, filepath.Base(at), maxBundleBytes)
	if err != nil {
		return nil, err
	}
	a, err := readArchive(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return a, nil
}

var (
	errArchiveSize = fmt.Errorf("what is in it is larger than %d bytes", maxBundleBytes)
	errArchiveMany = fmt.Errorf("more than %d entries", maxArchiveEntries)
	errRatio       = fmt.Errorf("it unpacks to more than %d times its size", maxArchiveRatio)
	errTrailing    = errors.New("data after the end of the archive")
)

// readArchive reads an archive strictly: what two programs could unpack to different
// files is refused.
func readArchive(raw []byte) (*archive, error) {
	in := bytes.NewReader(raw)
	gz, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("no tar.gz archive: %w", err)
	}
	gz.Multistream(false) // what follows the first stream is not what other readers see
	out := &bounded{r: gz, most: maxBundleBytes + maxArchiveEntries*1024 + 1<<20, of: int64(len(raw))}
	a := &archive{files: map[string][]byte{}}
	size := 0
	for tr, n := tar.NewReader(out), 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		if n == maxArchiveEntries {
			return nil, errArchiveMany
		}
		name, err := entryName(h)
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if _, twice := a.files[name]; twice {
			return nil, fmt.Errorf("%s: in the archive twice", name)
		}
		if h.Size > int64(maxBundleBytes-size) {
			return nil, errArchiveSize
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		size += len(data)
		a.files[name], a.names = data, append(a.names, name)
	}
	// The tar file ends with zeros, whose number is the writer's choice; reading them
	// also has gzip hold the whole against its checksum.
	if err := onlyZeros(out); err != nil {
		return nil, err
	}
	if in.Len() > 0 {
		return nil, errTrailing
	}
	for name := range a.files { // a file is no directory of another
		for dir, ok := parent(name); ok; dir, ok = parent(dir) {
			if _, file := a.files[dir]; file {
				return nil, fmt.Errorf("%s: in the archive as a file and as a directory", dir)
			}
		}
	}
	return a, nil
}

// entryName returns the name of an entry from the top of the bundle. OPA writes it
// with a slash before it, tar with "./".
func entryName(h *tar.Header) (string, error) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir:
	case tar.TypeSymlink, tar.TypeLink:
		return "", fmt.Errorf("%q: a link in an archive would be another file for every reader: put the file here", h.Name)
	default:
		return "", fmt.Errorf("%q: neither a file nor a directory", h.Name)
	}
	name, ok := strings.CutPrefix(h.Name, "/")
	if !ok {
		name = strings.TrimPrefix(name, "./")
	}
	if h.Typeflag == tar.TypeDir {
		if name = strings.TrimSuffix(name, "/"); name == "" || name == "." {
			return "", nil // the top
		}
	}
	if len(name) > maxArchiveName || name == "." || !fs.ValidPath(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return "", fmt.Errorf("%.100q: no name of a file inside a bundle", h.Name)
	}
	return name, nil
}

// A bounded reader stops what unpacks to too much before it is all read.
type bounded struct {
	r    io.Reader
	n    int64
	most int64
	of   int64 // size of what is unpacked
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	switch b.n += int64(n); {
	case b.n > b.most:
		return 0, errArchiveSize
	case b.n > freeOfRatio && b.n > maxArchiveRatio*b.of:
		return 0, errRatio
	}
	return n, err
}

func onlyZeros(r io.Reader) error {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if c != 0 {
				return errTrailing
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
	}
}

// write returns the archive with one file set, in the form that OPA writes.
func (a *archive) write(set string, content []byte) ([]byte, error) {
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	tw := tar.NewWriter(gz)
	names := append(slices.DeleteFunc(slices.Clone(a.names), func(n string) bool { return n == set }), set)
	for _, name := range names {
		data := a.files[name]
		if name == set {
			data = content
		}
		if strings.HasPrefix(name, set+"/") {
			return nil, fmt.Errorf("%s: a directory in the place of a file", set)
		}
		if err := tw.WriteHeader(&tar.Header{Name: "/" + name, Mode: 0o600, Typeflag: tar.TypeReg, Size: int64(len(data))}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(data); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(tw.Close(), gz.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
