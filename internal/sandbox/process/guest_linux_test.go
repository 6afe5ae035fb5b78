package process

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guestMain is a guest of the tests. It prints what became of what it tried and
// returns an exit code.
func guestMain(what string, args []string) int {
	arg := ""
	if len(args) > 0 {
		arg = args[0]
	}
	say := func(err error) int { fmt.Println(errnoName(err)); return 0 }
	switch what {
	case "read":
		return say(tryOpen(arg, unix.O_RDONLY))
	case "write":
		return say(tryOpen(arg, unix.O_WRONLY|unix.O_CREAT))
	case "truncate":
		return say(unix.Truncate(arg, 0))
	case "append":
		return say(os.WriteFile(arg, []byte("by the guest\n"), 0o600))
	case "exec":
		return say(tryExec(arg))
	case "copy-exec": // what it wrote itself
		if err := os.WriteFile(arg, []byte("#!/bin/sh\n"), 0o700); err != nil {
			return say(err)
		}
		return say(tryExec(arg))
	case "symlink-read":
		if err := os.Symlink(args[1], arg); err != nil {
			return say(err)
		}
		return say(tryOpen(arg, unix.O_RDONLY))
	case "link":
		return say(unix.Link(arg, args[1]))
	case "mknod":
		return say(unix.Mknod(arg, unix.S_IFCHR|0o600, 1<<8|3))
	case "chroot":
		return say(unix.Chroot(arg))
	case "kill":
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return 9
		}
		return say(unix.Kill(pid, unix.SIGKILL))
	case "setuid":
		return say(trySyscall(unix.SYS_SETUID, 0, 0))
	case "newuserns":
		// CLONE_NEWUSER by way of clone, which is allowed without such flags.
		return say(trySyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0))
	case "tiocsti":
		return say(trySyscall(unix.SYS_IOCTL, 0, unix.TIOCSTI))
	case "prctl":
		return say(trySyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0))
	case "rlimit":
		return say(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}))
	case "tcp":
		return say(tryConnect([4]byte{127, 0, 0, 1}))
	case "udp":
		return say(trySocket(unix.AF_INET, unix.SOCK_DGRAM))
	case "raw":
		return say(trySocket(unix.AF_INET, unix.SOCK_RAW))
	case "tcp6":
		return say(trySocket(unix.AF_INET6, unix.SOCK_STREAM))
	case "unix":
		return say(trySocket(unix.AF_UNIX, unix.SOCK_STREAM))
	case "big-file":
		f, err := os.Create("/tmp/big")
		if err != nil {
			return say(err)
		}
		b, n := make([]byte, 1<<20), 0
		for err == nil && n < 1<<12 {
			_, err = f.Write(b)
			n++
		}
		return say(err)
	case "env":
		fmt.Println(strings.Join(os.Environ(), ","))
	case "cwd":
		d, err := os.Getwd()
		fmt.Println(d, err)
	case "ls":
		es, err := os.ReadDir(arg)
		var names []string
		for _, e := range es {
			names = append(names, e.Name())
		}
		fmt.Println(strings.Join(names, ","), errnoName(err))
	case "fds":
		var open []string
		for fd := range 256 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				var st unix.Stat_t
				if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != 0 {
					open = append(open, strconv.Itoa(fd))
				}
			}
		}
		fmt.Println(strings.Join(open, ","))
	case "channel": // an echo on fd 3
		if _, err := io.Copy(os.NewFile(3, "channel"), io.LimitReader(os.NewFile(3, "channel"), 5)); err != nil {
			return say(err)
		}
	case "echo":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return say(err)
		}
	case "exit":
		n, _ := strconv.Atoi(arg)
		return n
	case "crash":
		_ = unix.Kill(os.Getpid(), unix.SIGSEGV)
		_ = unix.Kill(os.Getpid(), unix.SIGABRT)
		time.Sleep(time.Minute)
	case "hang":
		fmt.Println("up")
		time.Sleep(time.Hour)
	case "spin":
		fmt.Println("up")
		for { //nolint:staticcheck // spinning is its task
		}
	case "flood":
		b := bytes.Repeat([]byte("x"), 1<<16)
		for {
			if _, err := os.Stdout.Write(b); err != nil {
				return 3
			}
		}
	case "orphan": // leaves a child behind
		if _, err := fork("hang"); err != nil {
			return say(err)
		}
	case "forks":
		n, err := 0, error(nil)
		for err == nil && n < 10000 {
			if _, err = fork("hang"); err == nil {
				n++
			}
		}
		fmt.Println(n, errnoName(err))
	case "memory":
		var keep [][]byte
		for range 4096 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
			fmt.Println(len(keep))
		}
	case "connect": // through the proxy
		c, err := net.Dial("tcp4", "127.0.0.1:3128")
		if err != nil {
			return say(err)
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", arg, arg)
		br := bufio.NewReader(c)
		status, err := br.ReadString('\n')
		if err != nil {
			return say(err)
		}
		fmt.Print(status)
		if strings.Contains(status, " 200 ") {
			_, _ = br.ReadString('\n')
			fmt.Fprint(c, "ping\n")
			line, _ := br.ReadString('\n')
			fmt.Print(line)
		}
	case "runner": // not jailed: starts a guest, tells its pid, and waits to be killed
		r, err := Open(context.Background(), Config{})
		if err != nil {
			return 8
		}
		p, err := r.Start(context.Background(), Spec{Argv: self("hang"), MinGrade: r.Grade()})
		if err != nil {
			fmt.Println(err)
			return 8
		}
		fmt.Println(p.Pid())
		time.Sleep(time.Hour)
	default:
		return 99
	}
	return 0
}

func fork(what string) (int, error) {
	return syscall.ForkExec(os.Args[0], []string{os.Args[0], "guest", what}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
}

// self is the command line of a guest that runs this binary.
func self(args ...string) []string {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{exe, "guest"}, args...)
}
