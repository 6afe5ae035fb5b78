package process

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// ErrNotELF says that a program is something the kernel cannot load by itself,
// such as a script: name its interpreter as the program instead.
var ErrNotELF = errors.New("not an ELF program")

// Bounds on what an ELF header may ask for. Node needs six libraries; a desktop
// browser some two hundred.
const (
	maxLibraries  = 512
	maxInterpPath = 4096 // PATH_MAX
	maxConfFiles  = 256
	maxConfBytes  = 64 << 10
)

// viewFor returns the read-only mounts that program needs to be loaded: itself,
// its ELF interpreter and the libraries that its header names, transitively. It
// reads headers and executes nothing; ldd would. What the program opens later
// (plugins, a standard library, time zones) is not in it.
//
// Libraries are looked for where ld.so looks: DT_RPATH, DT_RUNPATH with $ORIGIN,
// the standard directories, and those of /etc/ld.so.conf. One that only the last
// finds appears inside under a standard directory, since the guest has no
// /etc/ld.so.cache. A static program needs nothing but itself.
//
// The path of the ELF interpreter is "" for a static program.
func viewFor(program string) (view []Mount, interp string, err error) {
	if !filepath.IsAbs(program) {
		return nil, "", fmt.Errorf("program %q is not an absolute path", program)
	}
	w := walk{seen: map[string]bool{}}
	h, err := readHeader(program)
	if err != nil {
		return nil, "", fmt.Errorf("read program %s: %w", program, err)
	}
	w.add(program, program)
	if h.interp == "" {
		return w.mounts, "", nil
	}
	w.add(h.interp, h.interp)
	// ld.so is itself a library that others name.
	w.seen[filepath.Base(h.interp)] = true
	w.class, w.machine = h.class, h.machine
	if err := w.libraries(program, h); err != nil {
		return nil, "", fmt.Errorf("libraries of %s: %w", program, err)
	}
	return w.mounts, h.interp, nil
}

type header struct {
	interp  string
	needed  []string
	rpath   []string
	class   elf.Class
	machine elf.Machine
}

func readHeader(name string) (header, error) {
	f, err := os.Open(name)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	// A FIFO or device in place of a program would hang or lie.
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return header{}, fmt.Errorf("%w: not a regular file", ErrNotELF)
	}
	return parseHeader(f)
}

// parseHeader reads what the loader needs of an ELF file. debug/elf is not
// hardened against every hostile file and may panic; that is an error here.
func parseHeader(r io.ReaderAt) (h header, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: malformed", ErrNotELF)
		}
	}()
	f, err := elf.NewFile(r)
	if err != nil {
		return header{}, fmt.Errorf("%w: %w", ErrNotELF, err)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return header{}, fmt.Errorf("%w: type %s", ErrNotELF, f.Type)
	}
	h.class, h.machine = f.Class, f.Machine
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz < 2 || p.Filesz > maxInterpPath {
			return header{}, fmt.Errorf("%w: interpreter path of %d bytes", ErrNotELF, p.Filesz)
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return header{}, fmt.Errorf("%w: interpreter path: %w", ErrNotELF, err)
		}
		h.interp = strings.TrimRight(string(b), "\x00")
		if filepath.Clean(h.interp) != h.interp || !filepath.IsAbs(h.interp) || strings.ContainsRune(h.interp, 0) {
			return header{}, fmt.Errorf("%w: interpreter path %q", ErrNotELF, h.interp)
		}
	}
	if h.needed, err = f.DynString(elf.DT_NEEDED); err != nil {
		return header{}, fmt.Errorf("%w: needed libraries: %w", ErrNotELF, err)
	}
	if len(h.needed) > maxLibraries {
		return header{}, fmt.Errorf("%w: more than %d libraries", ErrNotELF, maxLibraries)
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, err := f.DynString(tag)
		if err != nil {
			return header{}, fmt.Errorf("%w: library path: %w", ErrNotELF, err)
		}
		for _, p := range paths {
			h.rpath = append(h.rpath, strings.Split(p, ":")...)
		}
	}
	return h, nil
}

