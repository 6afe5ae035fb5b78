package ledger

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// Recovered is what a ledger held when it was opened: all that a daemon needs to
// go on where the last one stopped.
type Recovered struct {
	Head evidence.Head
	// Counters is what every counter of the open runs stands at: the debits of all
	// their events, less what was refunded. Burnt approvals are among them.
	Counters map[string]int64
	// Approvals are the ids of burnt approvals, of open runs.
	Approvals []string
	// Open are the intents without an outcome, by index. The caller closes each
	// with [OpenIntent.Unknown].
	Open []OpenIntent
	// Revocations are all there ever were, by index.
	Revocations []Revocation
	// Runs are the open ones, in order of name.
	Runs []vault.TaskID
}

// An OpenIntent is a call of which nobody knows how it ended.
type OpenIntent struct {
	Index  uint64
	Time   time.Time
	Run    vault.TaskID
	Call   string
	Kind   vault.Kind
	Target vault.Target // name empty if its key was erased
	Caller []byte       // field caller; nil if its key was erased
	leaf   evidence.Leaf
}

// Unknown returns the event that closes o as unknown. It keeps the debits.
func (o *OpenIntent) Unknown() *vault.Event {
	return &vault.Event{
		Run: o.Run, Call: o.Call, Class: vault.ClassCall, Phase: vault.PhaseUnknown,
		Intent: o.Index, HasIntent: true, Verdict: o.leaf.Verdict, Policy: o.leaf.Policy,
		Kind: o.Kind, Target: o.Target, Proof: o.leaf.Proof, Grade: o.leaf.Grade,
		AnyArgs: o.leaf.AnyArgs, SameUID: o.leaf.SameUID,
	}
}

// A Revocation is a recorded revocation with its fields.
type Revocation struct {
	Index  uint64
	Time   time.Time
	Run    vault.TaskID
	Fields map[string][]byte // what, by, note
}

// What returns what is revoked.
func (r *Revocation) What() string { return string(r.Fields[fieldWhat]) }

// recover reads and checks the whole ledger, holds it against the last signed
// checkpoint, and takes it over.
func (l *Ledger) recover(ctx context.Context) error {
	head, err := l.cfg.Store.Head(ctx)
	if err != nil {
		return err
	}
	last, err := l.lastCheckpoint(head)
	if err != nil {
		return err
	}
	// Again, because a leader that is still there may have gone on and signed.
	if head, err = l.cfg.Store.Head(ctx); err != nil {
		return err
	}
	re, err := l.read(ctx, head, last)
	if err != nil {
		return err
	}
	// Only now, so that a leader that is well is not stopped for a store that is
	// not, nor for as long as it takes to read. What it wrote meanwhile comes after.
	if head, err = l.cfg.Store.Seize(ctx, evidence.Head{
		Epoch: head.Epoch, Size: head.Size, Chain: l.seq.chain, Root: l.seq.tree.Root(), Frontier: l.seq.tree.Frontier(),
	}); err != nil {
		return err
	}
	if err := re.to(ctx, head); err != nil {
		return err
	}
	l.seq.ended = map[vault.TaskID]bool{} // the store knows those of before
	if l.recovered, err = re.result(ctx); err != nil {
		return err
	}
	l.seq.epoch = head.Epoch
	l.durable, l.recovered.Head = head, head
	return nil
}

// read reads and checks what is there, up to head, and holds it against the last
// signed checkpoint. What it read before an error stays.
func (l *Ledger) read(ctx context.Context, head evidence.Head, last evidence.Checkpoint) (*replay, error) {
	re := &replay{l: l, last: last, counters: map[string]*counter{}, touched: map[vault.TaskID]map[string]bool{}, open: map[uint64]*evidence.Leaf{}}
	if last.Size == 0 {
		re.lastRoot = l.seq.tree.Root()
	}
	if err := re.to(ctx, head); err != nil {
		return re, err
	}
	switch {
	case last.Size > head.Size:
		return re, fmt.Errorf("%w: it has %d leaves, a checkpoint of %d was signed; put the newer store back", ErrRollback, head.Size, last.Size)
	case re.lastRoot != last.Root:
		return re, fmt.Errorf("%w: its first %d leaves are others than were signed", ErrRollback, last.Size)
	}
	return re, nil
}

