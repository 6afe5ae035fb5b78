package taskfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// Bounds on what is learned from: far above one task, and little enough to hold in
// memory.
const (
	MaxSeen      = 100_000  // calls
	MaxSeenBytes = 64 << 20 // of their arguments
)

// flowGroup is the approval group that asks where data came from.
const flowGroup = "flow"

// A Seen is one call on record.
type Seen struct {
	Event   uint64
	Run     vault.TaskID
	Kind    vault.Kind
	Server  string     // registered name; "" if no such server is registered any more
	Name    string     // of the tool or prompt, URI, method, or host with egress
	Args    vault.Args // zero if they are not on record
	Missing string     // why they are not

	Refused vault.Code // why it did not run; "" if it ran
	Where   string     // what the refusal points to

	Ask     []string // approval groups that the capability had it ask
	Flow    bool     // it was asked where its data came from
	Grade   vault.Grade
	Roles   map[string]vault.Role
	Debits  []vault.Debit
	Known   bool     // the record says what the agent had read by then
	Tainted bool     // untrusted data was among it
	Sources []string // where that came from
	// Untrusted are the pointers of arguments that decide something and whose values
	// came from untrusted data, or from nowhere known.
	Untrusted []string
}

// suspect reports whether a rule that is made of the call has to go on asking: a
// value in a task file counts as the operator's choice, and this one may be an
// attacker's.
func (s *Seen) suspect() bool { return !s.Known || s.Flow || len(s.Untrusted) > 0 }

// A Lesson is what runs say of a task. What several runs do not agree on is left out
// of it by whoever makes it.
type Lesson struct {
	Purpose, Principal string
	Inputs             bool          // there were some
	Life               time.Duration // of the longest run, from its opening to its last event
	Calls              []Seen
	MayRead, MaySendTo []string
	Caveats, Ask       []string
	SignAt             string
	Notes              []string // what else a reviewer has to know of the runs
}

// LearnOptions say how to propose.
type LearnOptions struct {
	// Base is the task file to propose changes to, with its level expanded, and Text
	// are its bytes; nil proposes a new one.
	Base *File
	Text []byte
	// List is how many different values of an argument are written out; more become
	// a pattern, and with zero no text is written out.
	List int
	// Headroom is added to what was used of budgets, life and lengths, in percent.
	Headroom int
	// Denied also grants what was refused.
	Denied  bool
	Engines *capability.Engines // what evaluates schemas and expressions
}

// A Proposal is a task file that was made from calls, and what a reviewer has to know.
type Proposal struct {
	Text    []byte        `json:"-"`
	Targets []Learned     `json:"targets"`            // granted, in the order of the file
	Refused []Refusal     `json:"refused,omitempty"`  // calls that did not run
	LeftOut []LeftOut     `json:"left_out,omitempty"` // calls that nothing was learned from
	Wider   []string      `json:"wider,omitempty"`    // where it grants more than the task file it changes
	Notes   []string      `json:"notes,omitempty"`
	Used    Used          `json:"used"`
	Room    int           `json:"headroom_percent"`
	Life    time.Duration `json:"-"`
	Calls   int64         `json:"calls"`
}

// Used is the most that one run used.
type Used struct {
	Calls int64  `json:"calls"`
	Bytes int64  `json:"bytes_out"`
	Life  string `json:"life"`
}

// A Learned is a target of a proposal.
type Learned struct {
	Target    string   `json:"target"` // SERVER.NAME, or a host
	Kind      string   `json:"kind"`
	Calls     int      `json:"calls"`
	Denied    int      `json:"denied,omitempty"`    // of them refused
	Untrusted int      `json:"untrusted,omitempty"` // of them made after untrusted data was read
	Unknown   int      `json:"unknown,omitempty"`   // of them made after nobody knows what
	Asks      []string `json:"asks,omitempty"`
	Notes     []string `json:"notes,omitempty"` // the comments at the rule
}

// A Refusal is a number of calls that were refused for one reason.
type Refusal struct {
	Target   string     `json:"target"`
	Reason   vault.Code `json:"reason"`
	Where    string     `json:"where,omitempty"`
	Events   []uint64   `json:"events"` // at most [maxEvents]
	Calls    int        `json:"calls"`
	Included bool       `json:"included"`
}

// A LeftOut is a number of calls that nothing was learned from.
type LeftOut struct {
	Target string   `json:"target"`
	Why    string   `json:"why"`
	Events []uint64 `json:"events"` // at most [maxEvents]
	Calls  int      `json:"calls"`
}

// maxEvents bounds the events that are named one by one.
const maxEvents = 8

