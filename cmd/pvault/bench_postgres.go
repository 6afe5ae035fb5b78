//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// startPostgres starts a server in dir, with its defaults except for the memory
// and the log, and returns the URL of its database. stop ends it. It is
// errNoPostgres where the host has none.
func startPostgres(ctx context.Context, dir string) (at string, stop func(), err error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", nil, errNoPostgres
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	dir, err = os.MkdirTemp(dir, "pg") // short: a socket's path must be
	if err != nil {
		return "", nil, err
	}
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 { // which PostgreSQL refuses to run as
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", nil, errors.Join(errNoPostgres, os.RemoveAll(dir))
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return "", nil, err
		}
	}
	data := filepath.Join(dir, "data")
	run := func(name string, args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
		c.Dir, c.SysProcAttr = dir, attr
		return c
	}
	if out, err := run("initdb", "-D", data, "-U", "vault", "-A", "trust", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("initdb: %w: %s", err, out), os.RemoveAll(dir))
	}
	server := run("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB")
	if err := server.Start(); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = syscall.Kill(server.Process.Pid, syscall.SIGINT) // fast shutdown
		_ = server.Wait()
		_ = os.RemoveAll(dir)
	}
	for range 600 {
		if run("pg_isready", "-q", "-h", dir).Run() == nil {
			if c, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, ".s.PGSQL.5432")); err == nil {
				_ = c.Close()
				q := url.Values{"host": {dir}, "sslmode": {"disable"}}
				return (&url.URL{Scheme: "postgres", User: url.User("vault"), Path: "/postgres", RawQuery: q.Encode()}).String(), stop, nil
			}
		}
		<-time.After(50 * time.Millisecond)
	}
	stop()
	return "", nil, errors.New("postgres does not answer")
}
