package approval

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilox/vault"
)

// A state says where a question stands at one moment. The zero state is unknown
// and denies.
type state uint8

const (
	unknown state = iota
	open          // not every group has said yes
	allowed       // every group has said yes, and nobody no
	denied        // somebody said no
	expired       // too late, whatever was answered
	spent         // the approval was used
)

func (s state) String() string {
	return [...]string{"unknown", "open", "allowed", "denied", "expired", "spent"}[s]
}

// The groups that exist without configuration; every approver answers for them
// unless the operator defines them.
const (
	groupDefault = "default"
	groupFlow    = "flow"
	groupPolicy  = "policy"
)

// An authority says who may answer, now. It is immutable.
type authority struct {
	keys   map[string]Approver
	order  []string // ids, sorted
	groups map[string][]string
}

// members returns who may answer q for group: the group's members without the
// requester itself, by id or by any key of its chain.
func (au *authority) members(q *Question, group string) []string {
	ids, configured := au.groups[group]
	if !configured {
		switch group {
		case groupDefault, groupFlow, groupPolicy:
			ids = au.order
		}
	}
	var out []string
	for _, id := range ids {
		ap, ok := au.keys[id]
		if !ok || id == q.Agent || slices.Contains(q.Holders, Thumbprint(ap.Public)) {
			continue
		}
		out = append(out, id)
	}
	return out
}

// may reports whether id may answer q at all.
func (au *authority) may(q *Question, id string) bool {
	for _, g := range q.Groups {
		if slices.Contains(au.members(q, g), id) {
			return true
		}
	}
	return false
}

// askable reports whether every group of q has somebody who could say yes.
func (au *authority) askable(q *Question) bool {
	for _, g := range q.Groups {
		if len(au.members(q, g)) == 0 {
			return false
		}
	}
	return len(q.Groups) > 0
}

// An entry is one question and its answers.
type entry struct {
	q       *Question
	signed  []byte
	binding vault.Digest
	shown   bool
	denied  bool // final: a denial outlives the approver's removal
	spent   bool
	yes     []vote // at most one per approver
	no      []byte // the answer that denied
}

// A vote is a yes with the bytes it was given in.
type vote struct {
	*answer
	raw []byte
}

// counts reports whether v is a yes, now, by someone in members. The signature is
// checked each time: an approver whose key was replaced no longer counts.
func (e *entry) counts(au *authority, v vote, members []string, now time.Time) bool {
	return slices.Contains(members, v.Approver) &&
		v.Question == e.q.ID &&
		Effect(v.decision.Effect) == Allow &&
		now.Before(v.validUntil()) &&
		v.signedBy(au.keys[v.Approver].Public, e.signed)
}

// state is the one place that says yes.
func (e *entry) state(au *authority, now time.Time) (state, vault.Approval) {
	switch {
	case e.spent:
		return spent, vault.Approval{}
	case !now.Before(e.q.Expires()):
		return expired, vault.Approval{}
	case e.denied:
		return denied, vault.Approval{}
	case !e.shown || len(e.q.Groups) == 0:
		return open, vault.Approval{}
	}
	a := vault.Approval{ID: e.q.ID, Expires: e.q.Expires()}
	var who []string
	for _, g := range e.q.Groups {
		members := au.members(e.q, g)
		i := slices.IndexFunc(e.yes, func(v vote) bool { return e.counts(au, v, members, now) })
		if i < 0 {
			return open, vault.Approval{}
		}
		v := e.yes[i]
		if until := v.validUntil(); until.Before(a.Expires) {
			a.Expires = until
		}
		who = append(who, describe(au.keys[v.Approver]))
	}
	slices.Sort(who)
	for i, w := range slices.Compact(who) {
		if i > 0 {
			a.Approver += ", "
		}
		a.Approver += w
	}
	return allowed, a
}

// describe names an approver, and says if its key had no passphrase.
func describe(ap Approver) string {
	if ap.Unprotected {
		return ap.ID + " (unprotected key)"
	}
	return ap.ID
}

// Limits of the machine.
type limits struct {
	open     int // open questions in all
	perAgent int // and of one agent
	bytes    int // of all signed questions held
}

// retention is how long an expired or spent question is remembered, so that who
// waits for it hears why it ended. A minute is twice the default wait.
const retention = time.Minute

// A machine holds the questions and changes their state. It has no clock, does no
// I/O and is not safe for concurrent use: [Desk] drives it.
type machine struct {
	limits limits
	byID   map[string]*entry
	byKey  map[vault.Digest]*entry // by binding: open, allowed, and denied ones
	bytes  int
}

func newMachine(l limits) *machine {
	return &machine{limits: l, byID: make(map[string]*entry), byKey: make(map[vault.Digest]*entry)}
}