// A learner makes one proposal.
type learner struct {
	Lesson
	LearnOptions
	out    Proposal
	groups map[lessonKey][]*Seen
	notes  map[lessonKey][]string
	rules  map[lessonKey]capability.Rule
	hosts  map[string]Egress
	found  map[string]int // index of a refusal or of what is left out, by what makes it one
}

type lessonKey struct {
	kind         vault.Kind
	server, name string
}

func (k lessonKey) String() string {
	if k.server == "" {
		return k.name
	}
	return k.server + "." + k.name
}

// sectionOf names the section of a task file that grants a kind.
var sectionOf = map[vault.Kind]string{
	vault.KindTool: "tools", vault.KindResource: "resources", vault.KindPrompt: "prompts",
	vault.KindServerRequest: "server_requests", vault.KindEgress: "egress",
}

// Learn proposes the least task file that lets the calls of a lesson through. It
// grants no target that was not called, and nothing to a call that was refused
// unless it is told to. The proposal is a text for a person to review: it has been
// parsed, and every call it was made from has been held against it.
func Learn(l Lesson, o LearnOptions) (*Proposal, error) {
	size := 0
	for i := range l.Calls {
		size += len(l.Calls[i].Args.String())
	}
	switch {
	case len(l.Calls) == 0:
		return nil, errors.New("no call is on record: there is nothing to learn from")
	case len(l.Calls) > MaxSeen || size > MaxSeenBytes:
		return nil, fmt.Errorf("%d calls with %d bytes of arguments: at most %d and %d; name fewer runs", len(l.Calls), size, MaxSeen, MaxSeenBytes)
	case o.List < 0 || o.List > maxList || o.Headroom < 0 || o.Headroom > 1000:
		return nil, fmt.Errorf("want 0 to %d listed values and 0 to 1000 percent of headroom", maxList)
	}
	g := &learner{
		Lesson: l, LearnOptions: o,
		groups: map[lessonKey][]*Seen{}, notes: map[lessonKey][]string{}, rules: map[lessonKey]capability.Rule{}, hosts: map[string]Egress{}, found: map[string]int{},
	}
	g.out.Room, g.out.Notes = o.Headroom, l.Notes
	g.sort()
	for _, k := range slices.SortedFunc(maps.Keys(g.groups), byTarget) {
		g.learn(k)
	}
	if g.Denied {
		granted := map[string]bool{}
		for _, t := range g.out.Targets {
			granted[t.Target] = t.Denied > 0
		}
		for i := range g.out.Refused {
			g.out.Refused[i].Included = granted[g.out.Refused[i].Target]
		}
	}
	text, err := g.compose()
	if err != nil {
		return nil, err
	}
	g.out.Text = text
	return &g.out, g.check()
}

func byTarget(a, b lessonKey) int {
	if n := slices.Index(fileKeys, sectionOf[a.kind]) - slices.Index(fileKeys, sectionOf[b.kind]); n != 0 {
		return n
	}
	return strings.Compare(a.String(), b.String())
}

// room adds the headroom.
func (g *learner) room(n int64) int64 { return n + (n*int64(g.Headroom)+99)/100 }

// sort puts every call where it belongs: learned from by target, refused, left out.
func (g *learner) sort() {
	for i := range g.Lesson.Calls {
		s := &g.Lesson.Calls[i]
		k := lessonKey{s.Kind, s.Server, s.Name}
		if s.Refused != "" {
			g.refused(k, s)
			if !g.Denied {
				continue
			}
		}
		why := ""
		switch _, known := sectionOf[s.Kind]; {
		case !known:
			why = "a task file does not grant this kind of call"
		case s.Kind != vault.KindEgress && s.Server == "":
			why = "its server is not registered any more"
		case looksSecret(s.Name):
			why = "its name looks like a secret"
		case s.Args.IsZero():
			why = "its arguments are not on record: " + s.Missing
		case s.Args.Root().Kind() != vault.Object:
			why = "its arguments are no object"
		case s.Kind == vault.KindEgress && s.Refused != "" && s.suspect():
			why = "untrusted data may have chosen it, and an egress rule cannot ask: add it by hand if it is meant"
		default:
			if err := checkTarget(s.Kind, s.Server, s.Name); err != nil {
				why = "a task file cannot name it: " + err.Error()
			}
		}
		if why != "" {
			g.leaveOut(k, why, s)
			continue
		}
		g.groups[k] = append(g.groups[k], s)
	}
}

