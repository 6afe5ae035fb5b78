package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/policy"
	"github.com/pilox/vault/internal/taskfile"
	"github.com/pilox/vault/internal/tool"
)

// A Learner reads recorded runs and proposes a task file for them. It decides about
// no call: what it proposes is a text.
type Learner struct {
	names map[vault.ServerID]string
	holds map[string]vault.Readers
	sound map[string]bool // servers whose results nobody outside the organisation wrote
	runs  map[string]*learnedRun
	order []*learnedRun
	calls []taskfile.Seen
	who   []string // caller of each call
	bytes int
}

// A learnedRun is what the opening of a task says, and how long it lasted.
type learnedRun struct {
	id                 vault.TaskID
	principal, purpose string
	inputs             bool
	opened, last       time.Time
	root               learnedLink
}

// A learnedLink is what is read of the root link as it was recorded.
type learnedLink struct {
	MayRead    []string                `json:"may_read"`
	MaySendTo  []string                `json:"may_send_to"`
	Caveats    []string                `json:"caveats"`
	SignAt     string                  `json:"sign_at"`
	ThirdParty []capability.ThirdParty `json:"third_party"`
}

// NewLearner returns a Learner that knows the registered servers.
func NewLearner(servers []admin.Server) (*Learner, error) {
	l := &Learner{names: map[vault.ServerID]string{}, holds: map[string]vault.Readers{}, sound: map[string]bool{}, runs: map[string]*learnedRun{}}
	for _, s := range servers {
		var id vault.Digest
		if err := id.UnmarshalText([]byte(s.ID)); err != nil {
			return nil, fmt.Errorf("server %s: %w", s.Name, err)
		}
		h, err := tool.ParseHolds(s.Holds)
		if err != nil {
			return nil, fmt.Errorf("server %s: %w", s.Name, err)
		}
		integrity, err := vault.ParseIntegrity(s.Integrity)
		if err != nil {
			return nil, fmt.Errorf("server %s: %w", s.Name, err)
		}
		l.names[vault.ServerID(id)], l.holds[s.Name], l.sound[s.Name] = s.Name, h.Readers(), integrity >= vault.FromOrganisation
	}
	return l, nil
}

// Add reads one event with its fields disclosed, oldest first of its run.
func (l *Learner) Add(raw json.RawMessage) error {
	var e replayed
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	if e.Leaf.Class == vault.ClassTask && e.Leaf.Phase == vault.PhaseOpened {
		return l.open(&e)
	}
	r := l.runs[e.Leaf.Run]
	if r == nil {
		return nil // the daemon's own
	}
	if e.Leaf.Class != vault.ClassCall {
		return nil // not the agent's doing: a task that is closed a day later did not take a day
	}
	r.last = e.Leaf.Time
	if e.Leaf.Phase != vault.PhaseIntent && e.Leaf.Phase != vault.PhaseRefused {
		return nil
	}
	s, err := l.seen(&e)
	if err != nil {
		return fmt.Errorf("event %d: %w", e.Leaf.Index, err)
	}
	if l.bytes += len(s.Args.String()); len(l.calls) == taskfile.MaxSeen || l.bytes > taskfile.MaxSeenBytes {
		return fmt.Errorf("more than %d calls or %d bytes of arguments: name fewer runs", taskfile.MaxSeen, taskfile.MaxSeenBytes)
	}
	l.calls, l.who = append(l.calls, s), append(l.who, e.Leaf.Run+" "+e.Fields["caller"])
	return nil
}

func (l *Learner) open(e *replayed) error {
	r := &learnedRun{id: vault.TaskID(e.Leaf.Run), opened: e.Leaf.Time, last: e.Leaf.Time}
	r.principal, r.purpose, r.inputs = e.Fields["principal"], e.Fields["purpose"], e.Fields["inputs"] != ""
	var view struct {
		Links []learnedLink `json:"links"`
	}
	if err := json.Unmarshal([]byte(e.Fields["capability"]), &view); err != nil || len(view.Links) == 0 {
		return fmt.Errorf("run %s: what its capability said is not on record any more, nor whose it was: nothing can be learned from it", r.id)
	}
	r.root = view.Links[0]
	l.runs[e.Leaf.Run] = r
	l.order = append(l.order, r)
	return nil
}