var (
	errBusy = errors.New("too many open questions")

	// ErrUnknown means that there is no such question, or that it was never shown.
	ErrUnknown = errors.New("no such question")
	// ErrClosed means that the question is no longer open to this answer.
	ErrClosed = errors.New("the question is closed")
	// ErrNotApprover means that this approver may not answer this question.
	ErrNotApprover = errors.New("not an approver of this question")
	// ErrInvalid means that the answer is malformed or was not signed by the
	// approver for exactly this question.
	ErrInvalid = errors.New("invalid answer")
)

// find returns the entry that already asks what binding says: one that is open or
// allowed, or that was denied and has not expired, as asking again must not wear
// people down.
func (m *machine) find(now time.Time, binding vault.Digest) *entry {
	e := m.byKey[binding]
	if e == nil || e.spent || !now.Before(e.q.Expires()) {
		return nil
	}
	return e
}

// add takes in a new question.
func (m *machine) add(au *authority, now time.Time, e *entry) error {
	total, own := 0, 0
	for _, o := range m.byID {
		switch st, _ := o.state(au, now); st {
		case open, allowed:
			total++
			if o.q.Agent == e.q.Agent {
				own++
			}
		case unknown, denied, expired, spent:
		}
	}
	if total >= m.limits.open || own >= m.limits.perAgent || m.bytes+len(e.signed) > m.limits.bytes {
		return errBusy
	}
	if m.byID[e.q.ID] != nil {
		return fmt.Errorf("approval id %s is taken", e.q.ID)
	}
	m.byID[e.q.ID] = e
	m.byKey[e.binding] = e
	m.bytes += len(e.signed)
	return nil
}

// check says whether a may be accepted now. It changes nothing.
func (m *machine) check(au *authority, now time.Time, a *answer) (*entry, error) {
	e := m.byID[a.Question]
	if e == nil || !e.shown {
		return nil, ErrUnknown
	}
	switch st, _ := e.state(au, now); st {
	case denied:
		return nil, fmt.Errorf("%w: somebody has denied it", ErrClosed)
	case expired:
		return nil, fmt.Errorf("%w: it has expired", ErrClosed)
	case spent:
		return nil, fmt.Errorf("%w: the approval was used", ErrClosed)
	case unknown:
		return nil, ErrUnknown
	case open, allowed:
	}
	if !au.may(e.q, a.Approver) {
		return nil, ErrNotApprover
	}
	if !a.signedBy(au.keys[a.Approver].Public, e.signed) {
		return nil, fmt.Errorf("%w: the signature is not %s's for this question", ErrInvalid, a.Approver)
	}
	if until := a.validUntil(); !now.Before(until) || until.After(e.q.Expires()) {
		return nil, fmt.Errorf("%w: it must end after now and no later than its question", ErrInvalid)
	}
	if Effect(a.decision.Effect) == Allow {
		for _, v := range e.yes {
			if v.Approver == a.Approver && e.counts(au, v, []string{a.Approver}, now) {
				return nil, fmt.Errorf("%w: %s has allowed it before", ErrClosed, a.Approver)
			}
		}
	}
	return e, nil
}

// accept takes in an answer that [machine.check] lets through.
func (m *machine) accept(au *authority, now time.Time, a *answer, raw []byte) (*entry, error) {
	e, err := m.check(au, now, a)
	if err != nil {
		return nil, err
	}
	switch Effect(a.decision.Effect) {
	case Allow:
		// An earlier yes that no longer counts makes room.
		e.yes = slices.DeleteFunc(e.yes, func(v vote) bool { return v.Approver == a.Approver })
		e.yes = append(e.yes, vote{a, raw})
	case Deny:
		e.denied, e.yes, e.no = true, nil, raw
	default:
		return nil, ErrInvalid
	}
	return e, nil
}

// spend burns the approval: the same question can be asked anew and needs a new
// answer.
func (m *machine) spend(id string) {
	e := m.byID[id]
	if e == nil {
		return
	}
	e.spent = true
	if m.byKey[e.binding] == e {
		delete(m.byKey, e.binding)
	}
}

// sweep forgets what is over and returns the ids of what it forgot or what has
// just expired, so that who waits can look again.
func (m *machine) sweep(now time.Time) (over []string) {
	for id, e := range m.byID {
		if now.Before(e.q.Expires()) {
			continue
		}
		over = append(over, id)
		if m.byKey[e.binding] == e {
			delete(m.byKey, e.binding)
		}
		if !now.Before(e.q.Expires().Add(retention)) {
			delete(m.byID, id)
			m.bytes -= len(e.signed)
		}
	}
	return over
}

// An Approver is a person who may answer, known by a key.
type Approver struct {
	ID          string            // such as key:lead; groups name it
	Public      ed25519.PublicKey //
	Unprotected bool              // its key has no passphrase; every event says so
}
