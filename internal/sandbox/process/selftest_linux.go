package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilox/vault/internal/sandbox"
)

// canaryDir is where a self-test shows a file that no Landlock rule grants: a
// forbidden read that finds nothing proves the mounts and says nothing about
// Landlock.
const canaryDir = "/canary"

const canary = canaryDir + "/file"

func haveSeccomp() bool {
	_, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return err == nil
}

// SelfTest starts a jail and tries, layer by layer from its init and then from a
// guest inside all of them, what must not succeed. The report holds each attempt.
// An error that wraps [sandbox.ErrLeak] says that one succeeded; other errors are
// ctx's or of this test's own means. A jail that cannot start is no error: the
// report has grade none and says why.
func (r *Runner) SelfTest(ctx context.Context) (Report, error) {
	begin := time.Now()
	rep := Report{Backend: Backend, Layers: r.layers()}
	checks, err := r.probe(ctx)
	if ctx.Err() != nil {
		return rep, ctx.Err()
	}
	if err != nil {
		for i := range rep.Layers {
			if l := &rep.Layers[i]; l.Layer == sandbox.LayerNamespaces {
				l.On, l.Detail = false, err.Error()
				l.Fix = "allow user namespaces (see user namespaces below), or run pvault as root"
			}
		}
		r.cfg.Log.WarnContext(ctx, "no process jail on this host", "err", err)
	}
	rep.Checks = checks
	rep.TookNS = time.Since(begin).Nanoseconds()
	return rep, rep.Judge()
}

// layers says what the kernel offers, before anything was tried.
func (r *Runner) layers() []sandbox.LayerState {
	ll := sandbox.LayerState{Layer: sandbox.LayerLandlock, On: r.landlock > 0, Detail: fmt.Sprintf("ABI %d", r.landlock)}
	if !ll.On {
		ll.Detail, ll.Fix = "the kernel has none", "boot a kernel of 6.2 or later with lsm=landlock,... in its command line"
	}
	sc := sandbox.LayerState{Layer: sandbox.LayerSeccomp, On: r.seccomp}
	if !sc.On {
		sc.Detail, sc.Fix = "the kernel has none", "boot a kernel with CONFIG_SECCOMP_FILTER"
	}
	return []sandbox.LayerState{
		{Layer: sandbox.LayerNamespaces, On: true, Detail: "user, mount, pid, net, ipc, uts, cgroup"},
		ll, sc,
		{Layer: sandbox.LayerCgroup, On: r.groups.version != 0, Detail: r.groups.detail, Fix: r.groups.fix},
	}
}

func (r *Runner) probe(ctx context.Context) (_ []sandbox.Check, err error) {
	dir, err := os.MkdirTemp("", "pvault-canary-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Executable, and the guest's own: nothing but the jail stands in the way.
	host := filepath.Join(dir, "file")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(host, []byte("canary\n"), 0o600), os.Chmod(host, 0o755)); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(host, r.cfg.UID, r.cfg.GID); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "probe"), os.NewFile(uintptr(fds[1]), "probe")
	defer ours.Close()
	defer theirs.Close()
	p, checks, err := r.start(ctx, &Spec{
		Argv:       []string{filepath.Clean(self)},
		ReadOnly:   []Mount{{Host: dir, Guest: canaryDir}},
		ExtraFiles: []*os.File{theirs},
		Limits:     Limits{Wall: r.cfg.StartTimeout},
	}, true, canaryDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }() // it kills the probe, should it live
	theirs.Close()
	b := make([]byte, maxMessage)
	n, err := ours.Read(b)
	if err != nil {
		return nil, fmt.Errorf("the probe inside said nothing (%+v): %w", p.Wait(), err)
	}
	var inside []sandbox.Check
	if err := json.Unmarshal(b[:n], &inside); err != nil {
		return nil, fmt.Errorf("decode probe: %w", err)
	}
	return append(checks, inside...), nil
}

