package store

import (
	"os"
	"syscall"
)

// fdatasync makes what was written durable. The size of the file does not change,
// so its own record need not be written.
func fdatasync(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return err
		}
	}
}
