package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
