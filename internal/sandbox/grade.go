package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pilox/vault"
)

// ErrLeak is wrapped by the error of a self-test in which something forbidden
// succeeded. A runner that sees it serves nobody.
var ErrLeak = errors.New("the sandbox let through what it must refuse")

// A Layer is one independent mechanism of a runner.
type Layer string

// The layers of the process jail. Cgroup bounds resources and takes no part in
// the grade: without it the limits hold per process only, and the report says so.
const (
	LayerNamespaces Layer = "namespaces"
	LayerLandlock   Layer = "landlock"
	LayerSeccomp    Layer = "seccomp"
	LayerCgroup     Layer = "cgroup"
)

// A Check is one thing a self-test tried from inside.
type Check struct {
	Name  string `json:"name"`
	Layer Layer  `json:"layer"`
	Want  string `json:"want"` // the errno or value that proves the layer
	Got   string `json:"got"`  // "ok" if what must be refused succeeded
	Pass  bool   `json:"pass"`
	Leak  bool   `json:"leak,omitempty"` // a forbidden thing succeeded
}

// A LayerState says whether a layer is in force.
type LayerState struct {
	Layer  Layer  `json:"layer"`
	On     bool   `json:"on"`
	Detail string `json:"detail,omitempty"` // version, or why it is off
	Fix    string `json:"fix,omitempty"`    // what to change on this host
}

// A Report is the evidence a runner's self-test leaves: what was tried, what
// each layer said, and the grade that follows. Its JSON form is recorded.
type Report struct {
	Backend string       `json:"backend"`
	Grade   vault.Grade  `json:"grade"`
	Layers  []LayerState `json:"layers"`
	Checks  []Check      `json:"checks"`
	TookNS  int64        `json:"took_ns"`
}

// Judge derives the grade of a process jail from its layers and checks: B if
// namespaces, Landlock and seccomp are each on and every one of their checks
// passed; D if namespaces hold and another layer is missing or unproven; none
// otherwise. A leak gives none and an error that wraps [ErrLeak].
func (r *Report) Judge() error {
	r.Grade = vault.GradeNone
	proven := make(map[Layer]bool, len(r.Layers))
	for _, l := range r.Layers {
		proven[l.Layer] = l.On
	}
	seen := map[Layer]bool{}
	var leaks []string
	for _, c := range r.Checks {
		seen[c.Layer] = true
		if !c.Pass {
			proven[c.Layer] = false
		}
		if c.Leak {
			leaks = append(leaks, c.Name)
		}
	}
	for l := range proven {
		// A layer that nothing was tried against is a claim, not a proof.
		proven[l] = proven[l] && seen[l]
	}
	if leaks != nil {
		return fmt.Errorf("%w: %s", ErrLeak, strings.Join(leaks, ", "))
	}
	switch {
	case proven[LayerNamespaces] && proven[LayerLandlock] && proven[LayerSeccomp]:
		r.Grade = vault.GradeB
	case proven[LayerNamespaces]:
		r.Grade = vault.GradeD
	}
	return nil
}

// On reports whether layer l is in force.
func (r *Report) On(l Layer) bool {
	for _, s := range r.Layers {
		if s.Layer == l {
			return s.On
		}
	}
	return false
}

// Demand reports a *vault.Denial if r is below least: sandbox.unavailable if
// the runner isolates not at all, else sandbox.grade. A least of GradeNone
// demands grade B.
func (r *Report) Demand(least vault.Grade) error {
	if least == vault.GradeNone {
		least = vault.GradeB
	}
	if r.Grade >= least {
		return nil
	}
	code := vault.CodeSandboxGrade
	if r.Grade == vault.GradeNone {
		code = vault.CodeSandboxMissing
	}
	return vault.NewDenial(code, "", fmt.Errorf("backend %s has grade %s, demanded is %s%s",
		r.Backend, r.Grade, least, r.missing()))
}

func (r *Report) missing() string {
	var b strings.Builder
	for _, l := range r.Layers {
		if !l.On && l.Layer != LayerCgroup {
			fmt.Fprintf(&b, "; %s: %s", l.Layer, l.Detail)
		}
	}
	for _, c := range r.Checks {
		if !c.Pass {
			fmt.Fprintf(&b, "; %s: want %s, got %s", c.Name, c.Want, c.Got)
		}
	}
	return b.String()
}