// A prober collects checks.
type prober []sandbox.Check

// refused notes an attempt that has to fail with want.
func (p *prober) refused(layer sandbox.Layer, name string, want syscall.Errno, err error) {
	c := sandbox.Check{Name: name, Layer: layer, Want: errnoName(want), Got: errnoName(err), Pass: errors.Is(err, want), Leak: err == nil}
	*p = append(*p, c)
}

// holds notes a value.
func (p *prober) holds(layer sandbox.Layer, name string, want, got any) {
	w, g := fmt.Sprint(want), fmt.Sprint(got)
	*p = append(*p, sandbox.Check{Name: name, Layer: layer, Want: w, Got: g, Pass: w == g})
}

func errnoName(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		if n := unix.ErrnoName(e); n != "" {
			return n
		}
	}
	return err.Error()
}

func tryOpen(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func tryExec(name string) error { return unix.Exec(name, []string{name}, nil) }

func tryConnect(ip [4]byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: ip})
}

func trySocket(domain, typ int) error {
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// trySyscall makes a call whose arguments do no harm should it be let through.
func trySyscall(nr, a, b uintptr) error {
	if _, _, e := unix.RawSyscall(nr, a, b, 0); e != 0 {
		return e
	}
	return nil
}

// probeLayers closes one layer after the other on the calling thread of the init
// and tries what each forbids while the next is still open.
func probeLayers(o orders) ([]sandbox.Check, error) {
	var p prober
	const ns, ll, sc = sandbox.LayerNamespaces, sandbox.LayerLandlock, sandbox.LayerSeccomp
	outside := [4]byte{192, 0, 2, 1} // TEST-NET-1, RFC 5737: reaches nobody

	p.refused(ns, "init reads /etc/passwd", unix.ENOENT, tryOpen("/etc/passwd", unix.O_RDONLY))
	p.refused(ns, "init reads /proc", unix.ENOENT, tryOpen("/proc/self/status", unix.O_RDONLY))
	p.refused(ns, "init writes to the root", unix.EROFS, tryOpen("/new", unix.O_CREAT|unix.O_WRONLY))
	p.refused(ns, "init writes to a read-only view", unix.EROFS, tryOpen(canary, unix.O_WRONLY))
	p.refused(ns, "init connects outside", unix.ENETUNREACH, tryConnect(outside))
	// The same file that Landlock will close is open now: the proof below is its.
	p.holds(ns, "the canary is in the view", nil, tryOpen(canary, unix.O_RDONLY))
	p.refused(ns, "an unprivileged bit of text executes", unix.ENOEXEC, tryExec(canary))

	if err := dropCapabilities(); err != nil {
		return nil, err
	}
	if o.Landlock > 0 {
		if err := restrictLandlock(o.Landlock, o.Grants, 0); err != nil {
			return nil, err
		}
		p.refused(ll, "landlock: read the canary", unix.EACCES, tryOpen(canary, unix.O_RDONLY))
		p.refused(ll, "landlock: list the canary's directory", unix.EACCES, tryOpen(canaryDir, unix.O_RDONLY|unix.O_DIRECTORY))
		p.refused(ll, "landlock: write to a readable device", unix.EACCES, tryOpen("/dev/zero", unix.O_WRONLY))
		p.refused(ll, "landlock: execute the canary", unix.EACCES, tryExec(canary))
		if o.Landlock >= 4 {
			p.refused(ll, "landlock: connect", unix.EACCES, tryConnect(outside))
		}
	}
	if o.Seccomp {
		if err := loadSeccomp(false); err != nil {
			return nil, err
		}
		probeSeccomp(&p, "seccomp: ")
	}
	return p, nil
}

// probeSeccomp tries calls that, without the filter, succeed or fail differently.
func probeSeccomp(p *prober, prefix string) {
	const sc, bad = sandbox.LayerSeccomp, ^uintptr(0)
	for _, t := range []struct {
		name string
		want syscall.Errno
		err  error
	}{
		{"TCP socket", unix.EPERM, trySocket(unix.AF_INET, unix.SOCK_STREAM)},
		{"UDP socket", unix.EPERM, trySocket(unix.AF_INET, unix.SOCK_DGRAM)},
		{"unix socket", unix.EPERM, trySocket(unix.AF_UNIX, unix.SOCK_STREAM)},
		{"netlink socket", unix.EPERM, trySocket(unix.AF_NETLINK, unix.SOCK_RAW)},
		{"unshare", unix.EPERM, trySyscall(unix.SYS_UNSHARE, 0, 0)},
		{"setns", unix.EPERM, trySyscall(unix.SYS_SETNS, bad, 0)},
		{"mount", unix.EPERM, trySyscall(unix.SYS_MOUNT, 0, 0)},
		{"open_tree", unix.EPERM, trySyscall(unix.SYS_OPEN_TREE, bad, 0)},
		{"ptrace", unix.EPERM, trySyscall(unix.SYS_PTRACE, unix.PTRACE_PEEKTEXT, 0)},
		{"bpf", unix.EPERM, trySyscall(unix.SYS_BPF, bad, 0)},
		{"perf_event_open", unix.EPERM, trySyscall(unix.SYS_PERF_EVENT_OPEN, 0, 0)},
		{"keyctl", unix.EPERM, trySyscall(unix.SYS_KEYCTL, 0, 0)},
		{"userfaultfd", unix.EPERM, trySyscall(unix.SYS_USERFAULTFD, bad, 0)},
		{"io_uring", unix.ENOSYS, trySyscall(unix.SYS_IO_URING_SETUP, 0, 0)},
		{"clone3", unix.ENOSYS, trySyscall(unix.SYS_CLONE3, 0, 0)},
		{"memfd_create", unix.ENOSYS, trySyscall(unix.SYS_MEMFD_CREATE, 0, 0)},
		{"execveat", unix.EPERM, trySyscall(unix.SYS_EXECVEAT, bad, 0)},
	} {
		p.refused(sc, prefix+t.name, t.want, t.err)
	}
}

// runProbeGuest is a guest that tries to get out and tells on fd 3.
func runProbeGuest() {
	var p prober
	const ns, ll, sc = sandbox.LayerNamespaces, sandbox.LayerLandlock, sandbox.LayerSeccomp
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	err := unix.Capget(&hdr, &caps[0])
	p.holds(ns, "guest has no capabilities", fmt.Sprint([2]unix.CapUserData{}, nil), fmt.Sprint(caps, err))
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	p.holds(ns, "guest cannot gain privileges", "1 <nil>", fmt.Sprint(nnp, err))
	p.holds(ns, "guest is no root", insideID, os.Geteuid())
	p.holds(ns, "guest has no environment", 0, len(os.Environ()))
	p.holds(ns, "guest has a private /tmp", nil, tryOpen("/tmp/own", unix.O_CREAT|unix.O_RDWR))
	p.refused(ns, "guest reads /etc/passwd", unix.ENOENT, tryOpen("/etc/passwd", unix.O_RDONLY))
	p.refused(ns, "guest reads /proc", unix.ENOENT, tryOpen("/proc/self/status", unix.O_RDONLY))
	p.refused(ns, "guest signals a process outside", unix.ESRCH, unix.Kill(1<<22-1, 0))

	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	if err == nil && mode == 2 {
		probeSeccomp(&p, "guest: ")
	} else {
		p.holds(sc, "guest is filtered", "2 <nil>", fmt.Sprint(mode, err))
	}
	p.refused(ll, "guest reads the canary", unix.EACCES, tryOpen(canary, unix.O_RDONLY))
	p.refused(ll, "guest executes the canary", unix.EACCES, tryExec(canary))

	b, err := json.Marshal(p)
	if err != nil {
		os.Exit(1)
	}
	if err := unix.Sendmsg(fdControl, b, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
