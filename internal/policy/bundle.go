package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Limits on one bundle. A policy is read by people; these are far above what
// anyone reviews and keep a wrong directory (a home, a checkout) from being read.
const (
	maxBundleFiles = 1000
	maxBundleBytes = 16 << 20
)

// Files with a meaning of their own.
const (
	dataFile     = "data.json"
	manifestFile = ".manifest"
)

// BundleAt returns the bundle at a path, an archive or a directory, without a key.
func BundleAt(at string) Bundle {
	if fi, err := os.Stat(at); err == nil && !fi.IsDir() {
		return Bundle{File: at}
	}
	return Bundle{Dir: at}
}

// A file is one file of a bundle.
type file struct {
	bundle string
	path   string // inside the bundle, slash separated
	data   []byte
	roots  []string // what the manifest lets the bundle define; nil is everything
}

func (f *file) String() string { return path.Join(f.bundle, f.path) }

func (b Bundle) name() string { return cmp.Or(b.Name, b.Dir, b.File) }

// A source is what a bundle is read from.
type source interface {
	// each calls f with the name of every file that is in no hidden directory, and
	// refuses what would leave out files without a word.
	each(f func(name string) error) error
	// read returns a file of at most so many bytes.
	read(name string, most int) ([]byte, error)
	io.Closer
}

func (b Bundle) open() (source, error) {
	if b.File != "" {
		return openArchive(b.File)
	}
	root, err := os.OpenRoot(b.Dir) // a link that leads out of the bundle does not open
	if err != nil {
		return nil, err
	}
	return dirTree{root}, nil
}

// read returns the files of the bundle that count. Hidden files are left out, and
// test files (*_test.rego) unless they are asked for; anything else with a meaning in
// other bundle formats is refused, because leaving it out would leave out rules.
func (b Bundle) read() ([]file, error) { return b.files(false) }

func (b Bundle) files(tests bool) ([]file, error) {
	switch {
	case (b.Dir == "") == (b.File == ""):
		return nil, errors.New("want one of dir and file")
	case b.Key != nil && b.Unsigned:
		return nil, errors.New("signing and unsigned: true contradict each other: keep one")
	case b.Key == nil && !b.Unsigned:
		return nil, errors.New("nobody vouches for it: name the key that signs it (signing: {keyid: …}), or say unsigned: true to accept it as it stands")
	}
	t, err := b.open()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return b.filesOf(t, tests)
}

func (b Bundle) filesOf(t source, tests bool) ([]file, error) {
	var files []file
	size := 0
	err := t.each(func(name string) error {
		if name == signaturesFile && b.Unsigned && !b.ignoreSignature {
			return errors.New(".signatures.json: the bundle is signed: name the key that signs it (signing: {keyid: …}) instead of unsigned: true")
		}
		if ok, err := counts(name, tests); !ok || err != nil {
			return err
		}
		if len(files) == maxBundleFiles {
			return fmt.Errorf("more than %d files: is %s really a policy?", maxBundleFiles, cmp.Or(b.Dir, b.File))
		}
		data, err := t.read(name, maxBundleBytes-size)
		if err != nil {
			return err
		}
		size += len(data)
		files = append(files, file{bundle: b.name(), path: name, data: data})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(files, func(f file) bool { return strings.HasSuffix(f.path, ".rego") }) {
		return nil, fmt.Errorf("no *.rego file in %s", cmp.Or(b.Dir, b.File))
	}
	if b.Key != nil {
		if err := verify(t, files, b.Key); err != nil {
			return nil, err
		}
	}
	return files, readManifest(files)
}

// counts reports whether a file is a part of the bundle, by its name.
func counts(name string, tests bool) (bool, error) {
	switch base := path.Base(name); {
	case name == manifestFile:
		return true, nil
	case base == manifestFile:
		return false, fmt.Errorf("%s: a manifest below the top: there is one for the whole bundle", name)
	case base == ".manifest.pb":
		return false, fmt.Errorf("%s: a manifest is read as JSON only: build the bundle with .manifest", name)
	case strings.HasPrefix(base, "."), strings.HasSuffix(base, "_test.rego") && !tests:
		return false, nil
	case strings.HasSuffix(base, ".rego"), base == dataFile:
		return true, nil
	case base == "patch.json":
		return false, fmt.Errorf("%s: delta bundles are not supported: use a whole one", name)
	case strings.HasSuffix(base, ".wasm"):
		return false, fmt.Errorf("%s: compiled rules are not supported: use a bundle with its sources", name)
	case base == "data.yaml", base == "data.yml":
		return false, fmt.Errorf("%s: data is read from data.json only: convert it", name)
	}
	return false, nil
}

// A dirTree is a directory.
type dirTree struct{ root *os.Root }

func (d dirTree) Close() error { return d.root.Close() }

func (d dirTree) each(f func(name string) error) error {
	return fs.WalkDir(d.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && name != "." && strings.HasPrefix(e.Name(), "."):
			return fs.SkipDir
		case e.IsDir():
			return nil
		}
		if e.Type()&fs.ModeSymlink != 0 && !strings.HasPrefix(e.Name(), ".") {
			// A link to a file counts as the file. One to a directory is not walked, and
			// what cannot be looked at could be one.
			to, err := d.root.Stat(name)
			if err != nil {
				return err
			}
			if to.IsDir() {
				return fmt.Errorf("%s: a link to a directory would leave out what is in it: put the directory here", name)
			}
		}
		return f(name)
	})
}

func (d dirTree) read(name string, most int) ([]byte, error) { return readFile(d.root, name, most) }

func readFile(root *os.Root, name string, most int) ([]byte, error) {
	// Looked at before it is opened: opening a pipe would wait for a writer.
	if fi, err := root.Stat(name); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > most {
		return nil, fmt.Errorf("%s: the bundle is larger than %d bytes", name, maxBundleBytes)
	}
	return data, nil
}
