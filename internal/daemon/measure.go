package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/flow"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/policy"
	"github.com/pilox/vault/internal/store"
)

// This file is what pvault bench needs of parts that only this package may
// import. Nothing else calls it.

// A Yardstick is a store with nothing around it. Measurements hold a call, whose
// intent is durable, against one bare durable write in the same run on the same
// disk. Make one with [NewYardstick]; it is for one goroutine.
type Yardstick struct {
	db   *store.DB
	rows *store.Tenant
	head evidence.Head
}

// The sizes of what one intent leaves in the store: its leaf, and two sealed
// fields beside it.
const (
	yardLeaf  = 850
	yardField = 110
)

// NewYardstick makes a store in dir, which must exist and hold none yet.
func NewYardstick(ctx context.Context, dir string) (*Yardstick, error) {
	db, err := store.Open(ctx, filepath.Join(dir, "yardstick.db"))
	if err != nil {
		return nil, err
	}
	y := &Yardstick{db: db}
	if y.rows, err = db.Tenant(ctx, "bench"); err == nil {
		y.head, err = y.rows.Seize(ctx, y.head)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return y, nil
}

// Write makes the rows of n intents durable in one transaction.
func (y *Yardstick) Write(ctx context.Context, n int) error {
	filler := bytes.Repeat([]byte("x"), yardLeaf)
	rows := make([]evidence.Entry, n)
	fields := make([]evidence.Sealed, 0, 2*n)
	for i := range rows {
		idx := y.head.Size + uint64(i)
		rows[i] = evidence.Entry{Index: idx, Run: "t-1", Class: vault.ClassCall, Leaf: filler}
		for _, name := range []string{"args", "caller"} {
			fields = append(fields, evidence.Sealed{Index: idx, Field: name, Nonce: filler[:12], Text: filler[:yardField], Key: "t-1"})
		}
	}
	next := y.head
	next.Size += uint64(n)
	if err := y.rows.Append(ctx, y.head, next, rows, fields); err != nil {
		return fmt.Errorf("write %d rows: %w", n, err)
	}
	y.head = next
	return nil
}

// Close closes the store.
func (y *Yardstick) Close() error { return y.db.Close() }

// probeFacts is a call as the stages see it.
func probeFacts() (*vault.Facts, error) {
	args, err := vault.ParseArgs([]byte(`{"path":"/srv/invoices/2026/0017.txt","max":200,"encoding":"utf-8"}`))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &vault.Facts{
		Call: &vault.Call{
			ID: "b-1", Kind: vault.KindTool, Server: "stub", Target: vault.Target{Server: vault.ServerID{1}, Name: "read_invoice"},
			Args: args, At: now, Agent: "spiffe://vault.internal/agent/bench/bench/1", Task: "t-1",
		},
		Grant: &vault.Grant{
			Tenant: "bench", Task: "t-1", Agent: "spiffe://vault.internal/agent/bench/bench/1", Principal: "user:bench@example.com",
			Purpose: "measure", Expires: now.Add(time.Hour), Proof: vault.ProofSession, MayRead: []string{"finance"},
		},
		Tool:  &vault.Tool{Server: "stub", Name: "read_invoice", Definition: vault.Digest{1}, Source: vault.FromOrganisation, Holds: vault.Only("finance"), ReadOnly: true},
		Scope: vault.Label{Integrity: vault.FromOrganisation, Readers: vault.Only("finance")},
	}, nil
}

// PolicyProbe returns a function that decides one call by the rules in dir, of
// which data.vault.toolcall.decision must allow it.
func PolicyProbe(ctx context.Context, dir string) (func(context.Context) error, error) {
	p, err := policy.New(ctx, policy.Config{
		Bundles: []policy.Bundle{{Name: "main", Dir: dir, Unsigned: true}},
		Hooks:   []policy.Hook{{At: policy.AtToolCall, Query: "data.vault.toolcall.decision"}},
	})
	if err != nil {
		return nil, err
	}
	facts, err := probeFacts()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if d := p.Decide(ctx, facts); d.Verdict != vault.Allow {
			return fmt.Errorf("decided %v: %s", d.Verdict, d.Reason().Code)
		}
		return nil
	}, nil
}

