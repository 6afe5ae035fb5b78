package gateway

import (
	"context"
	"fmt"
	"sync"

	"github.com/pilox/vault"
)

// A Level is what an autonomy level demands of each call. The zero Level asks a
// group without a name, which nobody is in: it denies.
type Level struct {
	Name   string // L0 to L5
	Group  string // that is asked
	AskAt  vault.Risk
	Silent bool // no call asks because of the level
}

// An Autonomy keeps the level of each task and lowers it when the task's agents
// try what they may not. It never raises one. The zero Autonomy has no levels.
//
// Nothing of it is stored: a level is what the task began with, less one step for
// every Strikes violations on record, so a restart counts them again.
type Autonomy struct {
	Levels  []Level // least autonomy first
	Strikes int     // violations that lower a level by a step; zero means 3

	mu    sync.Mutex
	tasks map[vault.TaskID]*standing // guarded by mu
}

// A standing is the level of one task.
type standing struct {
	base       int // index into Levels
	violations int
}

// Violates reports whether a refusal for this reason lowers the autonomy of a task:
// the agent tried what its capability, the flow of data or the policy forbids. A
// budget that is spent, a person's no, a stopped task and a fault are none.
func Violates(c vault.Code) bool {
	switch c {
	case vault.CodeCapabilityTarget, vault.CodeCapabilityArgument, vault.CodeCapabilityCaveat,
		vault.CodeFlowDeadlyThree, vault.CodeFlowProvenance, vault.CodeFlowReaders, vault.CodeFlowClearance,
		vault.CodePolicyDenied, vault.CodeScan:
		return true
	default:
		return false
	}
}

// Set gives a task a level by name, with the violations that are on record. Set it
// before the task's capability is handed out.
func (a *Autonomy) Set(task vault.TaskID, name string, violations int) error {
	for i := range a.Levels {
		if a.Levels[i].Name != name {
			continue
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.tasks == nil {
			a.tasks = make(map[vault.TaskID]*standing)
		}
		a.tasks[task] = &standing{base: i, violations: violations}
		return nil
	}
	return fmt.Errorf("autonomy level %q is not configured", name)
}

// Forget drops a task that is over.
func (a *Autonomy) Forget(task vault.TaskID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tasks, task)
}

// Level returns the level that a task has now.
func (a *Autonomy) Level(task vault.TaskID) (l Level, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.tasks[task]
	if s == nil {
		return Level{}, false
	}
	return a.Levels[a.now(s)], true
}

// now returns the index of the level after the violations; a.mu is held.
func (a *Autonomy) now(s *standing) int { return max(0, s.base-s.violations/a.Step()) }

// Step is how many violations lower a level by one.
func (a *Autonomy) Step() int {
	if a.Strikes <= 0 {
		return 3
	}
	return a.Strikes
}

// asks says whether a call asks because of its task's level.
func (a *Autonomy) asks(f *vault.Facts) vault.Decision {
	l, ok := a.Level(f.Grant.Task)
	if !ok || l.Silent || !f.Tool.Risk.AtLeast(l.AskAt) {
		return vault.Allowed()
	}
	return vault.Asked(l.Group, vault.CodeApprovalRequired, "", "autonomy level "+l.Name+" demands it")
}

// violated counts a violation and returns the levels before and after it.
func (a *Autonomy) violated(task vault.TaskID) (from, to Level, lowered bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.tasks[task]
	if s == nil {
		return Level{}, Level{}, false
	}
	before := a.now(s)
	s.violations++
	after := a.now(s)
	return a.Levels[before], a.Levels[after], before != after
}

// strike counts a refusal that is a violation. A level that it lowers is in force
// before the caller has its answer, and on record.
func (g *Gateway) strike(ctx context.Context, f *vault.Facts, code vault.Code) {
	if !Violates(code) {
		return
	}
	from, to, lowered := g.Autonomy.violated(f.Grant.Task)
	if !lowered {
		return
	}
	g.Log.WarnContext(ctx, "autonomy lowered", "task", string(f.Grant.Task), "from", from.Name, "to", to.Name, "reason", string(code))
	e := &vault.Event{
		Run: f.Grant.Task, Class: vault.ClassTask, Phase: vault.PhaseNoted, Verdict: vault.Deny, Reason: code,
		Fields: []vault.Field{
			{Name: "agent", Value: []byte(f.Grant.Agent)},
			{Name: "by", Value: fmt.Appendf(nil, "autonomy lowered from %s to %s after %d violations", from.Name, to.Name, g.Autonomy.Step())},
		},
	}
	if _, err := g.late(context.WithoutCancel(ctx), e, g.Recorder.Commit); err != nil {
		g.Log.ErrorContext(ctx, "lowered autonomy not recorded", "task", string(f.Grant.Task), "err", err)
	}
}
