package approval

import (
	"errors"
	"fmt"
	"slices"
)

// maxSnapshot bounds what Import reads: all questions that can be held, and their
// answers.
const maxSnapshot = 2 * maxHeld

// A snapshot is what outlives a restart: questions that were shown and are not
// over. Spent ones are not kept; the ledger knows them.
type snapshot struct {
	Version   uint   `cbor:"1,keyasint"`
	Questions []kept `cbor:"2,keyasint"`
}

type kept struct {
	Signed []byte   `cbor:"1,keyasint"`
	Yes    [][]byte `cbor:"2,keyasint"` // answers
	No     []byte   `cbor:"3,keyasint"` // answer; empty if nobody denied
}

// Export returns the questions that are open, allowed or denied, with their
// answers, for [Desk.Import] after a restart. It holds arguments: keep it like a
// key. A snapshot can be older than the last spent approval; the ledger's debits
// on "approval/" and the id are what makes an approval single-use across a crash.
func (d *Desk) Export() ([]byte, error) {
	now := d.begin()
	defer d.mu.Unlock()
	s := snapshot{Version: version}
	for _, e := range d.m.byID {
		st, _ := e.state(d.au, now)
		if !e.shown || st == spent || st == expired {
			continue
		}
		k := kept{Signed: e.signed, No: e.no}
		for _, v := range e.yes {
			k.Yes = append(k.Yes, v.raw)
		}
		s.Questions = append(s.Questions, k)
	}
	slices.SortFunc(s.Questions, func(a, b kept) int { return slices.Compare(a.Signed, b.Signed) })
	b, err := d.codec.enc.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("export questions: %w", err)
	}
	return b, nil
}

// Import takes in what [Desk.Export] returned. Nothing in it is believed: each
// question must carry this desk's signature and each answer its approver's.
// Questions that have expired and answers that no longer count are left out; one
// that does not verify refuses the whole snapshot.
func (d *Desk) Import(b []byte) error {
	if len(b) > maxSnapshot {
		return fmt.Errorf("import questions: %d bytes, at most %d are read", len(b), maxSnapshot)
	}
	var s snapshot
	if err := d.codec.decode(b, &s); err != nil {
		return fmt.Errorf("import questions: %w", err)
	}
	if s.Version != version {
		return fmt.Errorf("import questions: version %d, want %d", s.Version, version)
	}
	for _, k := range s.Questions {
		if err := d.restore(k); err != nil {
			return fmt.Errorf("import questions: %w", err)
		}
	}
	return nil
}

func (d *Desk) restore(k kept) error {
	q, err := d.codec.open(k.Signed, d.public)
	if err != nil {
		return err
	}
	binding, err := d.codec.binding(q)
	if err != nil {
		return err
	}
	now := d.begin()
	defer d.mu.Unlock()
	if !now.Before(q.Expires()) {
		return nil
	}
	e := &entry{q: q, signed: k.Signed, binding: binding, shown: true}
	if d.m.find(now, binding) != nil {
		return fmt.Errorf("question %s is open already", q.ID)
	}
	if err := d.m.add(d.au, now, e); err != nil {
		return err
	}
	raws := k.Yes
	if len(k.No) > 0 {
		raws = append(slices.Clone(raws), k.No)
	}
	for _, raw := range raws {
		a, err := d.codec.parseAnswer(raw)
		if err != nil {
			return fmt.Errorf("answer to %s: %w", q.ID, err)
		}
		if _, err := d.m.accept(d.au, now, a, raw); errors.Is(err, ErrUnknown) {
			return fmt.Errorf("answer to %s is for another question", q.ID)
		} else if err != nil {
			d.log.Warn("answer not taken over", "approval", q.ID, "approver", a.Approver, "err", err)
		}
	}
	return nil
}
