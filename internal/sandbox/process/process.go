// Package process runs a program in a process jail: new namespaces, a minimal
// read-only root, Landlock, a seccomp allow list, no capabilities, resource
// limits, and no network but a proxy the caller provides.
//
// It is for what WASM cannot run and a VM is too heavy for: Node and Python MCP
// servers. It does not choose what a guest may see ([sandbox.Spec] says that) and
// it does not install anything. Start with [Open], which tries to break out of a
// jail once and keeps the result as evidence, then [Runner.Start]. The command
// and every TestMain call [MaybeChild] first: a jail begins as a copy of
// the running program.
//
// How a guest comes to be:
//
//	Runner.Start ── clone(user, mount, pid, net, ipc, uts, cgroup) ──► init, PID 1
//	   cgroup ◄─ pid        reads its orders, builds the root, pivots into it
//	   "go"   ─────────────► restricts one thread: capabilities, Landlock,
//	                         rlimits, seccomp; that thread forks the guest
//	   "started" ◄────────── reaps; ends when the guest or Start's process ends
//
// Promises: a guest reaches only what its Spec names; it dies with the runner's
// process, with its init and on [Process.Kill]; a layer that the self-test found
// and that cannot be applied stops the start; nothing is left behind after
// [Process.Wait]: no process, mount or cgroup.
//
// The kernel is shared with the guest. A kernel bug reachable through the allowed
// system calls is outside of what any grade of this package claims.
package process

import (
	"errors"
	"log/slog"
	"time"

	"github.com/pilox/vault/internal/sandbox"
)

// Backend is the name of this runner in reports.
const Backend = "process"

// ErrUnsupported says that this system has no process jail at all.
var ErrUnsupported = errors.New("process jails need Linux")

type (
	// Spec is what runs and what it may reach, see [sandbox.Spec].
	Spec = sandbox.Spec
	// Mount is a directory of the host in the guest, see [sandbox.Mount].
	Mount = sandbox.Mount
	// Limits bound what a guest may use, see [sandbox.Limits].
	Limits = sandbox.Limits
	// Report says what this host enforces, see [sandbox.Report].
	Report = sandbox.Report
)

// Config is what a Runner needs.
type Config struct {
	// UID and GID are the ids guests have on the host when this process is root;
	// 0 = 65534. A plain user cannot choose: its guests have its own ids.
	UID, GID int
	// Log takes what goes wrong after a guest started. nil = nowhere.
	Log *slog.Logger
	// StartTimeout bounds the time from clone to running guest. 0 = 10 s: a
	// loaded machine is slow, a hung one is not worth waiting for.
	StartTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.UID == 0 {
		c.UID = 65534
	}
	if c.GID == 0 {
		c.GID = 65534
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = 10 * time.Second
	}
	return c
}

// A Reason says why a guest ended.
type Reason string

// The reasons. Killed also stands for an init that died without a word, as under
// memory pressure of the whole host.
const (
	Exited   Reason = "exited"   // by itself, with Exit.Code
	Signaled Reason = "signaled" // by a signal of its own doing: a crash
	Killed   Reason = "killed"   // Process.Kill, or ctx of Start
	TimedOut Reason = "wall"     // Limits.Wall
	OOM      Reason = "memory"   // Limits.Memory
)

// An Exit is how a guest ended.
type Exit struct {
	Reason Reason
	Code   int    // exit code; -1 if a signal ended it
	Signal string // name of that signal
}

// Stats is what a guest has used. Known is false where no cgroup counts.
type Stats struct {
	Known      bool
	Memory     int64         // bytes now
	MemoryPeak int64         // bytes
	CPU        time.Duration // user and system
	Pids       int           // tasks now, init's included

	// What the start cost, by init's own clock.
	Mounts   time.Duration // root, view, pivot
	Restrict time.Duration // capabilities, Landlock, rlimits, seccomp
	Start    time.Duration // clone to running guest
}
