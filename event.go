package vault

import "time"

// A Phase says where in its life a call is. The zero Phase is invalid.
type Phase string

// The phases. A call is refused, or asked and then refused or intended; an
// intent is followed by released (first byte handed out) and exactly one of
// done, failed, cancelled, unknown. The last four close it.
const (
	PhaseRefused   Phase = "refused"
	PhaseAsked     Phase = "asked"
	PhaseIntent    Phase = "intent"
	PhaseReleased  Phase = "released"
	PhaseDone      Phase = "done"
	PhaseFailed    Phase = "failed"
	PhaseCancelled Phase = "cancelled"
	PhaseUnknown   Phase = "unknown"

	// For classes other than ClassCall.
	PhaseOpened Phase = "opened"
	PhaseClosed Phase = "closed"
	PhaseNoted  Phase = "noted"
)

// Closes reports whether p ends an intent.
func (p Phase) Closes() bool {
	return p == PhaseDone || p == PhaseFailed || p == PhaseCancelled || p == PhaseUnknown
}

// A Class is a sort of event. It fixes the set of sensitive fields.
type Class string

// The classes and what they record.
const (
	ClassCall       Class = "call"       // the life of one call
	ClassTask       Class = "task"       // a task instance opened or closed
	ClassApproval   Class = "approval"   // a person's answer
	ClassRevocation Class = "revocation" // a link, agent, task or everything
	ClassServer     Class = "server"     // registered, reviewed, quarantined, removed
	ClassDaemon     Class = "daemon"     // started, stopped, self-test, key announced
	ClassAccess     Class = "access"     // refused beside a call: before a task is known, summed; or by the rules at a hook point
	ClassErasure    Class = "erasure"    // a field, or the key of a run: opened when ordered, closed when done
	ClassRecovery   Class = "recovery"   // a ledger follows one that could not go on: opened is its first record
)

// A Field is a sensitive value of an event. The leaf holds a salted commitment
// to it; the value itself stands beside the leaf, encrypted, and can be erased.
// A nil Value commits to null.
type Field struct {
	Name  string
	Value []byte
}

// FieldsOf returns the names of the fields that every event of class c has, in
// order. An event that lacks one commits to null; a name not listed is refused.
func FieldsOf(c Class) []string { return classFields[c] }

var classFields = map[Class][]string{
	ClassCall:       {"args", "caller", "context", "note", "result", "target"},
	ClassTask:       {"agent", "by", "capability", "inputs", "principal", "purpose"},
	ClassApproval:   {"answer", "approver", "question"},
	ClassRevocation: {"by", "note", "what"},
	ClassServer:     {"definition", "note"},
	ClassDaemon:     {"note"},
	ClassAccess:     {"note"},
	ClassErasure:    {"basis", "by", "what"},
	ClassRecovery:   {"by", "predecessor", "signature", "why"},
}

// An Event is what a stage asks the ledger to record. The sequencer assigns
// index, time, run sequence and chain; they are not the producer's to say.
type Event struct {
	Run       TaskID // events of a task are its run; empty for the daemon's own
	Call      string
	Class     Class
	Phase     Phase
	Intent    uint64 // index of the intent that this event closes or releases; with HasIntent
	HasIntent bool
	Verdict   Verdict
	Reason    Code
	Policy    Digest // revision of the policy that decided; zero if none was wired
	Kind      Kind
	Target    Target
	Proof     ProofKind
	Grade     Grade
	AnyArgs   bool
	SameUID   bool
	Debits    []Debit
	Refund    bool // the debits of Intent that are not Kept are given back
	Fields    []Field
}

// A Receipt says where the ledger put an event.
type Receipt struct {
	Index uint64
	Leaf  Digest
	Time  time.Time
}