// FlowProbe returns a function that checks one call of an agent that has seen
// untrusted data, the dearest case that allows.
func FlowProbe() func(context.Context) error {
	w := flow.New(flow.Config{})
	facts, err := probeFacts()
	if err == nil {
		w.Taint(facts.Call.Agent, vault.Label{Integrity: vault.FromWeb, Readers: vault.Public()})
	}
	return func(ctx context.Context) error {
		if err != nil {
			return err
		}
		if d := w.Check(ctx, facts); d.Verdict != vault.Allow {
			return fmt.Errorf("decided %v: %s", d.Verdict, d.Reason().Code)
		}
		return nil
	}
}

// A LedgerProbe is a ledger of its own on SQLite. Make one with [NewLedgerProbe].
type LedgerProbe struct {
	db     *store.DB
	ledger *ledger.Ledger
}

// NewLedgerProbe makes a ledger in dir, which must exist and hold none yet.
func NewLedgerProbe(ctx context.Context, dir string) (*LedgerProbe, error) {
	db, err := store.Open(ctx, filepath.Join(dir, "probe.db"))
	if err != nil {
		return nil, err
	}
	p := &LedgerProbe{db: db}
	rows, err := db.Tenant(ctx, "bench")
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	p.ledger, err = ledger.Open(ctx, ledger.Config{
		Store: rows, Origin: "bench.example/log", Key: key, Keys: new(probeKeys), CheckpointFile: filepath.Join(dir, "probe.checkpoint"),
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return p, nil
}

// Commit makes one intent of the run of this producer durable.
func (p *LedgerProbe) Commit(ctx context.Context, producer int) error {
	_, err := p.ledger.Commit(ctx, &vault.Event{
		Run: vault.TaskID(fmt.Sprintf("t-%d", producer)), Call: "c-abcdefghijklmnopqrstuvwxyz", Class: vault.ClassCall, Phase: vault.PhaseIntent,
		Verdict: vault.Allow, Kind: vault.KindTool, Target: vault.Target{Server: vault.ServerID{1}, Name: "read_invoice"}, Proof: vault.ProofSession,
		Debits: []vault.Debit{{Counter: "link/calls", Amount: 1, Limit: 1 << 40, Unit: "calls", Kept: true}},
		Fields: []vault.Field{
			{Name: "args", Value: []byte(`{"encoding":"utf-8","max":200,"path":"/srv/invoices/2026/0017.txt"}`)},
			{Name: "caller", Value: []byte("spiffe://vault.internal/agent/bench/bench/1")},
		},
	})
	return err
}

// Bundle exports the whole ledger.
func (p *LedgerProbe) Bundle(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	err := p.ledger.ExportAll(ctx, &b, ledger.ExportOptions{})
	return b.Bytes(), err
}

// VerifierKey is the key to pin.
func (p *LedgerProbe) VerifierKey() string { return p.ledger.VerifierKey() }

// Close closes the ledger and its store.
func (p *LedgerProbe) Close() error { return errors.Join(p.ledger.Close(), p.db.Close()) }

// probeKeys are field keys in memory: what is measured is gone soon.
type probeKeys struct{ keys sync.Map }

// Key returns the key with this id and makes it if there is none.
func (k *probeKeys) Key(id string) (ledger.FieldKey, error) {
	var fresh ledger.FieldKey
	rand.Read(fresh[:])
	v, _ := k.keys.LoadOrStore(id, fresh)
	return v.(ledger.FieldKey), nil
}

// Lookup returns the key with this id.
func (k *probeKeys) Lookup(id string) (ledger.FieldKey, error) {
	v, ok := k.keys.Load(id)
	if !ok {
		return ledger.FieldKey{}, ledger.ErrNoKey
	}
	return v.(ledger.FieldKey), nil
}