// A walk collects the libraries of one program.
type walk struct {
	mounts  []Mount
	seen    map[string]bool // names already found or being looked for
	conf    []string        // directories of ld.so.conf, read once
	confSet bool
	class   elf.Class
	machine elf.Machine
}

func (w *walk) add(host, guest string) {
	m := Mount{Host: host, Guest: guest}
	if !slices.ContainsFunc(w.mounts, func(o Mount) bool { return o.Guest == guest }) {
		w.mounts = append(w.mounts, m)
	}
}

func (w *walk) libraries(of string, h header) error {
	// $ORIGIN is where the file really is.
	origin := of
	if real, err := filepath.EvalSymlinks(of); err == nil {
		origin = real
	}
	var own []string
	for _, p := range h.rpath {
		p = strings.NewReplacer("${ORIGIN}", filepath.Dir(origin), "$ORIGIN", filepath.Dir(origin)).Replace(p)
		if filepath.IsAbs(p) {
			own = append(own, filepath.Clean(p))
		}
	}
	for _, name := range h.needed {
		if w.seen[name] {
			continue
		}
		w.seen[name] = true
		if len(w.seen) > maxLibraries {
			return fmt.Errorf("more than %d libraries", maxLibraries)
		}
		host, guest, lib, err := w.find(name, own)
		if err != nil {
			return err
		}
		w.add(host, guest)
		if err := w.libraries(host, lib); err != nil {
			return err
		}
	}
	return nil
}

// find returns the library on the host and the place it goes to in the guest.
func (w *walk) find(name string, own []string) (host, guest string, h header, err error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) || filepath.Clean(name) != name {
			return "", "", h, fmt.Errorf("library %q: relative path", name)
		}
		h, err = readHeader(name)
		return name, name, h, err
	}
	std := standardDirs()
	try := func(dir string) bool {
		host = filepath.Join(dir, name)
		got, err := readHeader(host)
		// ld.so skips libraries of another machine, such as 32-bit ones.
		if err != nil || got.class != w.class || got.machine != w.machine {
			return false
		}
		h = got
		return true
	}
	for _, dir := range slices.Concat(own, std) {
		if try(dir) {
			return host, host, h, nil
		}
	}
	if !w.confSet {
		w.conf, w.confSet = confDirs("/etc/ld.so.conf"), true
	}
	for _, dir := range w.conf {
		if try(dir) {
			return host, filepath.Join(std[0], name), h, nil
		}
	}
	return "", "", h, fmt.Errorf("library %q: %w", name, os.ErrNotExist)
}

// standardDirs are the directories that glibc and musl search without any
// configuration, as built by the common distributions.
func standardDirs() []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"}
	if triplet == "" {
		return dirs
	}
	// Debian's loader has the triplet compiled in and does not know lib64; the
	// others know no triplet.
	if st, err := os.Stat("/lib/" + triplet); err == nil && st.IsDir() {
		dirs = append([]string{"/lib/" + triplet, "/usr/lib/" + triplet}, dirs...)
	}
	return dirs
}

// confDirs reads the directories that an ld.so.conf file and its includes name.
// What cannot be read names none: the caller then misses a library and says so.
func confDirs(name string) []string {
	files, dirs := []string{name}, []string(nil)
	for i := 0; i < len(files) && i < maxConfFiles; i++ {
		f, err := os.Open(files[i])
		if err != nil {
			continue
		}
		d, include := parseConf(f)
		f.Close()
		dirs = append(dirs, d...)
		for _, pattern := range include {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(files[i]), pattern)
			}
			// The only error is a malformed pattern; it matches nothing.
			m, _ := filepath.Glob(pattern)
			files = append(files, m...)
		}
	}
	return dirs
}

// parseConf reads one ld.so.conf: a directory or "include PATTERN" a line, "#"
// for comments. See ldconfig(8).
func parseConf(r io.Reader) (dirs, include []string) {
	sc := bufio.NewScanner(io.LimitReader(r, maxConfBytes))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "include"); ok && rest != "" && (rest[0] == ' ' || rest[0] == '\t') {
			include = append(include, strings.Fields(rest)...)
		} else if filepath.IsAbs(line) {
			dirs = append(dirs, filepath.Clean(line))
		}
	}
	return dirs, include
}
