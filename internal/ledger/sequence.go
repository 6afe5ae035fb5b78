package ledger

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A sequence is all that the place of the next event depends on. It does no I/O.
type sequence struct {
	log   string
	epoch uint64
	size  uint64
	chain vault.Digest
	tree  *evidence.Tree
	nodes nodes
	runs  map[vault.TaskID]*run // open runs, and "" for the daemon's own
	ended map[vault.TaskID]bool // runs closed by this process
}

// A run is how far an open run has come.
type run struct {
	next uint64
	prev vault.Digest
}

func newSequence(log string) sequence {
	return sequence{
		log:   log,
		tree:  evidence.NewTree(0),
		runs:  map[vault.TaskID]*run{},
		ended: map[vault.TaskID]bool{},
	}
}

// A draft is an event ready to be placed: everything that does not depend on its
// place is done.
type draft struct {
	leaf   evidence.Leaf
	fields []evidence.Opened // present ones
	key    string
	aead   cipher.AEAD // nil without fields
	nonces []byte
}

// place gives d the next index and returns its row and sealed fields. On an
// error nothing has moved.
func (s *sequence) place(d *draft, now time.Time) (evidence.Entry, []evidence.Sealed, error) {
	l := &d.leaf
	r := s.runs[l.Run]
	if r == nil {
		if s.ended[l.Run] {
			return evidence.Entry{}, nil, fmt.Errorf("run %s: %w", l.Run, ErrRunClosed)
		}
		r = new(run)
	}
	l.Log, l.Epoch, l.Index = s.log, s.epoch, s.size
	l.Time = now.UTC().Truncate(time.Microsecond)
	l.RunSeq, l.PrevRunLeaf = r.next, r.prev
	const usual = 1024
	b, err := l.Append(make([]byte, 0, usual))
	if err != nil {
		return evidence.Entry{}, nil, err
	}
	e := evidence.Entry{
		Index: l.Index, Micro: l.Time.UnixMicro(), Run: l.Run, Class: l.Class,
		Leaf: b, Hash: evidence.HashLeaf(b),
	}
	var sealed []evidence.Sealed
	if len(d.fields) > 0 {
		sealed = make([]evidence.Sealed, len(d.fields))
		n := d.aead.NonceSize()
		for i := range d.fields {
			nonce := d.nonces[i*n : (i+1)*n]
			sealed[i] = evidence.Sealed{
				Index: e.Index, Field: d.fields[i].Name, Key: d.key,
				Nonce: nonce, Text: d.fields[i].Seal(d.aead, nonce, s.log, e.Index),
			}
		}
	}
	s.take(&e, l)
	return e, sealed, nil
}

// take moves the sequence over the leaf l with row e, and sets e.Chain.
func (s *sequence) take(e *evidence.Entry, l *evidence.Leaf) {
	s.chain = evidence.Chain(s.chain, e.Hash)
	e.Chain = s.chain
	s.tree.AppendVisit(e.Hash, s.nodes.add)
	s.size++
	if l.Class == vault.ClassTask && l.Phase == vault.PhaseClosed && l.Run != "" {
		delete(s.runs, l.Run)
		s.ended[l.Run] = true
		return
	}
	r := s.runs[l.Run]
	if r == nil {
		r = new(run)
		s.runs[l.Run] = r
	}
	r.next, r.prev = l.RunSeq+1, e.Hash
}

// head returns the head after the last placed event.
func (s *sequence) head() evidence.Head {
	return evidence.Head{Epoch: s.epoch, Size: s.size, Chain: s.chain, Root: s.tree.Root(), Frontier: s.tree.Frontier()}
}

// namesPerson reports whether the name of a target of this kind says whom or
// where, so that it may stand in a record only as a field, salted and erasable.
func namesPerson(k vault.Kind) bool {
	switch k {
	case vault.KindResource, vault.KindEgress, vault.KindFile, vault.KindExec, vault.KindAgent:
		return true
	case vault.KindTool, vault.KindPrompt, vault.KindServerRequest, vault.KindSecret, vault.KindModel:
	}
	return false
}

// draft does all the work on e that does not need the sequence: the commitments
// above all, which are most of it.
func (l *Ledger) draft(e *vault.Event) (*draft, error) {
	names := vault.FieldsOf(e.Class)
	if len(names) == 0 {
		return nil, fmt.Errorf("event of unknown class %q", e.Class)
	}
	d := &draft{leaf: evidence.Leaf{
		Run: e.Run, Call: e.Call, Phase: e.Phase, Intent: e.Intent, HasIntent: e.HasIntent,
		Class: e.Class, Verdict: e.Verdict, Reason: e.Reason, Policy: e.Policy,
		Server: e.Target.Server, Tool: e.Target.Name, Kind: e.Kind, Proof: e.Proof, Grade: e.Grade,
		AnyArgs: e.AnyArgs, SameUID: e.SameUID, Debits: e.Debits, Refund: e.Refund,
	}}
	if !e.HasIntent {
		d.leaf.Intent = 0
	}
	given := e.Fields
	if namesPerson(e.Kind) && e.Target.Name != "" {
		d.leaf.Tool = ""
		if indexOf(names, fieldTarget) >= 0 { // an answer has no such field: its question says it
			given = append(given[:len(given):len(given)], vault.Field{Name: fieldTarget, Value: []byte(e.Target.Name)})
		}
	}
	values := make([][]byte, len(names))
	present := 0
	for _, f := range given {
		at := indexOf(names, f.Name)
		if at < 0 {
			return nil, fmt.Errorf("class %s has no field %q", e.Class, f.Name)
		}
		if values[at] != nil {
			return nil, fmt.Errorf("field %q twice", f.Name)
		}
		if f.Value != nil {
			values[at] = f.Value
			present++
		}
	}
	if present > 0 {
		key, aead, err := l.aeads.get(e.Run)
		if err != nil {
			return nil, fmt.Errorf("field key of run %q: %w", e.Run, err)
		}
		d.key, d.aead = key, aead
		d.nonces = make([]byte, present*aead.NonceSize())
		d.fields = make([]evidence.Opened, 0, present)
	}
	// One read for everything random: the seed, a salt a field, the nonces.
	random := make([]byte, (1+present)*evidence.SaltSize)
	rand.Read(random)
	rand.Read(d.nonces)
	seed := evidence.Salt(random[:evidence.SaltSize])
	random = random[evidence.SaltSize:]
	commitments := make([]vault.Digest, len(names))
	for i, name := range names {
		if values[i] == nil {
			salt := evidence.NullSalt(&seed, name)
			commitments[i] = evidence.Commit(&salt, name, nil)
			continue
		}
		o := evidence.Opened{Name: name, Value: values[i], Nulls: seed, Salt: evidence.Salt(random[:evidence.SaltSize])}
		random = random[evidence.SaltSize:]
		commitments[i] = evidence.Commit(&o.Salt, name, values[i])
		if len(o.Value) > maxField {
			o.NotKept, o.Size, o.Commitment, o.Value = true, uint64(len(o.Value)), commitments[i], nil
		}
		d.fields = append(d.fields, o)
	}
	d.leaf.Fields = evidence.Fields{N: len(names), Root: evidence.FieldRoot(commitments)}
	return d, nil
}

// Field names that the ledger itself writes or reads.
const (
	fieldTarget = "target"
	fieldCaller = "caller"
	fieldWhat   = "what"
)

func indexOf(names []string, name string) int {
	for i, n := range names {
		if n == name {
			return i
		}
	}
	return -1
}
