package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/store"
)

const origin = "vault.test/log/1"

// A bench is a ledger on a real store, with everything it is made of.
type rig struct {
	t     testing.TB
	dir   string
	url   string // of a PostgreSQL; empty means SQLite
	wal   bool   // a local log before it
	log   *store.WAL
	db    *store.DB
	keys  *fileKeys
	key   ed25519.PrivateKey
	cfg   Config
	led   *Ledger
	fault *faulty
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, dir: t.TempDir(), key: testKey("ledger")}
	if database != nil {
		r.url = database(t)
	}
	r.wal = localLog
	r.openStore()
	r.open()
	return r
}

// database makes a PostgreSQL database for a rig while TestOnPostgres runs; nil
// means SQLite.
var database func(t testing.TB) string

// localLog puts one before the store of a rig while TestOnALocalLog runs.
var localLog bool

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func (r *rig) openStore() {
	r.t.Helper()
	ctx := context.Background()
	db, err := openDB(ctx, r.url, r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { db.Close() })
	tenant, err := db.Tenant(ctx, "acme")
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := openFileKeys(filepath.Join(r.dir, "keys"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { keys.Close() })
	r.db, r.keys = db, keys
	r.fault = &faulty{Store: tenant}
	if r.wal {
		if r.log, err = tenant.OpenWAL(ctx, filepath.Join(r.dir, "wal")); err != nil {
			r.t.Fatal(err)
		}
		r.fault.Store = r.log
	}
	r.cfg = Config{
		Store: r.fault, Origin: origin, Key: r.key, Keys: keys,
		CheckpointFile: filepath.Join(r.dir, "checkpoint"),
		Retry:          time.Millisecond,
	}
}

func (r *rig) closeStore() {
	if r.log != nil {
		r.log.Close()
	}
	r.db.Close()
}

func openDB(ctx context.Context, url, dir string) (*store.DB, error) {
	if url != "" {
		return store.OpenPostgres(ctx, url)
	}
	return store.Open(ctx, filepath.Join(dir, "vault.db"))
}

func (r *rig) open() {
	r.t.Helper()
	l, err := Open(context.Background(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.led = l
	r.t.Cleanup(func() { l.Close() })
}

// reopen starts the ledger again on the same files, as after a restart.
func (r *rig) reopen() error {
	r.t.Helper()
	r.led.Close()
	r.closeStore()
	r.openStore()
	l, err := Open(context.Background(), r.cfg)
	if err != nil {
		return err
	}
	r.led = l
	r.t.Cleanup(func() { l.Close() })
	return nil
}

func (r *rig) commit(e *vault.Event) vault.Receipt {
	r.t.Helper()
	got, err := r.led.Commit(context.Background(), e)
	if err != nil {
		r.t.Fatalf("commit %s %s: %v", e.Class, e.Phase, err)
	}
	return got
}

// check holds every invariant of a ledger against what is on disk: a full export
// verifies with the pinned key and nothing is missing.
func (r *rig) check() evidence.Report {
	r.t.Helper()
	var b bytes.Buffer
	if err := r.led.ExportAll(context.Background(), &b, ExportOptions{Disclose: true}); err != nil {
		r.t.Fatal(err)
	}
	rep, err := evidence.VerifyBytes(b.Bytes(), evidence.Options{Keys: []string{r.led.VerifierKey()}})
	if err != nil {
		r.t.Fatal(err)
	}
	if rep.Problem != evidence.ProblemNone {
		r.t.Fatalf("the ledger does not verify:\n%s", rep)
	}
	return rep
}

func opened(run vault.TaskID) *vault.Event {
	return &vault.Event{
		Run: run, Class: vault.ClassTask, Phase: vault.PhaseOpened, Verdict: vault.Allow,
		Fields: []vault.Field{{Name: "purpose", Value: []byte("sum the invoices")}},
	}
}

func closed(run vault.TaskID) *vault.Event {
	return &vault.Event{Run: run, Class: vault.ClassTask, Phase: vault.PhaseClosed, Verdict: vault.Allow}
}

func intent(run vault.TaskID, call string) *vault.Event {
	return &vault.Event{
		Run: run, Call: call, Class: vault.ClassCall, Phase: vault.PhaseIntent, Verdict: vault.Allow,
		Kind: vault.KindTool, Target: vault.Target{Server: vault.ServerID{1}, Name: "read_file"},
		Proof: vault.ProofSession, Grade: vault.GradeB,
		Debits: []vault.Debit{
			{Counter: "link/calls", Amount: 1, Limit: 50, Unit: "calls", Kept: true},
			{Counter: "link/eur", Amount: 1500, Limit: 100000, Unit: "EUR"},
		},
		Fields: []vault.Field{
			{Name: "args", Value: []byte(`{"path":"/srv/invoices/1"}`)},
			{Name: "caller", Value: []byte("spiffe://test/agent/acme/clerk/1")},
		},
	}
}

func outcomeOf(i vault.Receipt, e *vault.Event, p vault.Phase) *vault.Event {
	return &vault.Event{
		Run: e.Run, Call: e.Call, Class: vault.ClassCall, Phase: p, Intent: i.Index, HasIntent: true,
		Verdict: vault.Allow, Kind: e.Kind, Target: e.Target, Proof: e.Proof, Grade: e.Grade,
		Fields: []vault.Field{{Name: "result", Value: []byte(`{"content":[]}`)}},
	}
}

// faulty is a store that fails on demand.
type faulty struct {
	Store
	mu     sync.Mutex
	append func(real func() error) error // nil: no fault
	head   error
	staged int // batches that were staged and committed
}

func (f *faulty) set(fn func(real func() error) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.append = fn
}

func (f *faulty) setHead(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head = err
}

func (f *faulty) Append(ctx context.Context, before, after evidence.Head, e []evidence.Entry, s []evidence.Sealed) error {
	f.mu.Lock()
	fn := f.append
	f.mu.Unlock()
	real := func() error { return f.Store.Append(ctx, before, after, e, s) }
	if fn != nil {
		return fn(real)
	}
	return real()
}

func (f *faulty) Stage(ctx context.Context, e []evidence.Entry, s []evidence.Sealed) (finisher, error) {
	st, ok := f.Store.(stager)
	if !ok {
		return nil, nil
	}
	finish, err := st.Stage(ctx, e, s)
	if finish == nil {
		return nil, err
	}
	return func(ctx context.Context, before, after evidence.Head, commit bool) error {
		f.mu.Lock()
		fn := f.append
		if commit {
			f.staged++
		}
		f.mu.Unlock()
		called := false
		real := func() error {
			called = true
			return finish(ctx, before, after, commit)
		}
		if fn == nil || !commit {
			return real()
		}
		err := fn(real)
		if !called { // a fault that came before it leaves no transaction
			err = errors.Join(err, finish(ctx, before, after, false))
		}
		return err
	}, err
}

func (f *faulty) Head(ctx context.Context) (evidence.Head, error) {
	f.mu.Lock()
	err := f.head
	f.mu.Unlock()
	if err != nil {
		return evidence.Head{}, err
	}
	return f.Store.Head(ctx)
}

func TestCommitIsDurableInOrderAndProvable(t *testing.T) {
	r := newRig(t)
	const run = "t-1"
	r.commit(opened(run))
	in := intent(run, "c-1")
	receipt := r.commit(in)
	if _, err := r.led.Sequence(t.Context(), outcomeOf(receipt, in, vault.PhaseDone)); err != nil {
		t.Fatal(err)
	}
	r.commit(closed(run))
	if h := r.led.Head(); h.Size != 4 {
		t.Fatalf("size %d, want 4", h.Size)
	}
	rep := r.check()
	if rep.Records != 4 || rep.Disclosed != 4 || rep.OpenRuns != 0 {
		t.Fatalf("%+v", rep)
	}
	leaf, p, err := r.led.Prove(t.Context(), receipt.Index)
	if err != nil {
		t.Fatal(err)
	}
	again, err := evidence.ParseProof(p.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	_, l, err := again.Verify(leaf, r.led.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	if l.Call != "c-1" || l.Tool != "read_file" || evidence.HashLeaf(leaf) != receipt.Leaf || !l.Time.Equal(receipt.Time) {
		t.Fatalf("proven leaf %+v, receipt %+v", l, receipt)
	}
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	r.check()
}

// BenchmarkCommit64 is 64 producers that each wait for durability, beside one,
// and beside the bare store with the same rows in batches of 64.
func BenchmarkCommit64(b *testing.B) {
	for _, n := range []int{64, 1} {
		b.Run(fmt.Sprintf("producers=%d", n), func(b *testing.B) { benchCommit(b, n) })
	}
	b.Run("bare-sqlite", benchBare)
}

func benchCommit(b *testing.B, producers int) {
	r := newRig(b)
	lat := make([][]time.Duration, producers)
	used := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			run := vault.TaskID(fmt.Sprintf("t-%d", p))
			for i := p; i < b.N; i += producers {
				e := intent(run, "c-abcdefghijklmnopqrstuvwxyz")
				start := time.Now()
				if _, err := r.led.Commit(context.Background(), e); err != nil {
					b.Error(err)
					return
				}
				lat[p] = append(lat[p], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(lat...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-used).Microseconds())/float64(b.N), "cpu-µs/event")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

func benchBare(b *testing.B) {
	r := newRig(b)
	r.led.Close()
	head, err := r.cfg.Store.Head(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	const batch = 64
	leaf := bytes.Repeat([]byte("x"), 850)
	used := cpuTime(b)
	b.ResetTimer()
	for i := 0; i < b.N; i += batch {
		var rows []evidence.Entry
		var fields []evidence.Sealed
		for j := range uint64(batch) {
			rows = append(rows, evidence.Entry{Index: head.Size + j, Run: "t-1", Class: vault.ClassCall, Leaf: leaf})
			for _, f := range []string{"args", "caller"} {
				fields = append(fields, evidence.Sealed{Index: head.Size + j, Field: f, Nonce: leaf[:12], Text: leaf[:110], Key: "t-1"})
			}
		}
		next := head
		next.Size += batch
		if err := r.cfg.Store.Append(b.Context(), head, next, rows, fields); err != nil {
			b.Fatal(err)
		}
		head = next
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpuTime(b)-used).Microseconds())/float64(b.N), "cpu-µs/event")
}

// BenchmarkPlace is the sequencer without a store: draft, leaf, hash, chain, tree
// and sealed fields.
func BenchmarkPlace(b *testing.B) {
	r := newRig(b)
	b.ReportAllocs()
	for b.Loop() {
		d, err := r.led.draft(intent("t-1", "c-abcdefghijklmnopqrstuvwxyz"))
		if err != nil {
			b.Fatal(err)
		}
		r.led.mu.Lock()
		_, _, err = r.led.seq.place(d, time.Now())
		r.led.mu.Unlock()
		if err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what this process has used so far. On a shared machine it says more
// than the clock.
func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