// checkTarget reports whether a task file can name a target.
func checkTarget(kind vault.Kind, server, name string) error {
	if kind == vault.KindEgress {
		_, _, err := vault.ParseHost(name)
		return err
	}
	var w writer
	w.WriteString("{")
	w.text(server + "." + name)
	w.WriteString(": {args: {}}}")
	d := &decoder{}
	n, err := d.parse([]byte(w.String()))
	if err != nil {
		return err
	}
	rules := d.rules(n, sectionOf[kind], nameCheck[sectionOf[kind]])
	if len(d.problems) > 0 {
		return errors.New(d.problems[0].Problem)
	}
	if len(rules) != 1 || rules[0].Server != server || rules[0].Name != name {
		return fmt.Errorf("%q is another target", server+"."+name)
	}
	return nil
}

func (g *learner) refused(k lessonKey, s *Seen) {
	i := g.index(len(g.out.Refused), "refused", k.String(), string(s.Refused), s.Where)
	if i == len(g.out.Refused) {
		g.out.Refused = append(g.out.Refused, Refusal{Target: k.String(), Reason: s.Refused, Where: s.Where})
	}
	r := &g.out.Refused[i]
	r.Calls++
	r.Events = atMost(r.Events, s.Event)
}

func (g *learner) leaveOut(k lessonKey, why string, calls ...*Seen) {
	for _, s := range calls {
		i := g.index(len(g.out.LeftOut), "left out", k.String(), why)
		if i == len(g.out.LeftOut) {
			g.out.LeftOut = append(g.out.LeftOut, LeftOut{Target: k.String(), Why: why})
		}
		l := &g.out.LeftOut[i]
		l.Calls++
		l.Events = atMost(l.Events, s.Event)
	}
}

// index returns where something with a name was put before, or next.
func (g *learner) index(next int, name ...string) int {
	key := strings.Join(name, "\x00")
	if i, ok := g.found[key]; ok {
		return i
	}
	g.found[key] = next
	return next
}

func atMost(events []uint64, e uint64) []uint64 {
	if len(events) < maxEvents {
		events = append(events, e)
	}
	return events
}

// learn makes the rule of one target.
func (g *learner) learn(k lessonKey) {
	calls := g.groups[k]
	in := g.inference(calls)
	if k.kind == vault.KindEgress {
		e, ok := g.egress(k.name, calls)
		if !ok {
			g.drop(k, "a task file cannot express its requests")
			return
		}
		g.hosts[k.name] = e
		g.describe(k, nil)
		return
	}
	base, wild := g.baseRule(k)
	if g.summed(base) {
		// A sum needs its amount and its unit as they are.
		if calls = g.within(base, k, calls); len(calls) == 0 {
			return
		}
	}
	rule, wider, ok := g.rule(in, base, calls)
	if !ok || !passAll(rule.Args, g.Engines, calls) {
		g.drop(k, "a task file cannot express its arguments")
		return
	}
	rule.Ask = g.asks(base, wild, calls)
	g.rules[k] = rule
	if g.Base != nil && base == nil && wild == nil {
		wider = append(wider, "")
	}
	for _, w := range wider {
		if w = strings.TrimSpace(k.String() + " " + w); !slices.Contains(g.out.Wider, w) {
			g.out.Wider = append(g.out.Wider, w)
		}
		g.notes[k] = append(g.notes[k], "wider than the task file"+strings.TrimPrefix(w, k.String()))
	}
	if in.kept > 0 {
		g.notes[k] = append(g.notes[k], "a value that looks like a secret is not written here")
	}
	g.describe(k, &rule)
}

// summed reports whether a budget of the base adds up an argument of the rule.
func (g *learner) summed(base *Rule) bool {
	return base != nil && slices.ContainsFunc(g.Base.Budgets.Sums, func(s Sum) bool { return s.Server == base.Server && s.Tool == base.Name })
}

// within leaves out the calls of a target that its rule in the base does not let
// through, and returns the others.
func (g *learner) within(base *Rule, k lessonKey, calls []*Seen) []*Seen {
	var pass []*Seen
	test, err := base.Args.Compile(g.Engines)
	for _, s := range calls {
		ok := base.Any
		if !ok && err == nil {
			_, ok = test(s.Args)
		}
		if ok {
			pass = append(pass, s)
			continue
		}
		g.leaveOut(k, "a budget adds up its arguments, which have to stay as they are", s)
	}
	if g.groups[k] = pass; len(pass) == 0 {
		delete(g.groups, k)
	}
	return pass
}

func (g *learner) inference(calls []*Seen) *inference {
	in := &inference{list: g.List, room: g.room, engines: g.Engines, roles: map[string]vault.Role{}}
	for _, s := range calls {
		maps.Copy(in.roles, s.Roles)
	}
	return in
}

