package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// An Erasure says who orders one and why the law wants it.
type Erasure struct {
	By    string // the approver who signed for it. Required.
	Basis string // legal basis, such as "GDPR Art. 17(1)(a)". Required.
}

// Errors of erasures.
var (
	// ErrNoField means that a record has no such field, or never had a value in it.
	ErrNoField = errors.New("the record has no such field")
	// ErrKept means a field that must stay: a revocation that cannot be read cannot
	// be obeyed, an erasure without its basis answers to nobody, and without its
	// recovery nobody finds the ledger before this one.
	ErrKept = errors.New("fields of revocations, erasures and recoveries are kept")
	// ErrRunOpen means that the run goes on, and with it what it records.
	ErrRunOpen = errors.New("the run is open: close its task first")
)

// keyErased stands where the key of a field stood that was erased; the text beside
// it is the commitment. It is no key's name, as that of a run has no @ in it.
const keyErased = "@erased"

// EraseField removes the value, the salts and the nonce of one field from the store
// for ever and leaves its commitment, so that no proof changes and the other fields
// of the record can still be opened. Two events tell of it: opened before and closed
// after, by index and name, never by value. If it fails in between, call it again.
// It returns the receipt of the second.
func (l *Ledger) EraseField(ctx context.Context, at FieldAt, o Erasure) (vault.Receipt, error) {
	fail := func(err error) error {
		return fmt.Errorf("erase field %s of record %d: %w", at.Field, at.Index, err)
	}
	if err := l.cfg.Store.MayEraseField(); err != nil { // before an order is on record that nobody can fulfil
		return vault.Receipt{}, fail(err)
	}
	if at.Index >= l.Head().Size {
		return vault.Receipt{}, fail(ErrNoField)
	}
	for e, err := range l.cfg.Store.Entries(ctx, at.Index, at.Index+1) {
		switch {
		case err != nil:
			return vault.Receipt{}, fail(err)
		case e.Class == vault.ClassRevocation || e.Class == vault.ClassErasure || e.Class == vault.ClassRecovery:
			return vault.Receipt{}, fail(ErrKept)
		}
	}
	opened, err := l.fields(ctx, at.Index)
	if err != nil {
		return vault.Receipt{}, fail(err)
	}
	for i := range opened {
		if opened[i].Name != at.Field {
			continue
		}
		c := opened[i].Commit()
		erased := evidence.Sealed{Index: at.Index, Field: at.Field, Text: c[:], Key: keyErased}
		r, err := l.erase(ctx, strconv.FormatUint(at.Index, 10)+"/"+at.Field, o, func() error { return l.cfg.Store.EraseField(ctx, erased) })
		if err != nil {
			return vault.Receipt{}, fail(err)
		}
		return r, nil
	}
	return vault.Receipt{}, fail(ErrNoField)
}

// EraseRun destroys the key of a closed run, and with it every sensitive field the
// run has recorded, also in copies of the store and of its logs. Events tell of it
// as for [Ledger.EraseField].
func (l *Ledger) EraseRun(ctx context.Context, run vault.TaskID, o Erasure) (vault.Receipt, error) {
	fail := func(err error) error {
		return fmt.Errorf("erase run %s: %w", run, err)
	}
	exists, err := l.cfg.Store.RunExists(ctx, run)
	switch {
	case err != nil:
		return vault.Receipt{}, fail(err)
	case run == "" || !exists:
		return vault.Receipt{}, fail(ErrNoRun)
	}
	l.mu.Lock()
	open := l.seq.runs[run] != nil
	l.mu.Unlock()
	if open {
		return vault.Receipt{}, fail(ErrRunOpen)
	}
	r, err := l.erase(ctx, string(run), o, func() error { return l.aeads.erase(run) })
	if err != nil {
		return vault.Receipt{}, fail(err)
	}
	return r, nil
}

// EraseEarlier is [Ledger.EraseRun] for a run that the ledger before this one
// recorded, see [Inspect]: its records are not here, its key is.
func (l *Ledger) EraseEarlier(ctx context.Context, run vault.TaskID, o Erasure) (vault.Receipt, error) {
	exists, err := l.cfg.Store.RunExists(ctx, run)
	if err == nil && (exists || run == "") {
		err = ErrNoRun
	}
	var r vault.Receipt
	if err == nil {
		r, err = l.erase(ctx, string(run), o, func() error { return l.aeads.erase(run) })
	}
	if err != nil {
		return vault.Receipt{}, fmt.Errorf("erase earlier run %s: %w", run, err)
	}
	return r, nil
}

// erase records that what is to be erased, does it, and records that it was done.
// A caller that hangs up in between does not leave half of it.
func (l *Ledger) erase(ctx context.Context, what string, o Erasure, effect func() error) (vault.Receipt, error) {
	if o.By == "" || o.Basis == "" {
		return vault.Receipt{}, errors.New("an erasure names who orders it and on what basis")
	}
	ctx = context.WithoutCancel(ctx)
	e := &vault.Event{
		Class: vault.ClassErasure, Phase: vault.PhaseOpened, Verdict: vault.Allow,
		Fields: []vault.Field{{Name: "basis", Value: []byte(o.Basis)}, {Name: "by", Value: []byte(o.By)}, {Name: "what", Value: []byte(what)}},
	}
	if _, err := l.Commit(ctx, e); err != nil {
		return vault.Receipt{}, err
	}
	if err := effect(); err != nil {
		return vault.Receipt{}, err
	}
	e.Phase = vault.PhaseClosed
	return l.Commit(ctx, e)
}
