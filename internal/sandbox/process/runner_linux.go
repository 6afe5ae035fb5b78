package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/sandbox"
)

// A Runner starts guests. It is safe for concurrent use and holds nothing that
// has to be closed.
type Runner struct {
	cfg      Config
	groups   cgroups
	landlock int
	seccomp  bool
	report   Report
}

// Open finds out what this host enforces by trying to break out of a jail; it
// takes some 20 ms. A host that enforces too little gives a Runner whose Report
// says so and whose Start refuses. An error that wraps [sandbox.ErrLeak] says
// that something forbidden succeeded; there is no Runner then.
func Open(ctx context.Context, cfg Config) (*Runner, error) {
	r := &Runner{
		cfg:      cfg.withDefaults(),
		groups:   findCgroups(),
		landlock: sandbox.LandlockABI(),
		seccomp:  haveSeccomp(),
	}
	r.groups.sweep()
	rep, err := r.SelfTest(ctx)
	if err != nil {
		return nil, fmt.Errorf("self-test of the process jail: %w", err)
	}
	r.report = rep
	return r, nil
}

// Report returns the self-test that Open made, as evidence.
func (r *Runner) Report() Report { return r.report }

// Grade returns the grade of every guest of r.
func (r *Runner) Grade() vault.Grade { return r.report.Grade }

// Start runs a guest. It returns once the guest's program is running inside all
// layers. A *vault.Denial refuses a grade below spec.MinGrade; an error that wraps
// [sandbox.ErrSpec] or [ErrNotELF] is the caller's; others are the host's. When
// ctx ends, the guest is killed.
func (r *Runner) Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := r.report.Demand(spec.MinGrade); err != nil {
		return nil, err
	}
	p, _, err := r.start(ctx, &spec, false)
	return p, err
}

// start is Start without the decision, which a self-test precedes. A probe
// returns what init found, too.
func (r *Runner) start(ctx context.Context, spec *Spec, probe bool, ungranted ...string) (_ *Process, _ []sandbox.Check, err error) {
	begin := time.Now()
	limits := spec.Limits.WithDefaults()
	views, grants, err := plan(spec, ungranted...)
	if err != nil {
		return nil, nil, fmt.Errorf("plan the view: %w", err)
	}
	p := &Process{log: r.cfg.Log, grade: r.report.Grade, done: make(chan struct{}), waited: make(chan struct{})}
	var inherited files // closed here in any case: the child has its own
	defer inherited.close()
	defer func() {
		if err != nil {
			p.closePipes()
		}
	}()

	control, childControl, err := controlPair()
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			control.Close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		childControl.Close()
		return nil, nil, err
	}
	inherited = append(inherited, null, childControl)
	stdio, err := p.makePipes(spec, &inherited)
	if err != nil {
		return nil, nil, err
	}

	o := orders{
		Argv: spec.Argv, Env: environ(spec), Dir: spec.Dir, Views: views, Grants: grants, Tmp: limits.Tmp,
		Extra: len(spec.ExtraFiles), Proxy: spec.Proxy != nil,
		Landlock: r.landlock, Seccomp: r.seccomp, Probe: probe,
		Limits: r.rlimits(limits),
	}
	if o.Dir == "" {
		o.Dir = "/tmp"
	}
	child := []*os.File{null, null, null, childControl, nil, stdio[0], stdio[1], stdio[2]}
	child = append(child, spec.ExtraFiles...)
	if os.Geteuid() == 0 {
		// The child has another uid and may not reach what root may show.
		for i := range o.Views {
			v := &o.Views[i]
			fd, err := cloneMount(v.Host, *v)
			if err != nil {
				return nil, nil, err
			}
			f := os.NewFile(uintptr(fd), v.Guest)
			inherited = append(inherited, f)
			v.File = len(child)
			child = append(child, f)
		}
	}
	if child[fdOrders], err = writeOrders(o); err != nil {
		return nil, nil, err
	}
	inherited = append(inherited, child[fdOrders])

	if p.group, err = r.groups.create(limits); err != nil {
		return nil, nil, err
	}
	ctx, p.cancel = context.WithCancel(ctx)
	if err := p.launch(r.attr(child)); err != nil {
		p.cancel()
		return nil, nil, errors.Join(err, p.removeGroup())
	}
	// From here on a process exists; the only way out is through its end.
	inherited.close()
	p.control = control
	probes, err := p.handshake(ctx, spec, r.cfg.StartTimeout)
	if err != nil {
		p.kill(Killed)
		control.Close()
		<-p.waited
		p.cancel()
		p.proxies.Wait()
		return nil, nil, errors.Join(fmt.Errorf("start jail: %w", err), p.removeGroup())
	}
	p.startTook = time.Since(begin)
	p.supervise(ctx, limits.Wall)
	return p, probes, nil
}

