// Package sandbox says what a sandbox is asked to be and what a host really
// gives: the [Spec] of one guest with its [Limits], the [Report] of a runner's
// self-test with the grade that follows from it, and the [Host] facts behind a
// missing grade.
//
// It owns no isolation. The runners do (package process; a WASM worker and a
// microVM are not part of this version), each in a package of its own that
// imports this one. Start with [Spec] to describe a guest and with
// [Report.Demand] to decide whether a runner may start it.
//
// It promises that the zero value of everything denies: a zero Report has grade
// none, a zero MinGrade demands grade B, a zero Limit is the stated default and
// never "unlimited".
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// ErrSpec is wrapped by every error about a Spec that no host could run.
var ErrSpec = errors.New("invalid sandbox spec")

// A Mount shows one file or directory of the host to a guest.
type Mount struct {
	Host  string // absolute path outside; symbolic links in it are followed
	Guest string // absolute clean path inside; "" = the same as Host
}

// Target returns the path of m inside the guest.
func (m Mount) Target() string {
	if m.Guest == "" {
		return m.Host
	}
	return m.Guest
}

// A Spec describes one guest. What it does not name, the guest does not have.
type Spec struct {
	// Argv is the program, an absolute path of the host that appears under the
	// same path inside, and its arguments. The libraries that its ELF header
	// names come with it. Nothing else can be executed, except Exec.
	Argv []string
	// Env is the whole environment; nil = empty.
	Env map[string]string
	// Dir is the working directory inside; "" = /tmp.
	Dir string
	// ReadOnly and ReadWrite are shown to the guest. What is writable is never
	// executable.
	ReadOnly, ReadWrite []Mount
	// Exec names paths inside, beside the program, that may be executed. They
	// have to be in the view already.
	Exec []string

	// Stdin, Stdout and Stderr go to the guest as they are; nil = a pipe that the
	// process hands out. The caller closes its own copies.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles become file descriptors 3, 4, … of the guest. They are how a
	// guest gets a channel; it can open none itself.
	ExtraFiles []*os.File

	// Proxy, if set, serves every TCP connection the guest makes to ProxyAddr,
	// on a goroutine of its own, and closes it. ctx ends with the guest. nil = no
	// network of any kind.
	Proxy func(ctx context.Context, conn net.Conn)

	Limits Limits
	// MinGrade is the least isolation the guest may start under; the zero
	// GradeNone demands grade B, so that reduced isolation has to be asked for.
	MinGrade vault.Grade
}

// ProxyAddr is where a guest with a Spec.Proxy finds it.
const ProxyAddr = "127.0.0.1:3128"

// Limits bound one guest. Each zero is the default beside it; none means
// "unlimited". A negative value is invalid.
type Limits struct {
	Memory    int64         // bytes of the whole tree; 0 = 1 GiB
	Pids      int           // tasks, threads included; 0 = 64
	CPUTime   time.Duration // of one process, rounded up to seconds; 0 = 1 h
	CPURate   float64       // CPUs the tree may use at once; 0 = 1
	FileSize  int64         // bytes of one file; 0 = 256 MiB
	OpenFiles int           // per process; 0 = 256
	Tmp       int64         // bytes of the private /tmp, counted as memory; 0 = 64 MiB
	Wall      time.Duration // from start to kill; 0 = 24 h, since a server may run that long
}

// WithDefaults returns l with each zero replaced.
func (l Limits) WithDefaults() Limits {
	setZero(&l.Memory, 1<<30)
	setZero(&l.Pids, 64)
	setZero(&l.CPUTime, time.Hour)
	setZero(&l.CPURate, 1)
	setZero(&l.FileSize, 256<<20)
	setZero(&l.OpenFiles, 256)
	setZero(&l.Tmp, 64<<20)
	setZero(&l.Wall, 24*time.Hour)
	return l
}

func setZero[T int | int64 | float64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Bounds of a Spec. execve refuses more than 2 MiB of arguments; a tenth is
// plenty for a server. 256 mounts are four times what node with all its libraries needs.
const (
	maxArgBytes = 128 << 10
	maxMounts   = 256
	maxFiles    = 64
	maxCPUs     = 8192 // what Linux can be built for
)

// Validate reports why no host could run s. The error wraps [ErrSpec].
func (s *Spec) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrSpec, fmt.Sprintf(format, args...))
	}
	if len(s.Argv) == 0 || !cleanAbs(s.Argv[0]) {
		return bad("the program must be an absolute clean path")
	}
	n := 0
	for _, a := range s.Argv {
		n += len(a) + 1
		if strings.ContainsRune(a, 0) {
			return bad("an argument holds a NUL byte")
		}
	}
	for k, v := range s.Env {
		n += len(k) + len(v) + 2
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return bad("environment variable %q is malformed", k)
		}
	}
	if n > maxArgBytes {
		return bad("arguments and environment exceed %d bytes", maxArgBytes)
	}
	if s.Dir != "" && !cleanAbs(s.Dir) {
		return bad("the working directory must be an absolute clean path")
	}
	if len(s.ReadOnly)+len(s.ReadWrite) > maxMounts {
		return bad("more than %d mounts", maxMounts)
	}
	for _, list := range [][]Mount{s.ReadOnly, s.ReadWrite} {
		for _, m := range list {
			if !path.IsAbs(m.Host) || strings.ContainsRune(m.Host, 0) {
				return bad("mount source %q is not absolute", m.Host)
			}
			if t := m.Target(); !cleanAbs(t) || t == "/" || t == "/tmp" {
				return bad("mount target %q must be an absolute clean path below the root, and /tmp is private", t)
			}
		}
	}
	for _, p := range s.Exec {
		if !cleanAbs(p) {
			return bad("executable %q must be an absolute clean path", p)
		}
	}
	if len(s.Exec) > maxMounts || len(s.ExtraFiles) > maxFiles {
		return bad("too many executables or files")
	}
	l := s.Limits
	if l.Memory < 0 || l.Pids < 0 || l.CPUTime < 0 || l.CPURate < 0 || l.CPURate != l.CPURate ||
		l.FileSize < 0 || l.OpenFiles < 0 || l.Tmp < 0 || l.Wall < 0 {
		return bad("a limit is negative")
	}
	if l.CPURate > maxCPUs {
		return bad("more than %d CPUs", maxCPUs)
	}
	if s.MinGrade > vault.GradeA {
		return bad("no such grade")
	}
	return nil
}

func cleanAbs(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}
