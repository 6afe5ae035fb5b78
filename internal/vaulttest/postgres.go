//go:build unix

package vaulttest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Postgres is a PostgreSQL server of one test, on a socket in a directory of its
// own. It syncs to disk like a real one.
type Postgres struct {
	dir  string // data, socket
	bin  string
	cred *syscall.Credential // nil: as this process
	cmd  *exec.Cmd
	done chan struct{}
}

// StartPostgres starts a server that ends with the test, or ends the test through
// [Missing] where the host has none.
func StartPostgres(t testing.TB) *Postgres {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		Missing(t, "postgres", "no PostgreSQL under /usr/lib/postgresql")
	}
	slices.Sort(found)
	// Not t.TempDir: a socket's path must be short, and another user must reach it.
	dir, err := os.MkdirTemp("", "pvpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &Postgres{dir: dir, bin: filepath.Dir(found[len(found)-1])}
	if os.Geteuid() == 0 {
		p.asUser(t)
	}
	init := p.command("initdb", "-D", filepath.Join(dir, "data"), "-U", "vault", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p.Start(t)
	t.Cleanup(p.Kill)
	return p
}

// asUser finds a user to run as: PostgreSQL refuses root.
func (p *Postgres) asUser(t testing.TB) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		Missing(t, "postgres", "no user postgres to run it as")
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	p.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := os.Chown(p.dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
}

func (p *Postgres) command(name string, args ...string) *exec.Cmd {
	// Cleanup stops servers after the test's own context is over.
	cmd := exec.CommandContext(context.Background(), filepath.Join(p.bin, name), args...) //nolint:forbidigo // see above
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred, Setpgid: true}
	return cmd
}

// Start starts the server after [Postgres.Kill] and waits until it answers.
func (p *Postgres) Start(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		why, ok := p.try(t)
		if ok {
			return
		}
		// The processes of a server that was killed may outlive it for a moment, and
		// while they hold its memory a new one does not start.
		if time.Now().After(deadline) || !strings.Contains(why, "shared memory block") {
			t.Fatalf("postgres does not answer: %s", why)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// try starts the server and reports whether it answers, else what it said last.
func (p *Postgres) try(t testing.TB) (why string, ok bool) {
	t.Helper()
	p.cmd = p.command("postgres", "-D", filepath.Join(p.dir, "data"), "-k", p.dir, "-c", "listen_addresses=",
		"-c", "max_connections=60", "-c", "shared_buffers=64MB", "-c", "max_wal_size=2GB", "-c", "unix_socket_permissions=0777")
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	err = p.cmd.Start()
	log.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(p.cmd, p.done)
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", filepath.Join(p.dir, ".s.PGSQL.5432"))
		if err == nil {
			c.Close()
			if p.command("pg_isready", "-q", "-h", p.dir).Run() == nil {
				return "", true
			}
		}
		select {
		case <-p.done:
		case <-time.After(5 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		}
		text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		return string(text[max(0, len(text)-1000):]), false
	}
}

// Kill ends the server and all its processes as a power cut would.
func (p *Postgres) Kill() { p.end(syscall.SIGKILL) }

// Stop ends the server as an operator does who does not wait for clients.
func (p *Postgres) Stop() { p.end(syscall.SIGINT) }

func (p *Postgres) end(sig syscall.Signal) {
	pid := p.cmd.Process.Pid
	if sig == syscall.SIGKILL {
		// A backend has a session of its own, and would otherwise see that the
		// server is gone a moment later than the next one starts.
		pids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		defer func() {
			for _, f := range strings.Fields(string(pids)) {
				if child, err := strconv.Atoi(f); err == nil {
					_ = syscall.Kill(child, sig)
				}
			}
		}()
	}
	_ = syscall.Kill(pid, sig)
	<-p.done
}

// URL returns the URL of a new, empty database with this name.
func (p *Postgres) URL(t testing.TB, name string) string {
	t.Helper()
	if out, err := p.command("createdb", "-h", p.dir, "-U", "vault", name).CombinedOutput(); err != nil {
		t.Fatalf("createdb %s: %v\n%s", name, err, out)
	}
	return (&url.URL{Scheme: "postgres", User: url.User("vault"), Path: "/" + name, RawQuery: url.Values{"host": {p.dir}, "sslmode": {"disable"}}.Encode()}).String()
}

// SQL runs statements as the superuser and returns what psql prints.
func (p *Postgres) SQL(t testing.TB, database, query string) string {
	t.Helper()
	out, err := p.command("psql", "-h", p.dir, "-U", "vault", "-d", database, "-v", "ON_ERROR_STOP=1", "-qAt", "-c", query).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", query, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Refuses runs statements that must fail, and returns what psql says.
func (p *Postgres) Refuses(t testing.TB, database, query string) string {
	t.Helper()
	out, err := p.command("psql", "-h", p.dir, "-U", "vault", "-d", database, "-v", "ON_ERROR_STOP=1", "-qAt", "-c", query).CombinedOutput()
	if err == nil {
		t.Errorf("%s: not refused", query)
	}
	return strings.TrimSpace(string(out))
}
