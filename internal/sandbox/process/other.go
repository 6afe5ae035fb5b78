//go:build !linux

package process

import (
	"context"
	"io"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/sandbox"
)

// MaybeChild does nothing here.
func MaybeChild() {}

// A Runner starts guests; here it refuses them all.
type Runner struct{ report Report }

func diagnose(context.Context, Config) (Report, error) {
	return Report{Backend: Backend, Layers: []sandbox.LayerState{{
		Layer: sandbox.LayerNamespaces, Detail: ErrUnsupported.Error(), Fix: "run Vault on Linux, or in a Linux virtual machine",
	}}}, nil
}

// Open returns a Runner whose Report says that there is no jail.
func Open(ctx context.Context, cfg Config) (*Runner, error) {
	rep, err := diagnose(ctx, cfg)
	return &Runner{report: rep}, err
}

// Report returns a report of grade none.
func (r *Runner) Report() Report { return r.report }

// Grade returns GradeNone.
func (r *Runner) Grade() vault.Grade { return r.report.Grade }

// SelfTest returns the same report.
func (r *Runner) SelfTest(context.Context) (Report, error) { return r.report, nil }

// Start refuses with a *vault.Denial.
func (r *Runner) Start(_ context.Context, spec Spec) (*Process, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := r.report.Demand(spec.MinGrade); err != nil {
		return nil, err
	}
	return nil, ErrUnsupported
}

// A Process is a guest. There is none here.
type Process struct {
	Stdin  io.WriteCloser
	Stdout io.ReadCloser
	Stderr io.ReadCloser
}

// Kill does nothing.
func (p *Process) Kill() {}

// Wait returns the zero Exit.
func (p *Process) Wait() Exit { return Exit{} }

// Done returns nil.
func (p *Process) Done() <-chan struct{} { return nil }

// Close does nothing.
func (p *Process) Close() error { return nil }

// Pid returns 0.
func (p *Process) Pid() int { return 0 }

// Grade returns GradeNone.
func (p *Process) Grade() vault.Grade { return vault.GradeNone }

// Stats returns the zero Stats.
func (p *Process) Stats() Stats { return Stats{} }