// to reads on to head.
func (r *replay) to(ctx context.Context, head evidence.Head) error {
	s := &r.l.seq
	for e, err := range r.l.cfg.Store.Entries(ctx, s.size, head.Size) {
		if err != nil {
			return err
		}
		if err := r.leaf(&e); err != nil {
			return fmt.Errorf("%w: leaf %d: %w", ErrCorrupt, e.Index, err)
		}
	}
	switch {
	case s.size != head.Size:
		return fmt.Errorf("%w: %d leaves, the head says %d", ErrCorrupt, s.size, head.Size)
	case head.Size > 0 && (s.chain != head.Chain || s.tree.Root() != head.Root):
		return fmt.Errorf("%w: the head is not that of the leaves", ErrCorrupt)
	}
	return nil
}

// A replay goes over the leaves from first to last.
type replay struct {
	l        *Ledger
	last     evidence.Checkpoint
	lastRoot vault.Digest // root at last.Size
	counters map[string]*counter
	touched  map[vault.TaskID]map[string]bool // counters by open run
	open     map[uint64]*evidence.Leaf
	revoked  []uint64
	at       time.Time // of the last leaf
}

// A counter with the run that moved it, so that those of closed runs can be
// forgotten: a ledger lives longer than its tasks.
type counter struct {
	sum    int64
	run    vault.TaskID
	shared bool // moved by several runs
}

func (r *replay) leaf(e *evidence.Entry) error {
	s := &r.l.seq
	leaf, err := evidence.ParseLeaf(e.Leaf)
	if err != nil {
		return err
	}
	known := s.runs[leaf.Run]
	if known == nil {
		known = new(run)
	}
	switch {
	case leaf.Log != r.l.cfg.Origin:
		return fmt.Errorf("of another ledger, %s", leaf.Log)
	case leaf.Index != s.size || e.Index != s.size:
		return fmt.Errorf("it stands where %d belongs", s.size)
	case evidence.HashLeaf(e.Leaf) != e.Hash:
		return errors.New("its hash is another one")
	case leaf.RunSeq != known.next || leaf.PrevRunLeaf != known.prev || s.ended[leaf.Run]:
		return errors.New("it does not follow the record before it in its run")
	case leaf.Run != e.Run || leaf.Class != e.Class || leaf.Time.UnixMicro() != e.Micro:
		return errors.New("its row says something else than its bytes")
	case evidence.Chain(s.chain, e.Hash) != e.Chain:
		return errors.New("the chain does not fit")
	}
	s.take(e, leaf)
	r.at = leaf.Time
	if s.size == r.last.Size {
		r.lastRoot = s.tree.Root()
	}
	r.account(leaf)
	return nil
}

// account follows debits, intents and revocations.
func (r *replay) account(leaf *evidence.Leaf) {
	r.debit(leaf.Run, leaf.Debits, 1)
	switch {
	case leaf.Phase == vault.PhaseIntent:
		r.open[leaf.Index] = leaf
	case leaf.Phase.Closes() && leaf.HasIntent:
		if intent := r.open[leaf.Intent]; intent != nil {
			if leaf.Refund {
				r.debit(intent.Run, slices.DeleteFunc(slices.Clone(intent.Debits), func(d vault.Debit) bool { return d.Kept }), -1)
			}
			delete(r.open, leaf.Intent)
		}
	case leaf.Class == vault.ClassRevocation:
		r.revoked = append(r.revoked, leaf.Index)
	case leaf.Class == vault.ClassTask && leaf.Phase == vault.PhaseClosed:
		for name := range r.touched[leaf.Run] {
			if !r.counters[name].shared {
				delete(r.counters, name)
			}
		}
		delete(r.touched, leaf.Run)
	}
}

