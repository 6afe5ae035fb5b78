//go:build unix

package keystore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A dir is an open directory of private files. Everything goes through its
// descriptor, so that replacing the path later changes nothing.
type dir struct {
	path string
	f    *os.File
}

// openDir opens the directory at path, making it with mode 0700 if it is missing.
// Its last element may not be a symbolic link.
func openDir(path string) (*dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: %s is not a directory of its own: replace the link by what it points to", ErrUnsafe, path)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	d := &dir{path, os.NewFile(uintptr(fd), path)}
	if err := check(fd, path, unix.S_IFDIR); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *dir) close() error { return d.f.Close() }

func (d *dir) fd() int { return int(d.f.Fd()) }

// read returns the content of a private file of at most limit bytes.
func (d *dir) read(name string, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO that someone put there must not hang.
	fd, err := unix.Openat(d.fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", ErrUnsafe, d.join(name))
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.join(name), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.join(name))
	defer f.Close()
	if err := check(fd, d.join(name), unix.S_IFREG); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		clear(b)
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrUnsafe, d.join(name), limit)
	}
	return b, nil
}

// create writes a new private file. It returns once content and name are
// durable. A name that exists is left alone and gives os.ErrExist.
//
// The content is written under a temporary name and then linked, because link
// refuses to replace: of two processes that create a key, one wins whole.
func (d *dir) create(name string, content []byte) error {
	var random [8]byte
	rand.Read(random[:])
	temp := ".new-" + hex.EncodeToString(random[:])
	fd, err := unix.Openat(d.fd(), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: d.join(temp), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.join(temp))
	err = writeAll(f, content)
	if err == nil {
		if err = unix.Linkat(d.fd(), temp, d.fd(), name, 0); err != nil {
			err = &os.PathError{Op: "link", Path: d.join(name), Err: err}
		}
	}
	if uerr := unix.Unlinkat(d.fd(), temp, 0); uerr != nil && err == nil {
		err = &os.PathError{Op: "unlink", Path: d.join(temp), Err: uerr}
	}
	if err != nil {
		return err
	}
	return d.f.Sync()
}

// writeAll writes, syncs and closes f. The mode is set explicitly because a
// default ACL or an odd umask can change what open asked for.
func writeAll(f *os.File, content []byte) error {
	err := f.Chmod(0o600)
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// erase overwrites size bytes of a file and removes it, durably.
func (d *dir) erase(name string, size int) error {
	fd, err := unix.Openat(d.fd(), name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w: %s is a symbolic link", ErrUnsafe, d.join(name))
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: d.join(name), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.join(name))
	_, err = f.Write(make([]byte, size))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := unix.Unlinkat(d.fd(), name, 0); err != nil {
		return &os.PathError{Op: "unlink", Path: d.join(name), Err: err}
	}
	return d.f.Sync()
}

// names lists the files whose name ends in suffix, without it, at most limit.
func (d *dir) names(suffix string, limit int) ([]string, error) {
	if _, err := d.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	all, err := d.f.Readdirnames(limit + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(all) > limit {
		return nil, fmt.Errorf("%s holds more than %d files", d.path, limit)
	}
	var out []string
	for _, n := range all {
		if base, ok := strings.CutSuffix(n, suffix); ok && !strings.HasPrefix(n, ".") {
			out = append(out, base)
		}
	}
	return out, nil
}

func (d *dir) join(name string) string { return filepath.Join(d.path, name) }

// check refuses what is not of the given type, belongs to someone else, or is
// open to anyone but its owner.
func check(fd int, path string, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	mode := uint32(st.Mode)
	want, what := uint32(0o600), "file"
	if kind == unix.S_IFDIR {
		want, what = 0o700, "directory"
	}
	switch {
	case mode&unix.S_IFMT != kind:
		return fmt.Errorf("%w: %s is not a %s", ErrUnsafe, path, what)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%w: %s belongs to uid %d, not to uid %d: move it away or chown it", ErrUnsafe, path, st.Uid, os.Geteuid())
	case mode&0o777&^want != 0:
		return fmt.Errorf("%w: %s has mode %04o, others may have read it: make new keys, or chmod %04o if you know nobody has", ErrUnsafe, path, mode&0o777, want)
	}
	return nil
}
