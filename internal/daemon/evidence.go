package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/store"
)

// Export writes a bundle.
func (b backend) Export(ctx context.Context, r admin.ExportRequest, w io.Writer) error {
	o := ledger.ExportOptions{Disclose: r.Disclose, Redact: r.Redact, Since: r.Since}
	if r.Only.Field != "" {
		o.Only = &ledger.FieldAt{Index: r.Only.Index, Field: r.Only.Field}
		rec, err := b.record(ctx, r.Only.Index)
		if err != nil {
			return err
		}
		if !holds(&rec, r.Only.Field) {
			return notFound("field", strconv.FormatUint(r.Only.Index, 10)+"/"+r.Only.Field)
		}
		r.Run = rec.Run // its run proves itself complete; the daemon's own is in the whole ledger only
	}
	if r.Run == "" {
		return b.d.ledger.ExportAll(ctx, w, o)
	}
	if ok, err := b.d.rows.RunExists(ctx, r.Run); err == nil && !ok {
		return notFound("task", string(r.Run))
	}
	return b.d.ledger.ExportRun(ctx, w, r.Run, o)
}

// record returns one record with its fields.
func (b backend) record(ctx context.Context, idx uint64) (ledger.Record, error) {
	if idx < b.d.ledger.Head().Size {
		for rec, err := range b.d.ledger.Records(ctx, idx, idx+1, "", true) {
			return rec, err
		}
	}
	return ledger.Record{}, notFound("event", strconv.FormatUint(idx, 10))
}

// holds reports whether rec can still open a field.
func holds(rec *ledger.Record, field string) bool {
	for _, f := range rec.Fields {
		if f.Name == field {
			return !f.Erased && !f.NotKept
		}
	}
	return false
}

// maxBasis bounds the legal basis of an erasure, in bytes: a citation and a case number.
const maxBasis = 1024

// Erase erases one field, or the keys of every run of a principal. Runs that are
// open are an error before anything is erased.
func (b backend) Erase(ctx context.Context, approver string, r admin.EraseRequest) (admin.Erasure, error) {
	o := ledger.Erasure{By: "key:" + approver, Basis: r.Basis}
	switch {
	case r.Basis == "" || len(r.Basis) > maxBasis:
		return admin.Erasure{}, invalid(fmt.Errorf("basis: want the legal basis, 1 to %d bytes", maxBasis))
	case (r.Field == "") == (r.Subject == ""):
		return admin.Erasure{}, invalid(errors.New("name either one field of one event, or a subject"))
	case r.Subject != "":
		return b.eraseSubject(ctx, r.Subject, o)
	}
	done, err := b.d.ledger.EraseField(ctx, ledger.FieldAt{Index: r.Index, Field: r.Field}, o)
	switch {
	case errors.Is(err, ledger.ErrNoField), errors.Is(err, ledger.ErrNoKey):
		return admin.Erasure{}, notFound("field", strconv.FormatUint(r.Index, 10)+"/"+r.Field)
	case errors.Is(err, ledger.ErrKept), errors.Is(err, errors.ErrUnsupported):
		return admin.Erasure{}, invalid(err)
	case err != nil:
		return admin.Erasure{}, err
	}
	return admin.Erasure{Events: []uint64{done.Index}}, nil
}

// eraseSubject erases the keys of a principal's runs: a run has one principal, so
// the keys of the runs are the keys of the subject.
func (b backend) eraseSubject(ctx context.Context, subject string, o ledger.Erasure) (admin.Erasure, error) {
	tasks, err := b.d.rows.Tasks(ctx, "")
	if err != nil {
		return admin.Erasure{}, err
	}
	var runs []vault.TaskID
	for _, t := range tasks {
		if t.Principal != subject {
			continue
		}
		if t.State == store.TaskOpen {
			return admin.Erasure{}, invalid(fmt.Errorf("task %s of this subject is open: close it first", t.ID))
		}
		runs = append(runs, t.ID)
	}
	earlier, err := b.d.earlierRuns(ctx, subject)
	if err != nil {
		return admin.Erasure{}, err
	}
	if len(runs)+len(earlier) == 0 {
		return admin.Erasure{}, notFound("task of subject", subject)
	}
	var done admin.Erasure
	for _, run := range earlier {
		r, err := b.d.ledger.EraseEarlier(ctx, run, o)
		if errors.Is(err, ledger.ErrNoRun) {
			continue // it is of this ledger
		}
		if err != nil {
			return done, err
		}
		done.Runs, done.Events = append(done.Runs, run), append(done.Events, r.Index)
	}
	for _, run := range runs {
		r, err := b.d.ledger.EraseRun(ctx, run, o)
		switch {
		case errors.Is(err, ledger.ErrNoRun):
			continue // a task that never got its first record
		case errors.Is(err, ledger.ErrRunOpen):
			return done, invalid(err)
		case err != nil:
			return done, err
		}
		done.Events, done.Runs = append(done.Events, r.Index), append(done.Runs, run)
	}
	return done, nil
}