func (r *replay) debit(run vault.TaskID, debits []vault.Debit, sign int64) {
	for _, d := range debits {
		c := r.counters[d.Counter]
		if c == nil {
			c = &counter{run: run}
			r.counters[d.Counter] = c
		}
		c.sum += sign * d.Amount
		c.shared = c.shared || c.run != run
		if r.touched[run] == nil {
			r.touched[run] = map[string]bool{}
		}
		r.touched[run][d.Counter] = true
	}
}

// approvalCounter is how the counter of a burnt approval begins.
const approvalCounter = "approval/"

func (r *replay) result(ctx context.Context) (*Recovered, error) {
	out := &Recovered{Counters: map[string]int64{}}
	for name, c := range r.counters {
		out.Counters[name] = c.sum
		if id, ok := strings.CutPrefix(name, approvalCounter); ok && c.sum > 0 {
			out.Approvals = append(out.Approvals, id)
		}
	}
	slices.Sort(out.Approvals)
	for run := range r.l.seq.runs {
		if run != "" {
			out.Runs = append(out.Runs, run)
		}
	}
	slices.Sort(out.Runs)
	for _, leaf := range r.open {
		o := OpenIntent{
			Index: leaf.Index, Time: leaf.Time, Run: leaf.Run, Call: leaf.Call, Kind: leaf.Kind,
			Target: vault.Target{Server: leaf.Server, Name: leaf.Tool}, leaf: *leaf,
		}
		fields, err := r.l.fields(ctx, leaf.Index)
		if err != nil && !errors.Is(err, ErrNoKey) {
			return nil, fmt.Errorf("read open intent %d: %w", leaf.Index, err)
		}
		for _, f := range fields {
			switch f.Name {
			case fieldCaller:
				o.Caller = f.Value
			case fieldTarget:
				o.Target.Name = string(f.Value)
			}
		}
		out.Open = append(out.Open, o)
	}
	slices.SortFunc(out.Open, func(a, b OpenIntent) int { return int(int64(a.Index) - int64(b.Index)) })
	for _, idx := range r.revoked {
		rev, err := r.revocation(ctx, idx)
		if err != nil {
			// A revocation that cannot be read cannot be obeyed.
			return nil, fmt.Errorf("read revocation %d: %w", idx, err)
		}
		out.Revocations = append(out.Revocations, rev)
	}
	return out, nil
}

func (r *replay) revocation(ctx context.Context, idx uint64) (Revocation, error) {
	rev := Revocation{Index: idx, Fields: map[string][]byte{}}
	for e, err := range r.l.cfg.Store.Entries(ctx, idx, idx+1) {
		if err != nil {
			return Revocation{}, err
		}
		rev.Time, rev.Run = time.UnixMicro(e.Micro).UTC(), e.Run
	}
	fields, err := r.l.fields(ctx, idx)
	if err != nil {
		return Revocation{}, err
	}
	for _, f := range fields {
		rev.Fields[f.Name] = f.Value
	}
	if len(rev.Fields[fieldWhat]) == 0 {
		return Revocation{}, errors.New("it does not say what it revokes")
	}
	return rev, nil
}

// fields opens the sensitive fields of one record, by name. The error is
// [ErrNoKey] if their key was erased.
func (l *Ledger) fields(ctx context.Context, idx uint64) ([]evidence.Opened, error) {
	sealed, err := l.cfg.Store.Sealed(ctx, idx)
	if err != nil {
		return nil, err
	}
	var opened []evidence.Opened
	ciphers := map[string]cipher.AEAD{}
	for i := range sealed {
		s := &sealed[i]
		if s.Key == keyErased {
			o := evidence.Opened{Name: s.Field, Erased: true}
			if copy(o.Commitment[:], s.Text) != len(s.Text) || len(s.Text) != len(o.Commitment) {
				return nil, fmt.Errorf("%w: field %s of record %d", ErrCorrupt, s.Field, idx)
			}
			opened = append(opened, o)
			continue
		}
		c := ciphers[s.Key]
		if c == nil {
			if c, err = l.aeads.lookup(s.Key); err != nil {
				return nil, err
			}
			ciphers[s.Key] = c
		}
		o, err := s.Open(c, l.cfg.Origin)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		opened = append(opened, o)
	}
	return opened, nil
}
