package capability

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// TestExplain holds the sentences that a reviewer reads of a chain of two links.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{
		Args: Args{"/path": One(Constraint{SubPath: ptr("/srv/invoices")}), "/head": {Optional: true, All: []Constraint{{Int: &IntRange{Min: 1, Max: 100}}}}},
		Ask:  []string{"finance"},
	})
	l.Grants[vault.KindTool][transfer] = Rule{Args: Args{"/to": One(Constraint{EmailDomain: []string{"a.example"}}, Constraint{MaxLength: ptr(int64(40))})}}
	l.MayRead, l.Caveats, l.SignAt = []string{"finance"}, []string{"now < timestamp('2027-01-01T00:00:00Z')"}, "high"
	c := w.attenuate(w.mint(l), Link{
		Budgets: &Budgets{Calls: Limit(3), Recipients: Limit(2)}, Depth: Depth(0),
		Grants: Grants{vault.KindTool: {readFile: {Args: Args{"/path": One(Constraint{Glob: ptr("/srv/invoices/*.txt")})}}}},
	}, w.agent)
	x := Explain(c, func(id vault.ServerID) string {
		if id == filesServer {
			return "files"
		}
		return ""
	})
	all := strings.Join(slices.Concat(x.Summary, x.Links[0].Says, x.Links[1].Says), "\n")
	for _, want := range []string{
		"acts for user:clerk@example.com: test",
		"it cannot be handed on",
		"tool files: read_file, /head is a whole number from 1 to 100, or is left out; /path is the path /srv/invoices or one below it; each call asks the group finance",
		"/to is an address at a.example and text of at most 40 characters",
		"at most 50 calls", "only while now <", "a call of risk high and above carries a signature", "may read finance",
		"tool files: read_file, /path is text like /srv/invoices/*.txt", "at most 3 calls", "at most 2 different recipients",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("it does not say %q:\n%s", want, all)
		}
	}
	if len(x.Effect) != 1 || x.Effect[0].Target != "tool files: read_file" || len(x.Effect[0].Rules) != 4 {
		t.Errorf("effect: %+v", x.Effect)
	}
}

// Every kind of constraint has a sentence of its own.
func TestExplainSaysEveryConstraint(t *testing.T) {
	seen := map[string]string{}
	for _, v := range constraintVectors() {
		for i := range v.all {
			s := demand(&v.all[i])
			if s == "nothing" || seen[s] != "" && seen[s] != v.name {
				t.Errorf("%s: %q, as %s", v.name, s, seen[s])
			}
			seen[s] = v.name
		}
	}
	for _, c := range []Constraint{{CEL: ptr("this > 1")}, {Schema: ptr("{}")}, {Each: &Arg{}}, {Object: Args{"/a": {}}}} {
		if demand(&c) == "nothing" {
			t.Errorf("%+v has no sentence", c)
		}
	}
}

// TestLint reads as the specification of what deserves a second look.
func TestLint(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Link)
		more *Link
		want string
	}{
		{"nothing", func(*Link) {}, nil, ""},
		{"open arguments", rule(Rule{Any: true}), nil, "any"},
		{"an argument without constraint", rule(arg("/a")), nil, "unconstrained"},
		{"a prefix of a path", rule(arg("/a", Constraint{Prefix: ptr("/srv")})), nil, "prefix-path"},
		{"an expression that is open", rule(arg("/a", Constraint{Regex: ptr("DE.*")})), nil, "open-regex"},
		{"a pattern that passes everything", rule(arg("/a", Constraint{Glob: ptr("**")})), nil, "open-glob"},
		{"every path", rule(arg("/a", Constraint{SubPath: ptr("/")})), nil, "root-path"},
		{"nothing passes", rule(arg("/a", Constraint{OneOf: []Scalar{}})), nil, "empty-set"},
		{"a budget without bound", func(l *Link) { l.Budgets.Calls = Limit(1 << 40) }, nil, "wide-budget"},
		{"a bearer", func(l *Link) { l.Holder = &Holder{Bearer: true} }, nil, "bearer"},
		{"it has ended", func(l *Link) { l.Issued, l.NotBefore, l.Expires = 1, 1, 2 }, nil, "expired"},
		{"a link that changes nothing", func(*Link) {}, &Link{}, "changes-nothing"},
		{"a link that leaves nothing", func(*Link) {}, &Link{Grants: Grants{}}, "leaves-nothing leaves-nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(arg("/path", Constraint{SubPath: ptr("/srv")}))
			tt.edit(&l)
			c := w.mint(l)
			if tt.more != nil {
				c = w.attenuate(c, *tt.more, w.agent)
			}
			var codes []string
			for _, f := range Lint(c, testStart.Add(time.Minute)) {
				codes = append(codes, f.Code)
			}
			if got := strings.Join(codes, " "); got != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}
