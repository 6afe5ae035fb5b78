package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/sandbox"
)

// need skips loudly, and fails where PVAULT_REQUIRE names what is needed.
func need(t testing.TB, what, why string) {
	t.Helper()
	if strings.Contains(os.Getenv("PVAULT_REQUIRE"), what) {
		t.Fatalf("PVAULT_REQUIRE wants %s: %s", what, why)
	}
	t.Skipf("SKIPPED, NOTHING PROVEN: no %s: %s", what, why)
}

func jail(t testing.TB) *Runner {
	t.Helper()
	r, err := Open(context.Background(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Grade() < vault.GradeB {
		rep := r.Report()
		need(t, "jail", fmt.Sprint(vault.DenialOf(rep.Demand(vault.GradeB)).Err))
	}
	return r
}

// run runs a guest to its end and returns its output.
func run(t testing.TB, r *Runner, s Spec) (string, Exit) {
	t.Helper()
	p, err := r.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Stdin.Close()
	go io.Copy(io.Discard, p.Stderr)
	out, err := io.ReadAll(p.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), p.Wait()
}

// dir returns a directory that the guest's uid on the host can use.
func dir(t testing.TB) string {
	d := t.TempDir()
	if os.Geteuid() == 0 {
		if err := os.Chown(d, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func put(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSelfTestProvesEveryLayer(t *testing.T) {
	r := jail(t)
	rep := r.Report()
	n := map[sandbox.Layer]int{}
	for _, c := range rep.Checks {
		if !c.Pass {
			t.Errorf("%s: want %s, got %s", c.Name, c.Want, c.Got)
		}
		n[c.Layer]++
	}
	for _, l := range []sandbox.Layer{sandbox.LayerNamespaces, sandbox.LayerLandlock, sandbox.LayerSeccomp} {
		if n[l] < 5 {
			t.Errorf("%s was tried %d times", l, n[l])
		}
	}
}

func TestLayerThatIsMissingLowersTheGrade(t *testing.T) {
	for _, tt := range []struct {
		name string
		off  func(*Runner)
	}{
		{"without landlock", func(r *Runner) { r.landlock = 0 }},
		{"without seccomp", func(r *Runner) { r.seccomp = false }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := jail(t)
			tt.off(r)
			rep, err := r.SelfTest(t.Context())
			// What the missing layer lets through elsewhere is a leak: no grade at all.
			if rep.Grade > vault.GradeD || rep.Grade > vault.GradeNone && err != nil {
				t.Fatalf("grade %s, err %v", rep.Grade, err)
			}
			r.report = rep
			if _, err := r.Start(t.Context(), Spec{Argv: self("exit", "0")}); vault.DenialOf(err) == nil {
				t.Fatal("started below the default least grade")
			} else if c := vault.DenialOf(err).Reason.Code; c != vault.CodeSandboxGrade && c != vault.CodeSandboxMissing {
				t.Fatalf("refused with %s", c)
			}
		})
	}
}

func TestGuestCannot(t *testing.T) {
	r := jail(t)
	host := dir(t)
	ro, rw := filepath.Join(host, "ro"), filepath.Join(host, "rw")
	for _, d := range []string{ro, rw} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(d, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(t, filepath.Join(ro, "file"), "read me\n")
	if os.Geteuid() == 0 { // else EACCES would hide that the mount is read-only
		if err := os.Chown(filepath.Join(ro, "file"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(host, "secret"), "outside the grant\n")
	me := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"read /etc/passwd", []string{"read", "/etc/passwd"}, "ENOENT"},
		{"read /proc", []string{"read", "/proc/self/status"}, "ENOENT"},
		{"read /sys", []string{"read", "/sys/kernel"}, "ENOENT"},
		{"read a home", []string{"read", "/root/.bashrc"}, "ENOENT"},
		{"read the host's /tmp", []string{"read", filepath.Join(host, "secret")}, "ENOENT"},
		{"climb out of a grant", []string{"read", "/data/../etc/passwd"}, "ENOENT"},
		{"climb to a sibling of a grant", []string{"read", "/data/../secret"}, "ENOENT"},
		{"follow its own symbolic link out of a grant", []string{"symlink-read", "/work/out", "../secret"}, "ENOENT"},
		{"follow its own absolute link", []string{"symlink-read", "/work/abs", "/etc/passwd"}, "ENOENT"},
		{"list the root", []string{"read", "/"}, "EACCES"},
		{"write to the root", []string{"write", "/x"}, "EROFS"},
		{"write to a read-only grant", []string{"write", "/data/file"}, "EROFS"},
		{"create in a read-only grant", []string{"write", "/data/new"}, "EROFS"},
		{"truncate in a read-only grant", []string{"truncate", "/data/file"}, "EROFS"},
		{"write to its own program", []string{"truncate", self()[0]}, "EACCES"},
		{"hard link out of a read-only grant", []string{"link", "/data/file", "/work/file"}, "EXDEV"},
		{"make a device", []string{"mknod", "/work/null"}, "EPERM"},
		{"execute a shell", []string{"exec", "/bin/sh"}, "ENOENT"},
		{"execute what it wrote to a grant", []string{"copy-exec", "/work/x"}, "EACCES"},
		{"execute what it wrote to /tmp", []string{"copy-exec", "/tmp/x"}, "EACCES"},
		{"execute a readable file", []string{"exec", "/data/file"}, "EACCES"},
		{"signal its init", []string{"kill", "1"}, "EPERM"},
		{"signal the test that started it", []string{"kill", me}, "ESRCH"},
		{"connect over TCP", []string{"tcp"}, "EPERM"},
		{"open a UDP socket", []string{"udp"}, "EPERM"},
		{"open a raw socket", []string{"raw"}, "EPERM"},
		{"open an IPv6 socket", []string{"tcp6"}, "EPERM"},
		{"open a unix socket", []string{"unix"}, "EPERM"},
		{"become root", []string{"setuid"}, "EPERM"},
		{"make a user namespace", []string{"newuserns"}, "EPERM"},
		{"change its root", []string{"chroot", "/tmp"}, "EPERM"},
		{"type into a terminal", []string{"tiocsti"}, "EPERM"},
		{"keep capabilities", []string{"prctl"}, "EPERM"},
		{"raise its limits", []string{"rlimit"}, "EPERM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, exit := run(t, r, Spec{
				Argv:     self(tt.args...),
				ReadOnly: []Mount{{Host: ro, Guest: "/data"}}, ReadWrite: []Mount{{Host: rw, Guest: "/work"}},
			})
			if got != tt.want || exit.Reason != Exited {
				t.Errorf("got %q, %+v, want %s", got, exit, tt.want)
			}
		})
	}
}

func TestGuestCan(t *testing.T) {
	r := jail(t)
	d := dir(t)
	put(t, filepath.Join(d, "file"), "read me\n")
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"read a granted file", Spec{Argv: self("read", "/data/file"), ReadOnly: []Mount{{Host: d, Guest: "/data"}}}, "ok"},
		{"list a granted directory", Spec{Argv: self("ls", "/data"), ReadOnly: []Mount{{Host: d, Guest: "/data"}}}, "file ok"},
		{"read one granted file", Spec{Argv: self("read", "/etc/one"), ReadOnly: []Mount{{Host: filepath.Join(d, "file"), Guest: "/etc/one"}}}, "ok"},
		{"write to a granted directory", Spec{Argv: self("append", "/data/made"), ReadWrite: []Mount{{Host: d, Guest: "/data"}}}, "ok"},
		{"write to /tmp", Spec{Argv: self("write", "/tmp/x")}, "ok"},
		{"see a grant below the host's /tmp", Spec{Argv: self("ls", d), ReadOnly: []Mount{{Host: d}}}, "file,made ok"},
		{"see nothing else there", Spec{Argv: self("ls", "/tmp"), ReadOnly: []Mount{{Host: d, Guest: "/tmp/a"}}}, ""},
		{"run with an empty environment", Spec{Argv: self("env")}, ""},
		{"run with the environment it was given", Spec{Argv: self("env"), Env: map[string]string{"B": "2", "A": "1"}}, "A=1,B=2"},
		{"start in /tmp", Spec{Argv: self("cwd")}, "/tmp <nil>"},
		{"start where it was told to", Spec{Argv: self("cwd"), Dir: "/data", ReadOnly: []Mount{{Host: d, Guest: "/data"}}}, "/data <nil>"},
		{"execute its own program", Spec{Argv: self("orphan")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, exit := run(t, r, tt.spec)
			if tt.want == "" && strings.HasPrefix(tt.name, "see nothing") {
				if strings.Contains(got, "systemd") || strings.Contains(got, filepath.Base(d)) {
					t.Errorf("sees %q", got)
				}
				return
			}
			if got != tt.want && !(tt.name == "execute its own program" && (got == "" || got == "up")) || exit.Reason != Exited || exit.Code != 0 {
				t.Errorf("got %q, %+v, want %q", got, exit, tt.want)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(d, "made")); err != nil || string(b) != "by the guest\n" {
		t.Errorf("what the guest wrote: %q, %v", b, err)
	}
}

func TestGuestHoldsOnlyItsDescriptors(t *testing.T) {
	r := jail(t)
	got, _ := run(t, r, Spec{Argv: self("fds")})
	// The Go runtime of the guest has an epoll and an event descriptor of its own.
	for fd := range strings.SplitSeq(got, ",") {
		if n, err := strconv.Atoi(fd); err != nil || n > 2 {
			t.Errorf("descriptor %q is open", fd)
		}
	}
}

func TestExtraFilesAreTheChannel(t *testing.T) {
	r := jail(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	p, err := r.Start(t.Context(), Spec{Argv: self("channel"), ExtraFiles: []*os.File{theirs}})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := ours.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(ours, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	if e := p.Wait(); e.Code != 0 {
		t.Fatalf("%+v", e)
	}
	// The guest's end is gone with it: nobody else held a copy.
	if n, err := ours.Read(b); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v after the guest's end", n, err)
	}
}

func TestExit(t *testing.T) {
	r := jail(t)
	for _, tt := range []struct {
		name string
		args []string
		lim  Limits
		want Exit
	}{
		{"an exit code is surfaced", []string{"exit", "7"}, Limits{}, Exit{Exited, 7, ""}},
		{"a wall limit kills", []string{"hang"}, Limits{Wall: 300 * time.Millisecond}, Exit{TimedOut, -1, "SIGKILL"}},
		{"a CPU limit kills", []string{"spin"}, Limits{CPUTime: time.Second}, Exit{Signaled, -1, "SIGKILL"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := run(t, r, Spec{Argv: self(tt.args...), Limits: tt.lim}); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	t.Run("a crash is surfaced", func(t *testing.T) {
		if _, got := run(t, r, Spec{Argv: self("crash")}); got.Reason == Exited && got.Code == 0 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("a file may not outgrow its limit", func(t *testing.T) {
		if out, got := run(t, r, Spec{Argv: self("big-file"), Limits: Limits{FileSize: 4 << 20}}); out != "EFBIG" && got.Signal != "SIGXFSZ" {
			t.Errorf("got %q, %+v", out, got)
		}
	})
	t.Run("/tmp may not outgrow its limit", func(t *testing.T) {
		if out, _ := run(t, r, Spec{Argv: self("big-file"), Limits: Limits{Tmp: 4 << 20}}); out != "ENOSPC" {
			t.Errorf("got %q", out)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	r := jail(t)
	out, exit := run(t, r, Spec{Argv: self("memory"), Limits: Limits{Memory: 128 << 20}})
	lines := strings.Fields(out)
	if n := len(lines); n > 140 || n == 0 {
		t.Errorf("held %d MiB of 128", n)
	}
	if r.groups.dirs["memory"] != "" && exit.Reason != OOM {
		t.Errorf("%+v", exit)
	}
	if exit.Reason == Exited && exit.Code == 0 {
		t.Errorf("%+v", exit)
	}
}

func TestForkBombIsBounded(t *testing.T) {
	r := jail(t)
	p, err := r.Start(t.Context(), Spec{Argv: self("forks"), Limits: Limits{Pids: 48}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go io.Copy(io.Discard, p.Stderr)
	sc := bufio.NewScanner(p.Stdout)
	for sc.Scan() {
		// Its children say "up"; some die for want of threads.
		if n, what, ok := strings.Cut(sc.Text(), " "); ok {
			if k, err := strconv.Atoi(n); err == nil && (k > 48+initTasks || what != "EAGAIN") {
				t.Errorf("forked %s times, then %s", n, what)
			}
		}
	}
	if s := p.Stats(); s.Pids > 48+initTasks {
		t.Errorf("%d tasks", s.Pids)
	}
	p.Wait()
}

// start starts a guest and waits until it says that it is up.
func start(t testing.TB, ctx context.Context, r *Runner, s Spec) *Process {
	t.Helper()
	p, err := r.Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if line, err := bufio.NewReader(p.Stdout).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("guest said %q, %v", line, err)
	}
	return p
}

func TestKillEndsEveryGuest(t *testing.T) {
	r := jail(t)
	for _, what := range []string{"hang", "spin"} {
		t.Run(what, func(t *testing.T) {
			p := start(t, t.Context(), r, Spec{Argv: self(what)})
			begin := time.Now()
			p.Kill()
			if e := p.Wait(); e.Reason != Killed {
				t.Errorf("%+v", e)
			}
			t.Logf("killed and cleaned up after %v", time.Since(begin))
			if err := unix.Kill(p.Pid(), 0); err != unix.ESRCH {
				t.Errorf("init after Wait: %v", err)
			}
		})
	}
	t.Run("the end of the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := start(t, ctx, r, Spec{Argv: self("hang")})
		cancel()
		if e := p.Wait(); e.Reason != Killed {
			t.Errorf("%+v", e)
		}
	})
	t.Run("a context that has ended starts nothing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Start(ctx, Spec{Argv: self("hang")}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestFloodBlocksTheGuestAlone(t *testing.T) {
	r := jail(t)
	p, err := r.Start(t.Context(), Spec{Argv: self("flood")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := io.CopyN(io.Discard, p.Stdout, 16<<20); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("heap grew by %d", grown)
	}
	p.Kill()
	p.Wait()
}

func TestGuestDiesWithItsRunner(t *testing.T) {
	jail(t)
	cmd := exec.Command(self()[0], "guest", "runner")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, err2 := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || err2 != nil {
		t.Fatalf("%q: %v", line, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// A pidfd becomes readable when its process ends.
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("the guest outlived its runner: %d, %v", n, err)
		}
		return
	}
}

// left returns what a jail could leave behind in this process and on the host.
func left(t *testing.T, r *Runner) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var groups []string
	for _, d := range r.groups.dirs {
		m, err := filepath.Glob(filepath.Join(d, fmt.Sprintf("pvault-%d-*", os.Getpid())))
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, m...)
	}
	slices.Sort(groups)
	kids, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err != nil {
		kids = nil // CONFIG_PROC_CHILDREN
	}
	return fmt.Sprintf("%d mounts, %d descriptors, cgroups %v, children %q",
		strings.Count(string(mounts), "\n"), len(fds), groups, kids)
}

func TestNothingIsLeftBehind(t *testing.T) {
	r := jail(t)
	d := dir(t)
	run(t, r, Spec{Argv: self("exit", "0")}) // opens what the runtime keeps, such as epoll
	before := left(t, r)
	spec := Spec{Argv: self("exit", "0"), ReadOnly: []Mount{{Host: d, Guest: "/data"}}, Proxy: ConnectProxy(nil, nil)}
	run(t, r, spec)
	spec.Argv = self("orphan")
	run(t, r, spec)
	spec.Argv = self("hang")
	start(t, t.Context(), r, spec).Close()
	// Starts that go wrong, early and late.
	spec.Dir = "/nowhere"
	if _, err := r.Start(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("start in a directory that is not there: %v", err)
	}
	spec.ReadOnly = []Mount{{Host: filepath.Join(d, "none"), Guest: "/data"}}
	if _, err := r.Start(t.Context(), spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start without a mount source: %v", err)
	}
	spec.ReadOnly, spec.Exec = nil, []string{"/not/there"}
	if _, err := r.Start(t.Context(), spec); err == nil {
		t.Error("started with an executable that is not in the view")
	}
	if after := left(t, r); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
}

func TestMountInsideAnotherHasToExist(t *testing.T) {
	r := jail(t)
	outer, inner := dir(t), dir(t)
	put(t, filepath.Join(inner, "file"), "x")
	_, err := r.Start(t.Context(), Spec{
		Argv:      self("ls", "/work/sub"),
		ReadWrite: []Mount{{Host: outer, Guest: "/work"}, {Host: inner, Guest: "/work/sub"}},
	})
	if err == nil || !strings.Contains(err.Error(), "does not exist there") {
		t.Fatalf("%v", err)
	}
	if err := os.Symlink("/tmp", filepath.Join(outer, "sub")); err != nil {
		t.Fatal(err)
	}
	if _, err = r.Start(t.Context(), Spec{
		Argv:      self("ls", "/work/sub"),
		ReadWrite: []Mount{{Host: outer, Guest: "/work"}, {Host: inner, Guest: "/work/sub"}},
	}); err == nil {
		t.Fatal("mounted through a symbolic link in a writable mount")
	}
}

func TestProxyIsTheOnlyWayOut(t *testing.T) {
	r := jail(t)
	echo, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	proxy := ConnectProxy(
		func(host string, port int) bool { return host == "registry.example" && port == 443 },
		func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, echo.Addr().String())
		})
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"an allowed host is reached", []string{"connect", "registry.example:443"}, "HTTP/1.1 200 OK\nping"},
		{"another port is refused", []string{"connect", "registry.example:80"}, "HTTP/1.1 403 Forbidden"},
		{"another host is refused", []string{"connect", "evil.example:443"}, "HTTP/1.1 403 Forbidden"},
		{"another port of loopback is refused", []string{"tcp"}, "EACCES"},
		{"UDP is refused", []string{"udp"}, "EPERM"},
		{"raw sockets are refused", []string{"raw"}, "EPERM"},
		{"IPv6 is refused", []string{"tcp6"}, "EPERM"},
		{"unix sockets are refused", []string{"unix"}, "EPERM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, exit := run(t, r, Spec{Argv: self(tt.args...), Proxy: proxy})
			if strings.ReplaceAll(got, "\r", "") != tt.want {
				t.Errorf("got %q, %+v, want %q", got, exit, tt.want)
			}
		})
	}
}

func TestChildIsNotReachableByName(t *testing.T) {
	for _, name := range []string{initName, probeName} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		a, b := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
		cmd := &exec.Cmd{Path: self()[0], Args: []string{name}, Env: []string{"PVAULT_TEST_HOLLOW=1"}, ExtraFiles: []*os.File{b}}
		err = cmd.Run()
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != hollowExit {
			t.Errorf("%s: %v", name, err)
		}
		a.Close()
		b.Close()
	}
}

func TestNode(t *testing.T) {
	r := jail(t)
	node, err := exec.LookPath("node")
	if err != nil {
		need(t, "node", err.Error())
	}
	if node, err = filepath.EvalSymlinks(node); err != nil {
		t.Fatal(err)
	}
	d := dir(t)
	put(t, filepath.Join(d, "in"), "granted")
	for _, tt := range []struct{ name, js, want string }{
		{"reads what it was granted", `console.log(fs.readFileSync("/data/in","utf8"))`, "granted"},
		{"does not read /etc/passwd", `try{fs.readFileSync("/etc/passwd")}catch(e){console.log(e.code)}`, "ENOENT"},
		{"does not spawn a shell", `r=child_process.spawnSync("/bin/sh",["-c","id"]);console.log(r.error.code)`, "ENOENT"},
		{"does not connect", `net.connect(80,"192.0.2.1").on("error",e=>console.log(e.code))`, "EPERM"},
		{"works with threads, timers and crypto", `crypto.pbkdf2("a","b",1,8,"sha256",(e,k)=>setTimeout(()=>console.log(k.length),1))`, "8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := r.Start(t.Context(), Spec{Argv: []string{node, "-e", tt.js}, ReadOnly: []Mount{{Host: d, Guest: "/data"}}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			var stderr strings.Builder
			go io.Copy(io.Discard, io.TeeReader(p.Stderr, &stderr))
			out, err := io.ReadAll(p.Stdout)
			e := p.Wait()
			if err != nil || strings.TrimSpace(string(out)) != tt.want || e.Code != 0 {
				t.Errorf("%q, %v, %+v", out, err, e)
			}
		})
	}
}

// TestAsPlainUser runs the tests above once more without root.
func TestAsPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is a plain user already")
	}
	const uid = 54321
	base, err := os.MkdirTemp("", "pvault-plain-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	bin := filepath.Join(base, "process.test")
	b, err := os.ReadFile(self()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(bin, b, 0o755), os.Chown(base, uid, uid)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.run=^Test(SelfTest|Guest|Extra|Exit|Memory|Fork|Kill|Nothing|Mount|Proxy|Node)", "-test.v")
	cmd.Dir = base
	cmd.Env = append(os.Environ(), "TMPDIR="+base, "HOME="+base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "NOTHING PROVEN: no jail") {
		need(t, "plain-jail", string(out))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS"); n < 50 {
		t.Fatalf("only %d tests passed\n%s", n, out)
	}
}

func BenchmarkStart(b *testing.B) {
	r := jail(b)
	var mounts, restrict, began time.Duration
	n := 0
	for b.Loop() {
		p, err := r.Start(b.Context(), Spec{Argv: self("exit", "0")})
		if err != nil {
			b.Fatal(err)
		}
		s := p.Stats()
		mounts, restrict, began, n = mounts+s.Mounts, restrict+s.Restrict, began+s.Start, n+1
		p.Wait()
		p.Close()
	}
	b.ReportMetric(float64(mounts.Nanoseconds())/float64(n), "mounts-ns")
	b.ReportMetric(float64(restrict.Nanoseconds())/float64(n), "restrict-ns")
	b.ReportMetric(float64(began.Nanoseconds())/float64(n), "start-ns")
}

// BenchmarkExec is the same program without a jail.
func BenchmarkExec(b *testing.B) {
	for b.Loop() {
		if err := exec.Command(self()[0], "guest", "exit", "0").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKill(b *testing.B) {
	r := jail(b)
	for b.Loop() {
		b.StopTimer()
		p := start(b, b.Context(), r, Spec{Argv: self("spin")})
		b.StartTimer()
		p.Kill()
		p.Wait()
		b.StopTimer()
		p.Close()
		b.StartTimer()
	}
}

func BenchmarkSelfTest(b *testing.B) {
	r := jail(b)
	for b.Loop() {
		if _, err := r.SelfTest(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOpenRemovesGroupsOfDeadRunners(t *testing.T) {
	r := jail(t)
	if r.groups.version == 0 {
		need(t, "cgroup", r.groups.detail)
	}
	// A process that is gone: its id is not reused while nothing else starts.
	cmd := exec.Command(self()[0], "guest", "exit", "0")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(r.groups.dirs["pids"], fmt.Sprintf("pvault-%d-dead", cmd.Process.Pid))
	mine := filepath.Join(r.groups.dirs["pids"], fmt.Sprintf("pvault-%d-live", os.Getpid()))
	if err := errors.Join(os.Mkdir(dead, 0o755), os.Mkdir(mine, 0o755)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(mine)
	jail(t)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group of a dead runner: %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("the group of a live runner: %v", err)
	}
}
