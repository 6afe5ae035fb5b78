package sandbox

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// proven returns the report of a self-test in which all went well.
func proven() Report {
	r := Report{Backend: "process"}
	for _, l := range []Layer{LayerNamespaces, LayerLandlock, LayerSeccomp} {
		r.Layers = append(r.Layers, LayerState{Layer: l, On: true})
		r.Checks = append(r.Checks, Check{Name: "try " + string(l), Layer: l, Want: "EPERM", Got: "EPERM", Pass: true})
	}
	r.Layers = append(r.Layers, LayerState{Layer: LayerCgroup})
	return r
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Report)
		want   vault.Grade
		leak   bool
	}{
		{"every layer proven is B, also without a cgroup", func(*Report) {}, vault.GradeB, false},
		{"the zero report is none", func(r *Report) { *r = Report{} }, vault.GradeNone, false},
		{"a stated grade counts for nothing", func(r *Report) { *r = Report{Grade: vault.GradeA} }, vault.GradeNone, false},
		{"no landlock is D", func(r *Report) { r.Layers[1].On = false }, vault.GradeD, false},
		{"no seccomp is D", func(r *Report) { r.Layers[2].On = false }, vault.GradeD, false},
		{"no namespaces is none", func(r *Report) { r.Layers[0].On = false }, vault.GradeNone, false},
		{"a layer that nothing was tried against is not proven", func(r *Report) { r.Checks = r.Checks[:2] }, vault.GradeD, false},
		{"the wrong refusal proves nothing", func(r *Report) { r.Checks[1].Got, r.Checks[1].Pass = "ENOENT", false }, vault.GradeD, false},
		{"a leak is none and an error", func(r *Report) { r.Checks[2].Pass, r.Checks[2].Leak = false, true }, vault.GradeNone, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := proven()
			tt.change(&r)
			if err := r.Judge(); r.Grade != tt.want || errors.Is(err, ErrLeak) != tt.leak || (err != nil) != tt.leak {
				t.Errorf("grade %s, %v", r.Grade, err)
			}
		})
	}
}

func TestDemand(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grade vault.Grade
		least vault.Grade
		want  vault.Code
	}{
		{"B meets B", vault.GradeB, vault.GradeB, ""},
		{"B meets the default", vault.GradeB, vault.GradeNone, ""},
		{"D meets D when asked for", vault.GradeD, vault.GradeD, ""},
		{"D misses the default", vault.GradeD, vault.GradeNone, vault.CodeSandboxGrade},
		{"B misses A", vault.GradeB, vault.GradeA, vault.CodeSandboxGrade},
		{"none meets nothing, not even none", vault.GradeNone, vault.GradeNone, vault.CodeSandboxMissing},
		{"none misses D", vault.GradeNone, vault.GradeD, vault.CodeSandboxMissing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Report{Backend: "process", Grade: tt.grade}
			err := r.Demand(tt.least)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if d, ok := errors.AsType[*vault.Denial](err); !ok || d.Reason.Code != tt.want || d.Executed != vault.ExecutedNo {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestReportIsEvidence(t *testing.T) {
	r := proven()
	if err := r.Judge(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || back.Grade != vault.GradeB || len(back.Checks) != len(r.Checks) {
		t.Fatalf("%v %s", err, b)
	}
}

func TestValidateRefuses(t *testing.T) {
	ok := func() Spec { return Spec{Argv: []string{"/bin/true"}} }
	for _, tt := range []struct {
		name   string
		change func(*Spec)
	}{
		{"no program", func(s *Spec) { s.Argv = nil }},
		{"a relative program", func(s *Spec) { s.Argv[0] = "true" }},
		{"a program that is not clean", func(s *Spec) { s.Argv[0] = "/bin/../bin/true" }},
		{"a NUL in an argument", func(s *Spec) { s.Argv = append(s.Argv, "a\x00b") }},
		{"too many arguments", func(s *Spec) { s.Argv = append(s.Argv, strings.Repeat("x", maxArgBytes)) }},
		{"a variable without a name", func(s *Spec) { s.Env = map[string]string{"": "x"} }},
		{"a variable with = in its name", func(s *Spec) { s.Env = map[string]string{"A=B": "x"} }},
		{"a relative directory", func(s *Spec) { s.Dir = "work" }},
		{"a relative mount source", func(s *Spec) { s.ReadOnly = []Mount{{Host: "a", Guest: "/a"}} }},
		{"a mount over the root", func(s *Spec) { s.ReadOnly = []Mount{{Host: "/"}} }},
		{"a mount over /tmp", func(s *Spec) { s.ReadWrite = []Mount{{Host: "/tmp"}} }},
		{"a mount target that climbs", func(s *Spec) { s.ReadWrite = []Mount{{Host: "/a", Guest: "/a/../.."}} }},
		{"too many mounts", func(s *Spec) { s.ReadOnly = make([]Mount, maxMounts+1) }},
		{"a relative executable", func(s *Spec) { s.Exec = []string{"sh"} }},
		{"too many files", func(s *Spec) { s.ExtraFiles = make([]*os.File, maxFiles+1) }},
		{"a negative limit", func(s *Spec) { s.Limits.Memory = -1 }},
		{"a rate that is no number", func(s *Spec) { s.Limits.CPURate = math.NaN() }},
		{"a rate without end", func(s *Spec) { s.Limits.CPURate = math.Inf(1) }},
		{"no such grade", func(s *Spec) { s.MinGrade = vault.GradeA + 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := ok()
			tt.change(&s)
			if err := s.Validate(); !errors.Is(err, ErrSpec) {
				t.Errorf("%v", err)
			}
		})
	}
	if s := ok(); s.Validate() != nil {
		t.Error("refused a good one")
	}
}

func TestNoLimitIsUnlimited(t *testing.T) {
	l := Limits{Wall: time.Second}.WithDefaults()
	if l.Memory <= 0 || l.Pids <= 0 || l.CPUTime <= 0 || l.CPURate <= 0 || l.FileSize <= 0 || l.OpenFiles <= 0 || l.Tmp <= 0 || l.Wall != time.Second {
		t.Errorf("%+v", l)
	}
}
