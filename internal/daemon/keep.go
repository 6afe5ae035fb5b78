package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/flow"
	"github.com/pilox/vault/internal/store"
)

// Names of the settings that hold what the ledger does not.
const (
	settingLabels    = "labels"
	settingQuestions = "questions"
	settingCluster   = "cluster"
	settingSuccessor = "successor" // the ledger that goes on after a recovery
	settingStatuses  = "statuses"  // first index of the status list that this ledger gives out
)

// A keptLabel is one label as it is stored.
type keptLabel struct {
	Agent     vault.AgentID  `json:"agent,omitempty"`
	Server    string         `json:"server,omitempty"`
	Resource  string         `json:"resource,omitempty"`
	Integrity string         `json:"integrity"`
	Public    bool           `json:"public,omitempty"`
	Readers   []string       `json:"readers,omitempty"`
	Held      []string       `json:"held,omitempty"`
	Sources   []vault.Source `json:"sources,omitempty"`
	Truncated bool           `json:"truncated,omitempty"`
}

// keepLabels writes the labels of agents and of what they wrote. What is lost
// between two writes by a crash is restored, more strictly, from the ledger.
func (d *Daemon) keepLabels(ctx context.Context) error {
	var out []keptLabel
	for _, e := range d.flow.Export() {
		l := e.Label
		out = append(out, keptLabel{
			Agent: e.Agent, Server: e.Server, Resource: e.Resource, Integrity: l.Integrity.String(),
			Public: l.Readers.IsPublic(), Readers: l.Readers.Names(), Held: l.Readers.Held(), Sources: l.Sources, Truncated: l.Truncated,
		})
	}
	doc, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode labels: %w", err)
	}
	return d.set(ctx, settingLabels, doc)
}

// restoreLabels reads what keepLabels wrote.
func (d *Daemon) restoreLabels(ctx context.Context) error {
	doc, ok, err := d.setting(ctx, settingLabels)
	if !ok {
		return err
	}
	entries, err := decodeLabels(doc)
	if err != nil {
		return fmt.Errorf("labels cannot be read, and without them tainted agents would pass for clean: %w", err)
	}
	d.flow.Import(entries)
	return nil
}

func decodeLabels(doc []byte) ([]flow.Entry, error) {
	var kept []keptLabel
	if err := json.Unmarshal(doc, &kept); err != nil {
		return nil, err
	}
	entries := make([]flow.Entry, len(kept))
	for i, k := range kept {
		integrity, err := vault.ParseIntegrity(k.Integrity)
		if err != nil {
			return nil, err
		}
		readers := vault.Only(k.Readers...)
		if k.Public {
			readers = vault.Public()
		}
		readers = readers.With(k.Held...)
		entries[i] = flow.Entry{Agent: k.Agent, Server: k.Server, Resource: k.Resource, Label: vault.Label{Integrity: integrity, Readers: readers, Sources: k.Sources, Truncated: k.Truncated}}
	}
	return entries, nil
}

// keepQuestions writes the open questions, so that a person can answer after a
// restart. A snapshot can be older than the last approval that was spent; the
// ledger's debit keeps that one from being spent again.
func (d *Daemon) keepQuestions(ctx context.Context) error {
	doc, err := d.desk.Export()
	if err != nil {
		return fmt.Errorf("export questions: %w", err)
	}
	return d.set(ctx, settingQuestions, doc)
}

// restoreQuestions reads what keepQuestions wrote. Questions that cannot be read
// are dropped: then the calls ask again.
func (d *Daemon) restoreQuestions(ctx context.Context) error {
	doc, ok, err := d.setting(ctx, settingQuestions)
	if !ok {
		return err
	}
	if err := d.desk.Import(doc); err != nil {
		d.log.WarnContext(ctx, "open questions are dropped", "err", err)
	}
	return nil
}

// keep saves labels and questions when they change, at most once a second, and
// when the daemon stops.
func (d *Daemon) keep() {
	d.work.Go(func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		asked := d.desk.Changed()
		var dirty bool
		var labels int
		save := func(ctx context.Context) {
			if dirty {
				dirty = false
				if err := d.keepQuestions(ctx); err != nil {
					d.log.ErrorContext(ctx, "open questions not saved", "err", err)
				}
			}
		}
		for {
			select {
			case <-asked:
				dirty = true
			case <-t.C:
				save(d.ctx)
				if labels++; labels%60 == 0 {
					if err := d.keepLabels(d.ctx); err != nil && d.ctx.Err() == nil {
						d.log.Error("labels not saved", "err", err)
					}
				}
			case <-d.ctx.Done():
				ctx := context.WithoutCancel(d.ctx)
				save(ctx)
				if err := d.keepLabels(ctx); err != nil {
					d.log.ErrorContext(ctx, "labels not saved", "err", err)
				}
				return
			}
		}
	})
}

// setting returns what the daemon keeps under id; ok says that there is something.
func (d *Daemon) setting(ctx context.Context, id string) (doc []byte, ok bool, err error) {
	return settingOf(ctx, d.rows, id)
}

func (d *Daemon) set(ctx context.Context, id string, doc []byte) error {
	return setOf(ctx, d.rows, id, doc)
}

func settingOf(ctx context.Context, rows *store.Tenant, id string) (doc []byte, ok bool, err error) {
	r, err := rows.Record(ctx, store.KindSetting, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	return r.Doc, err == nil, err
}

func setOf(ctx context.Context, rows *store.Tenant, id string, doc []byte) error {
	return rows.PutRecord(ctx, store.Record{Kind: store.KindSetting, ID: id, Doc: doc})
}