// seen makes a recorded call of an intent or a refusal.
func (l *Learner) seen(e *replayed) (taskfile.Seen, error) {
	leaf := &e.Leaf
	s := taskfile.Seen{Event: leaf.Index, Run: vault.TaskID(leaf.Run), Kind: leaf.Kind, Name: leaf.Tool, Grade: leaf.Grade, Debits: leaf.Debits}
	if t := e.Fields["target"]; t != "" {
		s.Name = t
	}
	if leaf.Kind != vault.KindEgress {
		s.Server = l.names[leaf.Server]
	}
	if leaf.Phase == vault.PhaseRefused {
		s.Refused = leaf.Reason
	}
	switch args, there := e.Fields["args"]; {
	case !there:
		s.Missing = "they were not recorded"
	case args == "":
		args = "{}"
		fallthrough
	default:
		var err error
		if s.Args, err = vault.ParseArgs([]byte(args)); err != nil {
			s.Missing = strings.Trim(args, "()") // erased, or not kept
			if !strings.HasPrefix(args, "(") {
				s.Missing = "they are no JSON object"
			}
		}
	}
	var note []struct {
		Code vault.Code `json:"code"`
		Path string     `json:"path"`
	}
	if text := e.Fields["note"]; text != "" && !strings.HasPrefix(text, "(") {
		if err := json.Unmarshal([]byte(text), &note); err != nil {
			return s, fmt.Errorf("note: %w", err)
		}
	}
	for i, n := range note {
		s.Flow = s.Flow || strings.HasPrefix(string(n.Code), "flow.")
		if i == 0 && n.Code == s.Refused {
			s.Where = n.Path
		}
	}
	f := &vault.Facts{Call: new(vault.Call), Grant: new(vault.Grant), Tool: new(vault.Tool)}
	if err := vault.ParseContext([]byte(e.Fields["context"]), f); err != nil {
		return s, nil //nolint:nilerr // not on record, or erased: the call is not Known
	}
	s.Known, s.Tainted = true, f.Scope.Integrity < vault.FromOrganisation
	s.Ask, s.Roles = f.Grant.Ask, f.Tool.Roles
	if s.Tainted {
		for _, source := range f.Scope.Sources {
			if !l.sound[source.Server] {
				s.Sources = append(s.Sources, source.String())
			}
		}
	}
	for _, o := range f.Origins {
		if !o.Trusted {
			s.Untrusted = append(s.Untrusted, o.Path)
		}
	}
	return s, nil
}

// settle fills in what the records of other calls say: a scope never gets better, so
// that an agent which had read nothing untrusted at one call had not at an earlier
// one. One that had, before both, is left as it is: its scope must have begun anew.
func (l *Learner) settle() {
	first := map[string]int{} // call after untrusted data was read
	for i := range l.calls {
		if _, ok := first[l.who[i]]; !ok && l.calls[i].Tainted {
			first[l.who[i]] = i
		}
	}
	clean := map[string]bool{}
	for i := len(l.calls) - 1; i >= 0; i-- {
		s := &l.calls[i]
		switch {
		case s.Known && !s.Tainted:
			clean[l.who[i]] = true
		case !s.Known && clean[l.who[i]] && !s.Flow:
			at, tainted := first[l.who[i]]
			s.Known = !tainted || i < at
		}
	}
}

// LearnRequest says what to propose.
type LearnRequest struct {
	Name             string // of the task file to change; "" proposes a new one
	File, Inputs     []byte // of that task file
	List, Headroom   int    // see [taskfile.LearnOptions]
	Denied           bool
	NewName, OldName string // in the diff
}

