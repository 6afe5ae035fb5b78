package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

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
