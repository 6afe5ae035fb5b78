package taskfile

import (
	"fmt"
	"slices"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
)

// A Level is what an autonomy level gives: the most that a task file may say, and
// what it means where the file says nothing. A file can only be tighter.
type Level struct {
	// AskAt is the least risk of a tool from which on each call asks: low, medium,
	// high or none.
	AskAt    string
	Group    string        // approval group that is asked
	Calls    int64         // most calls
	Life     time.Duration // longest life
	MinGrade vault.Grade   // least sandbox grade
}

// LevelNames are the autonomy levels, least autonomy first.
var LevelNames = []string{"L0", "L1", "L2", "L3", "L4", "L5"}

// Levels are the autonomy levels by name.
type Levels map[string]Level

// DefaultLevels returns the levels of an operator who has not said otherwise. More
// autonomy means fewer questions and a stronger sandbox. No level is without limits.
func DefaultLevels() Levels {
	return Levels{
		"L0": {AskAt: "low", Group: "default", Calls: 50, Life: 30 * time.Minute, MinGrade: vault.GradeNone},
		"L1": {AskAt: "medium", Group: "default", Calls: 100, Life: time.Hour, MinGrade: vault.GradeD},
		"L2": {AskAt: "medium", Group: "default", Calls: 500, Life: 8 * time.Hour, MinGrade: vault.GradeC},
		"L3": {AskAt: "high", Group: "default", Calls: 1000, Life: 8 * time.Hour, MinGrade: vault.GradeB},
		"L4": {AskAt: "high", Group: "default", Calls: 5000, Life: 24 * time.Hour, MinGrade: vault.GradeB},
		"L5": {AskAt: "none", Group: "default", Calls: 20000, Life: MaxLife, MinGrade: vault.GradeB},
	}
}

// Check reports what is wrong with a set of levels. Each has to be there, and none
// may ask for less at a lower level than at the next one: a violation lowers the
// level, which must never loosen anything.
func (ls Levels) Check() error {
	for name := range ls {
		if !slices.Contains(LevelNames, name) {
			return fmt.Errorf("autonomy level %q: want L0 to L5", name)
		}
	}
	last := -1
	for _, name := range LevelNames {
		l, ok := ls[name]
		rank := slices.Index(askOrder, l.AskAt)
		switch {
		case !ok:
			return fmt.Errorf("autonomy level %s is missing", name)
		case rank < 0:
			return fmt.Errorf("autonomy level %s: ask_at %q: want low, medium, high or none", name, l.AskAt)
		case rank < last:
			return fmt.Errorf("autonomy level %s asks at %s, more often than the level below it", name, l.AskAt)
		case groupName(l.Group) != nil:
			return fmt.Errorf("autonomy level %s: %w", name, groupName(l.Group))
		case l.Calls < 1:
			return fmt.Errorf("autonomy level %s: calls is not positive", name)
		case l.Life < time.Second || l.Life > MaxLife:
			return fmt.Errorf("autonomy level %s: want a life from 1s to %s", name, MaxLife)
		}
		last = rank
	}
	return nil
}

// askOrder is from the most questions to the fewest.
var askOrder = []string{"low", "medium", "high", "none"}

// String says in a sentence what a level means.
func (l Level) String() string {
	asks := "no call asks because of the level"
	switch l.AskAt {
	case "low":
		asks = fmt.Sprintf("every call asks the group %s", l.Group)
	case "medium", "high":
		asks = fmt.Sprintf("calls of risk %s and above ask the group %s", l.AskAt, l.Group)
		if l.AskAt == "high" {
			asks = fmt.Sprintf("calls of risk high ask the group %s", l.Group)
		}
	}
	return fmt.Sprintf("%s; at most %d calls in %s; sandbox grade %s or better", asks, l.Calls, Span(l.Life), l.MinGrade)
}

// Span writes a duration for people, without its zero parts: 30m, 8h, 7d.
func Span(d time.Duration) string {
	switch {
	case d >= 24*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// Under expands the file's autonomy level. What the file leaves out becomes what the
// level gives, and what the file says beyond the level is an error: a file cannot
// widen its level. A file without a level is returned as it is.
func (f *File) Under(levels Levels) (*File, error) {
	if f.Autonomy == "" {
		return f, nil
	}
	level, ok := levels[f.Autonomy]
	if !ok {
		return nil, Errors{f.autonomy.err("autonomy", "no level %s is configured", f.Autonomy)}
	}
	out := *f
	var problems Errors
	switch {
	case out.Life == 0:
		out.Life = level.Life
	case out.Life > level.Life:
		problems = append(problems, f.autonomy.err("life", "%s is longer than level %s gives, which is %s", Span(out.Life), f.Autonomy, Span(level.Life)))
	}
	switch {
	case out.Budgets.Calls == 0:
		out.Budgets.Calls = level.Calls
	case out.Budgets.Calls > level.Calls:
		problems = append(problems, f.autonomy.err("budgets.calls", "%d is more than level %s gives, which is %d", out.Budgets.Calls, f.Autonomy, level.Calls))
	}
	switch {
	case !out.Sandbox.stated:
		out.Sandbox.MinGrade = level.MinGrade
	case out.Sandbox.MinGrade < level.MinGrade:
		problems = append(problems, f.autonomy.err("sandbox.min_grade", "%s is below level %s, which demands %s", out.Sandbox.MinGrade, f.Autonomy, level.MinGrade))
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return &out, nil
}

// err is a problem with the level, which is found when the levels are known.
func (p place) err(path, format string, args ...any) *Error {
	return &Error{Line: p.line, Column: p.column, Path: path, Problem: fmt.Sprintf(format, args...), Hint: "a task file can only be tighter than its level"}
}

// level reads the name of an autonomy level.
func (d *decoder) level(n *yaml.Node, path string) string {
	s := d.text(n, path, 8)
	if s != "" && !slices.Contains(LevelNames, s) {
		d.fail(n, path, "want L0, L1, L2, L3, L4 or L5")
		return ""
	}
	return s
}