// A LearnResult is a proposal and how it differs from what it changes.
type LearnResult struct {
	Runs []vault.TaskID `json:"runs"`
	Diff string         `json:"diff"` // unified; empty if nothing would change
	File string         `json:"file"` // the proposed task file
	*taskfile.Proposal
}

// Propose makes a task file of what was added. The levels are those of the
// configuration.
func (l *Learner) Propose(conf Autonomy, r LearnRequest) (*LearnResult, error) {
	o := taskfile.LearnOptions{
		List: r.List, Headroom: r.Headroom, Denied: r.Denied,
		Engines: &capability.Engines{Caveat: policy.CompileCaveat, Value: policy.CompileValue, Schema: tool.CompileValue},
	}
	if r.Name != "" {
		base, err := taskfile.Parse(r.File, func(string) ([]byte, error) { return r.Inputs, nil })
		if err != nil {
			return nil, err
		}
		levels, err := conf.levels()
		if err != nil {
			return nil, err
		}
		if o.Base, err = base.Under(levels); err != nil {
			return nil, err
		}
		o.Text = r.File
	}
	lesson, err := l.lesson()
	if err != nil {
		return nil, err
	}
	if o.Base != nil && o.Base.Principal != lesson.Principal {
		lesson.Notes = append(lesson.Notes, "the runs were for "+lesson.Principal+", and the task file is for "+o.Base.Principal)
	}
	p, err := taskfile.Learn(lesson, o)
	if err != nil {
		return nil, err
	}
	out := &LearnResult{Proposal: p, File: string(p.Text), Diff: string(diff.Diff(r.OldName, o.Text, r.NewName, p.Text))}
	for _, run := range l.order {
		out.Runs = append(out.Runs, run.id)
	}
	return out, nil
}

// lesson sums the runs up. Where they differ, the proposal says what is common to all
// of them, and the notes say what is not.
func (l *Learner) lesson() (taskfile.Lesson, error) {
	if len(l.order) == 0 {
		return taskfile.Lesson{}, errNoRun
	}
	l.settle()
	first := l.order[0]
	out := taskfile.Lesson{
		Purpose: first.purpose, Principal: first.principal, Calls: l.calls,
		MaySendTo: first.root.MaySendTo, Caveats: first.root.Caveats, SignAt: first.root.SignAt,
	}
	may := first.root.MayRead
	for _, r := range l.order {
		if r.principal != first.principal {
			return out, fmt.Errorf("run %s was for %s and run %s for %s: learn from runs of one principal", first.id, first.principal, r.id, r.principal)
		}
		out.Life, out.Inputs = max(out.Life, r.last.Sub(r.opened)), out.Inputs || r.inputs
		may, out.MaySendTo = common(may, r.root.MayRead), common(out.MaySendTo, r.root.MaySendTo)
		for _, p := range r.root.ThirdParty {
			if !slices.Contains(out.Ask, p.Group) {
				out.Ask = append(out.Ask, p.Group)
			}
		}
		shared := common(out.Caveats, r.root.Caveats)
		if r.root.SignAt != first.root.SignAt {
			out.SignAt = ""
		}
		if len(shared) != len(r.root.Caveats) || len(shared) != len(out.Caveats) || r.root.SignAt != first.root.SignAt {
			out.Notes = append(out.Notes, "run "+string(r.id)+" had caveats or a sign_at that the others had not: they are not proposed")
		}
		out.Caveats = shared
		if r.purpose != first.purpose {
			out.Notes = append(out.Notes, "run "+string(r.id)+" had another purpose, which is not proposed")
		}
	}
	slices.Sort(out.Ask)
	var held []string
	for _, s := range l.calls {
		if s.Refused == "" {
			held = append(held, l.holds[s.Server].Names()...)
		}
	}
	slices.Sort(held)
	out.MayRead = common(slices.Compact(held), may)
	return out, nil
}

// common returns what is in both, in the order of a.
func common(a, b []string) (out []string) {
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

var errNoRun = &admin.Error{Code: "not_found", Message: "no such run is on record", Hint: "pvault cap ls lists the tasks; the id of a task is that of its run"}