// rlimits are the per-process bounds. Where no cgroup bounds memory and tasks of
// the whole tree, they bound those of one process and one user, which is less.
func (r *Runner) rlimits(l Limits) rlimits {
	rl := rlimits{
		CPU:       uint64(math.Ceil(l.CPUTime.Seconds())),
		FileSize:  uint64(l.FileSize),
		OpenFiles: uint64(l.OpenFiles),
	}
	if r.groups.dirs["memory"] == "" {
		rl.Data = uint64(l.Memory)
	}
	if r.groups.dirs["pids"] == "" {
		rl.Tasks = uint64(l.Pids + initTasks)
	}
	return rl
}

// insideID is the uid and gid of a guest in its own namespace. Not 0: a uid that
// is not 0 has no capabilities after exec.
const insideID = 1000

// attr says how an init is cloned.
func (r *Runner) attr(child []*os.File) *os.ProcAttr {
	root := os.Geteuid() == 0
	uid, gid := os.Geteuid(), os.Getegid()
	if root {
		uid, gid = r.cfg.UID, r.cfg.GID
	}
	return &os.ProcAttr{
		Dir: "/",
		// One P is enough for an init and saves threads; it makes no garbage worth collecting.
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: child,
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
				unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: insideID, HostID: uid, Size: 1}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: insideID, HostID: gid, Size: 1}},
			GidMappingsEnableSetgroups: root,
			Credential:                 &syscall.Credential{Uid: insideID, Gid: insideID, NoSetGroups: !root},
			// exec takes the capabilities of a uid that is not 0, unless ambient.
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP},
			Setsid:      true,
			Pdeathsig:   syscall.SIGKILL,
		},
	}
}

// controlPair returns both ends of the socket between runner and init. Messages
// keep their borders on it, and the end of one side is seen by the other.
func controlPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		theirs.Close()
		return nil, nil, errors.New("control socket: not a unix socket")
	}
	return uc, theirs, nil
}

func writeOrders(o orders) (*os.File, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode orders: %w", err)
	}
	if len(b) > maxOrders {
		return nil, fmt.Errorf("%w: orders of %d bytes", sandbox.ErrSpec, len(b))
	}
	fd, err := unix.MemfdCreate("pvault-orders", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("orders file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "orders")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write orders: %w", err)
	}
	return f, nil
}

// files are closed together.
type files []*os.File

func (fs *files) close() {
	for _, f := range *fs {
		f.Close()
	}
	*fs = nil
}

// launch clones the init on a thread that stays with it: PDEATHSIG fires when the
// thread that cloned ends, not the process.
func (p *Process) launch(attr *os.ProcAttr) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		proc, err := os.StartProcess("/proc/self/exe", []string{initName}, attr)
		p.proc = proc
		started <- err
		if err != nil {
			return
		}
		if _, err := proc.Wait(); err != nil {
			p.log.Error("wait for jail", "err", err)
		}
		close(p.waited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("clone jail: %w", err)
	}
	return nil
}

// diagnose is Open for those who want the report of a leaking runner, too.
func diagnose(ctx context.Context, cfg Config) (Report, error) {
	r := &Runner{cfg: cfg.withDefaults(), groups: findCgroups(), landlock: sandbox.LandlockABI(), seccomp: haveSeccomp()}
	return r.SelfTest(ctx)
}
