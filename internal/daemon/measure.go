package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
// which data.vault.toolcall.decision must allow it, and one that asks OPA alone.
func PolicyProbe(ctx context.Context, dir string) (decide, alone func(context.Context) error, err error) {
	const query = "data.vault.toolcall.decision"
	p, err := policy.New(ctx, policy.Config{
		Bundles: []policy.Bundle{{Name: "main", Dir: dir, Unsigned: true}},
		Hooks:   []policy.Hook{{At: policy.AtToolCall, Query: query}},
	})
	if err != nil {
		return nil, nil, err
	}
	facts, err := probeFacts()
	if err != nil {
		return nil, nil, err
	}
	if alone, err = p.Yardstick(ctx, query, facts); err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		if d := p.Decide(ctx, facts); d.Verdict != vault.Allow {
			return fmt.Errorf("decided %v: %s", d.Verdict, d.Reason().Code)
		}
		return nil
	}, alone, nil
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

// A ProbeConfig says what to measure a ledger on.
type ProbeConfig struct {
	Dir    string // holds none yet; made if need be
	Store  string // URL of a PostgreSQL; "" means SQLite in Dir
	Tenant string // in the store; "" means bench
	WAL    bool   // with a local log
}

// A LedgerProbe is a ledger of its own. Make one with [NewLedgerProbe].
type LedgerProbe struct {
	ledger  *ledger.Ledger
	closers []func() error // from first opened to last
}

// NewLedgerProbe makes an empty ledger.
func NewLedgerProbe(ctx context.Context, c ProbeConfig) (*LedgerProbe, error) {
	p := new(LedgerProbe)
	if err := p.open(ctx, c); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *LedgerProbe) open(ctx context.Context, c ProbeConfig) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	var db *store.DB
	var err error
	if c.Store != "" {
		db, err = store.OpenPostgres(ctx, c.Store)
	} else {
		db, err = store.Open(ctx, filepath.Join(c.Dir, "probe.db"))
	}
	if err != nil {
		return err
	}
	p.closers = append(p.closers, db.Close)
	if c.Tenant == "" {
		c.Tenant = "bench"
	}
	rows, err := db.Tenant(ctx, vault.Tenant(c.Tenant))
	if err != nil {
		return err
	}
	var leaves ledger.Store = rows
	if c.WAL {
		w, err := rows.OpenWAL(ctx, filepath.Join(c.Dir, "probe.wal"))
		if err != nil {
			return err
		}
		p.closers = append(p.closers, w.Close)
		leaves = w
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	p.ledger, err = ledger.Open(ctx, ledger.Config{
		Store: leaves, Origin: "bench.example/log", Key: key, Keys: new(probeKeys), CheckpointFile: filepath.Join(c.Dir, "probe.checkpoint"),
	})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, p.ledger.Close)
	return nil
}

// A NaiveProbe is a chain that locks its head for each event.
type NaiveProbe struct {
	db    *store.DB
	chain *store.Naive
}

// NewNaiveProbe makes one in the PostgreSQL at url.
func NewNaiveProbe(ctx context.Context, url string) (*NaiveProbe, error) {
	db, err := store.OpenPostgres(ctx, url)
	if err != nil {
		return nil, err
	}
	p := &NaiveProbe{db: db}
	if p.chain, err = db.Naive(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return p, nil
}

// Commit makes one event durable.
func (p *NaiveProbe) Commit(ctx context.Context) error {
	return p.chain.Append(ctx, bytes.Repeat([]byte("x"), yardLeaf))
}

// Close closes the store.
func (p *NaiveProbe) Close() error { return p.db.Close() }

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
func (p *LedgerProbe) Close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

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

// Erase forgets the key with this id.
func (k *probeKeys) Erase(id string) error {
	k.keys.Delete(id)
	return nil
}
