package taskfile

import (
	"strings"
	"testing"
	"time"
)

func parseLevel(t *testing.T, lines string) *File {
	t.Helper()
	f, err := Parse([]byte("version: 1\npurpose: p\nprincipal: user:a\ntools:\n  a.b: {args: {}}\n"+lines), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestALevelGivesWhatTheFileLeavesOut(t *testing.T) {
	f := parseLevel(t, "autonomy: L3\n")
	if _, err := f.Claims(resolve); err == nil {
		t.Error("claims of a level that is not expanded")
	}
	out, err := f.Under(DefaultLevels())
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultLevels()["L3"]
	if out.Life != want.Life || out.Budgets.Calls != want.Calls || out.Sandbox.MinGrade != want.MinGrade {
		t.Errorf("got %v %d %v, want %v", out.Life, out.Budgets.Calls, out.Sandbox.MinGrade, want)
	}
	if _, err := out.Claims(resolve); err != nil {
		t.Error(err)
	}
}

func TestAFileCanOnlyBeTighterThanItsLevel(t *testing.T) {
	for _, tt := range []struct{ name, lines, want string }{
		{"tighter in everything", "autonomy: L2\nlife: 1h\nbudgets: {calls: 5}\nsandbox: {min_grade: B}\n", ""},
		{"as the level says", "autonomy: L2\nlife: 8h\nbudgets: {calls: 500}\nsandbox: {min_grade: C}\n", ""},
		{"more calls", "autonomy: L2\nbudgets: {calls: 501}\n", "budgets.calls: 501 is more than level L2 gives, which is 500"},
		{"a longer life", "autonomy: L2\nlife: 8h1s\n", "life: 8h0m1s is longer than level L2 gives, which is 8h"},
		{"a weaker sandbox", "autonomy: L2\nsandbox: {min_grade: D}\n", "sandbox.min_grade: D is below level L2, which demands C"},
		{"no sandbox at all", "autonomy: L2\nsandbox: {min_grade: none}\n", "sandbox.min_grade: none is below level L2"},
		{"another budget does not stand in for calls", "autonomy: L1\nbudgets: {bytes_out: 1KiB}\n", ""},
	} {
		out, err := parseLevel(t, tt.lines).Under(DefaultLevels())
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		case tt.want == "" && (out.Budgets.Calls == 0 || out.Life == 0):
			t.Errorf("%s: no bound on calls or life", tt.name)
		}
	}
}

func TestLevelsThatWouldLoosenAreRefused(t *testing.T) {
	with := func(name string, change func(*Level)) Levels {
		ls := DefaultLevels()
		l := ls[name]
		change(&l)
		ls[name] = l
		return ls
	}
	if err := DefaultLevels().Check(); err != nil {
		t.Fatal(err)
	}
	for name, ls := range map[string]Levels{
		"a lower level that asks less": with("L0", func(l *Level) { l.AskAt = "none" }),
		"no such risk":                 with("L3", func(l *Level) { l.AskAt = "sometimes" }),
		"no bound on calls":            with("L5", func(l *Level) { l.Calls = 0 }),
		"longer than a task may be":    with("L5", func(l *Level) { l.Life = MaxLife + time.Second }),
		"a level of its own":           with("L7", func(l *Level) { *l = DefaultLevels()["L5"] }),
		"nobody to ask":                with("L1", func(l *Level) { l.Group = "" }),
	} {
		if err := ls.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
