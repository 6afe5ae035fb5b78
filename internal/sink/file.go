package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A fileTarget appends lines to a file.
type fileTarget struct {
	path   string
	format Format
}

// maxLine bounds the line that a crash can have left half: the longest is one leaf
// with its fields, in a form that escapes it.
const maxLine = 4 << 20

// send appends the batch and returns when it is on disk, in the file that stands at
// the path then: the file is opened for every batch and looked at again afterwards,
// so that one that was moved or removed in between is noticed.
func (t *fileTarget) send(_ context.Context, batch []View) error {
	var b []byte
	var err error
	for i := range batch {
		if b, err = t.format.Append(b, &batch[i]); err != nil {
			return err
		}
		b = append(b, '\n')
	}
	f, err := openRegular(t.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.append(f, b); err != nil {
		return fmt.Errorf("append to %s: %w", t.path, err)
	}
	was, err := f.Stat()
	if err != nil {
		return err
	}
	is, err := os.Lstat(t.path)
	if err != nil {
		return fmt.Errorf("%s was taken away while it was written: %w", t.path, err)
	}
	if !os.SameFile(was, is) {
		return fmt.Errorf("%s was replaced while it was written", t.path)
	}
	return nil
}

// append leaves whole lines behind: half of one that a crash left is cut off first,
// since its event comes again, and so is what does not fit on the disk.
func (t *fileTarget) append(f *os.File, b []byte) error {
	end, err := wholeLines(f)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, end); err != nil {
		return errors.Join(err, f.Truncate(end))
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return nil
}

var errNoEvents = errors.New("this is no file of events, and nothing is written to it: name another")

// wholeLines returns the end of the last whole line and cuts off what follows it. It
// touches only what looks like ours: each line of events begins with a brace.
func wholeLines(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, err
	}
	end, err := lastLineEnd(f, size)
	if err != nil {
		return 0, err
	}
	for _, at := range []int64{0, end} {
		var first [1]byte
		if at == size {
			continue
		}
		if _, err := f.ReadAt(first[:], at); err != nil {
			return 0, err
		}
		if first[0] != '{' {
			return 0, errNoEvents
		}
	}
	if end < size {
		err = f.Truncate(end)
	}
	return end, err
}

// lastLineEnd returns where the last line end is over, 0 if there is none.
func lastLineEnd(f *os.File, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for at := size; at > 0; {
		if size-at >= maxLine {
			return 0, errNoEvents
		}
		n := min(int64(len(buf)), at)
		if _, err := f.ReadAt(buf[:n], at-n); err != nil {
			return 0, err
		}
		at -= n
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return at + int64(i) + 1, nil
		}
	}
	return 0, nil
}

// openRegular opens or makes a regular file of mode 0600 that is ours, not through a
// link: a FIFO would block, and a link, or a file that another made in its place,
// would let others say where events go.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
	if !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: name the file itself", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.Join(fmt.Errorf("%s is no regular file", path), f.Close())
	case ok && int(st.Uid) != os.Geteuid():
		return nil, errors.Join(fmt.Errorf("%s belongs to another user, who could read or change it: remove it, or chown it to the daemon's", path), f.Close())
	case ok && st.Nlink > 1:
		return nil, errors.Join(fmt.Errorf("%s has another name too: it could be any file", path), f.Close())
	}
	return f, nil
}