// drop leaves a whole target out.
func (g *learner) drop(k lessonKey, why string) {
	g.leaveOut(k, why, g.groups[k]...)
	delete(g.groups, k)
}

// baseRule returns what the task file that is changed says of a target, by its name
// or for all of its server.
func (g *learner) baseRule(k lessonKey) (exact, wild *Rule) {
	if g.Base == nil {
		return nil, nil
	}
	rules := map[vault.Kind][]Rule{
		vault.KindTool: g.Base.Tools, vault.KindResource: g.Base.Resources,
		vault.KindPrompt: g.Base.Prompts, vault.KindServerRequest: g.Base.ServerRequests,
	}[k.kind]
	for i := range rules {
		switch r := &rules[i]; {
		case r.Server == k.server && r.Name == k.name:
			exact = r
		case r.Server == k.server && r.Name == "*":
			wild = r
		}
	}
	return exact, wild
}

// asks returns the groups that every call of the target asks: those that it asked,
// those of the task file, and who watches the flow of data where a value may be an
// attacker's choice.
func (g *learner) asks(base, wild *Rule, calls []*Seen) []string {
	var out []string
	for _, r := range []*Rule{base, wild} {
		if r != nil {
			out = append(out, r.Ask...)
		}
	}
	for _, s := range calls {
		out = append(out, s.Ask...)
		if s.suspect() {
			out = append(out, flowGroup)
		}
	}
	all := g.Ask
	if g.Base != nil {
		all = g.Base.Ask
	}
	out = slices.DeleteFunc(out, func(s string) bool { return slices.Contains(all, s) })
	slices.Sort(out)
	return slices.Compact(out)
}

// passAll holds calls against named arguments.
func passAll(args capability.Args, e *capability.Engines, calls []*Seen) bool {
	test, err := args.Compile(e)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(calls, func(s *Seen) bool {
		_, ok := test(s.Args)
		return !ok
	})
}

// check parses the proposal as any other task file, holds every call that it was
// made from against it, and wants nothing in it that was not meant.
func (g *learner) check() error {
	f, err := Parse(g.out.Text, func(string) ([]byte, error) { return nil, nil })
	if err != nil {
		return fmt.Errorf("the proposal is no task file: %w", err)
	}
	granted := 0
	for kind, rules := range map[vault.Kind][]Rule{
		vault.KindTool: f.Tools, vault.KindResource: f.Resources, vault.KindPrompt: f.Prompts, vault.KindServerRequest: f.ServerRequests,
	} {
		for i := range rules {
			r := &rules[i]
			k := lessonKey{kind, r.Server, r.Name}
			meant, ok := g.rules[k]
			if !ok || r.Any || !slices.Equal(r.Ask, meant.Ask) || !passAll(r.Args, g.Engines, g.groups[k]) {
				return fmt.Errorf("the proposal does not say of %s what was meant", k)
			}
			granted++
		}
	}
	for i := range f.Egress {
		e := &f.Egress[i]
		calls := g.groups[lessonKey{vault.KindEgress, "", e.Host}]
		if len(calls) == 0 || !passAll(e.rule().Args, g.Engines, calls) {
			return fmt.Errorf("the proposal does not say of %s what was meant", e.Host)
		}
		granted++
	}
	if granted != len(g.groups) {
		return fmt.Errorf("the proposal grants %d targets, and %d were meant", granted, len(g.groups))
	}
	want := File{Purpose: g.Purpose, Principal: g.Principal, Caveats: g.Caveats, Ask: g.Ask, SignAt: g.SignAt, Labels: Labels{g.MayRead, g.MaySendTo}}
	if b := g.Base; b != nil {
		want = *b
	}
	if f.Life != g.out.Life || f.Budgets.Calls != g.out.Calls || f.Purpose != want.Purpose || f.Principal != want.Principal ||
		f.Autonomy != want.Autonomy || f.Inputs.Path != want.Inputs.Path || f.SignAt != want.SignAt || f.Delegate.Depth != want.Delegate.Depth ||
		!slices.Equal(f.Delegate.To, want.Delegate.To) || !slices.Equal(f.Caveats, want.Caveats) || !slices.Equal(f.Ask, want.Ask) ||
		!slices.Equal(f.Labels.MayRead, want.Labels.MayRead) || !slices.Equal(f.Labels.MaySendTo, want.Labels.MaySendTo) {
		return errors.New("the proposal says more than was meant")
	}
	return nil
}
