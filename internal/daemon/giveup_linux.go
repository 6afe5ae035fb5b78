package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// errCgo says that this build cannot change every thread of the process.
var errCgo = errors.New("built with cgo, so no_new_privs cannot be set on every thread; build with CGO_ENABLED=0")

// giveUp gives up what the daemon never needs and checks that it is gone: a dump
// of its memory, which holds keys, and the gain of privileges by executing
// something. It cannot be undone, for this process and all it starts. An error
// that wraps errCgo is for the operator to know; others stop the start.
func giveUp() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps: %w", err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		return fmt.Errorf("core dumps are still possible: %+v, %w", core, err)
	}
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == syscall.ENOTSUP {
		return errCgo
	}
	if errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	return noNewPrivs("/proc/self/task")
}

// noNewPrivs checks every thread that /proc lists. A thread that ends meanwhile
// cannot gain anything.
func noNewPrivs(dir string) error {
	threads, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	for _, t := range threads {
		b, err := os.ReadFile(filepath.Join(dir, t.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
		if !bytes.Contains(b, []byte("\nNoNewPrivs:\t1\n")) {
			return fmt.Errorf("no_new_privs is not in force on thread %s", t.Name())
		}
	}
	return nil
}
