package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilox/vault/internal/sandbox"
)

// What the first file descriptors of an init are. 0 to 2 are /dev/null.
const (
	fdControl = 3 // SOCK_SEQPACKET to the runner
	fdOrders  = 4 // memory file
	fdStdio   = 5 // the guest's three, then its extra files, then detached mounts
)

const (
	initName  = "pvault-jail-init"
	probeName = "pvault-jail-probe"
)

// MaybeChild turns this process into the init of a jail if that is what it was
// started as, and then does not return. Call it first in main and in every
// TestMain of a program that starts jails.
//
// No command line reaches it: the program has to be PID 1 under a private
// name and hold a socket of the kind and in the place that a Runner leaves it.
// Who can arrange that can only lock itself in.
func MaybeChild() {
	switch {
	case len(os.Args) == 1 && os.Args[0] == initName && os.Getpid() == 1 && isSeqpacket(fdControl):
		runInit()
	case len(os.Args) == 1 && os.Args[0] == probeName && os.Getppid() == 1 && isSeqpacket(fdControl):
		runProbeGuest()
	}
}

func isSeqpacket(fd int) bool {
	t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && t == unix.SOCK_SEQPACKET
}

// send writes one message to the runner, with a descriptor if fd is not 0.
func send(m message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	var oob []byte
	if fd != 0 {
		oob = unix.UnixRights(fd)
	}
	return unix.Sendmsg(fdControl, b, oob, nil, unix.MSG_NOSIGNAL)
}

// runInit is PID 1 of a jail. It exits with the guest, on an error it has told
// the runner, or when the runner is gone; the kernel then kills what is left.
func runInit() {
	if err := initJail(); err != nil {
		// Nobody is left to tell if this fails too.
		_ = send(message{Error: err.Error()}, 0)
		os.Exit(1)
	}
	os.Exit(0)
}

func initJail() error {
	// The guest shall not inherit what init holds; ForkExec passes on its own list.
	if err := unix.CloseRange(fdControl, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors on exec: %w", err)
	}
	o, err := readOrders(os.NewFile(fdOrders, "orders"))
	if err != nil {
		return err
	}
	// Wait until this process stands in its cgroup: everything it makes shall be
	// counted there. End of file: the runner gave up.
	var b [1]byte
	if n, err := recvNoEINTR(b[:]); err != nil || n != 1 {
		return errors.New("the runner gave up")
	}
	var timing timingMessage
	t := time.Now()
	if err := unix.Sethostname([]byte("vault")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if o.Proxy {
		if err := passListener(); err != nil {
			return err
		}
	}
	if err := buildRoot(o.Views, o.Tmp); err != nil {
		return err
	}
	timing.MountsNS = time.Since(t).Nanoseconds()

	var probes []sandbox.Check
	if o.Probe {
		if probes, err = onThread(func() ([]sandbox.Check, error) { return probeLayers(o) }); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
	}
	pid, err := onThread(func() (int, error) { return startGuest(o, &timing) })
	if err != nil {
		return err
	}
	// The guest holds its own copies; with these open it would see no end of file.
	_ = unix.CloseRange(fdOrders, fdStdio+2+uint(o.Extra), 0)
	go func() {
		// The runner never writes again: this returns when it is gone.
		_, _ = recvNoEINTR(b[:])
		os.Exit(2)
	}()
	if err := send(message{Started: true, Probes: probes, Timing: &timing}, 0); err != nil {
		return fmt.Errorf("tell runner: %w", err)
	}
	return reap(pid)
}

// onThread runs f on an OS thread of its own, which ends with it: what f
// restricts stays restricted and takes nothing else along. It is never the main
// thread: that one does not end, and it stands for init in the eyes of Landlock,
// which would let the guest signal an init that shares its domain.
func onThread[T any](f func() (T, error)) (v T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			v, err = onThread(f) // while this one is taken
			return
		}
		v, err = f()
	}()
	<-done
	return v, err
}

func recvNoEINTR(b []byte) (int, error) {
	for {
		n, err := unix.Read(fdControl, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// restrict closes every layer on the calling thread, in the order in which each
// still allows the next.
func restrict(o orders) error {
	if err := dropCapabilities(); err != nil {
		return err
	}
	if o.Landlock > 0 {
		var port uint64
		if o.Proxy {
			port = proxyPort
		}
		if err := restrictLandlock(o.Landlock, o.Grants, port); err != nil {
			return err
		}
	}
	if err := setRlimits(o.Limits); err != nil {
		return err
	}
	if o.Seccomp {
		return loadSeccomp(o.Proxy)
	}
	return nil
}

// startGuest restricts the calling thread and forks the guest from it.
func startGuest(o orders, timing *timingMessage) (int, error) {
	t := time.Now()
	if err := restrict(o); err != nil {
		return 0, err
	}
	timing.RestrictNS = time.Since(t).Nanoseconds()
	files := make([]uintptr, 3+o.Extra)
	for i := range files {
		files[i] = uintptr(fdStdio + i)
	}
	name := o.Argv[0]
	if o.Probe {
		o.Argv = []string{probeName}
	}
	// No PDEATHSIG: it would fire when this thread ends. The death of init is the
	// death of the namespace.
	pid, err := syscall.ForkExec(name, o.Argv, &syscall.ProcAttr{
		Dir: o.Dir, Env: o.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("execute %s in %s: %w", name, o.Dir, err)
	}
	return pid, nil
}

// reap collects every orphan until the guest ends, and tells how it ended.
func reap(guest int) error {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for guest: %w", err)
		}
		if pid != guest || !ws.Exited() && !ws.Signaled() {
			continue
		}
		m := exitMessage{Code: ws.ExitStatus()}
		if ws.Signaled() {
			m = exitMessage{Code: -1, Signal: int(ws.Signal()), Name: unix.SignalName(ws.Signal())}
		}
		return send(message{Exit: &m}, 0)
	}
}

const proxyPort = 3128 // of sandbox.ProxyAddr

// passListener brings the loopback device up, listens on it for the guest and
// hands the listener to the runner: sockets stay in the namespace they were made
// in, so nothing has to be forwarded here.
func passListener() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("proxy socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	addr := unix.SockaddrInet4{Port: proxyPort, Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}
	if err := unix.Bind(fd, &addr); err != nil {
		return fmt.Errorf("bind proxy: %w", err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		return fmt.Errorf("listen for proxy: %w", err)
	}
	return send(message{Listener: true}, fd)
}
