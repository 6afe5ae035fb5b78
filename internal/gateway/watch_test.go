package gateway_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
)

// A watcher notes what it is told.
type watcher struct {
	mu       sync.Mutex
	verdicts []string
	stages   map[int][]string // by call followed
	ended    map[int]int
	n        int
}

type watchKey struct{}

func verdict(err error) string {
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		return d.Verdict + " " + string(d.Reason.Code)
	}
	return "allow"
}

func (w *watcher) Call(f *vault.Facts, err error, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts = append(w.verdicts, verdict(err)+" "+f.Tool.Name)
}

func (w *watcher) Stranger(code vault.Code) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts = append(w.verdicts, "stranger "+string(code))
}

func (w *watcher) Start(ctx context.Context, _ *vault.Call) context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return context.WithValue(ctx, watchKey{}, w.n)
}

func (w *watcher) Stage(ctx context.Context, s gateway.Stage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _ := ctx.Value(watchKey{}).(int)
	w.stages[n] = append(w.stages[n], string(s))
}

func (w *watcher) End(ctx context.Context, _ *vault.Facts, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _ := ctx.Value(watchKey{}).(int)
	w.ended[n]++
}

// refusing is a scanner that objects.
type refusing struct{ *idle }

func (refusing) ScanArgs(context.Context, *vault.Facts) vault.Decision {
	return vault.Denied(vault.CodeScan, "/x", "")
}

// TestWatch: who watches learns of every call once, how it ended and which stages it
// passed, and changes nothing about it.
func TestWatch(t *testing.T) {
	w := &watcher{stages: map[int][]string{}, ended: map[int]int{}}
	s := &idle{vault.Grant{Task: "t-1", Agent: "spiffe://test/agent/a/b/c", Proof: vault.ProofSession}}
	g := &gateway.Gateway{
		Verifier: s, Catalogue: shelf{}, Flow: s, Policy: s, Scanner: s, Approver: nobody{}, Runner: s, Recorder: s,
		Tasks: new(gateway.Tasks), Log: slog.New(slog.DiscardHandler), Meter: w, Tracer: w,
	}
	for _, id := range []string{"c-1", "c-1"} { // the second is answered from the first
		if _, err := g.Handle(t.Context(), call(id), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Decide(t.Context(), call("c-2"), nil); err != nil {
		t.Fatal(err)
	}
	g.Scanner = refusing{s}
	if _, err := g.Handle(t.Context(), call("c-3"), nil); err == nil {
		t.Fatal("not refused")
	}
	g.Refuse(t.Context(), call("c-4"), vault.Grant{}, vault.NewDenial(vault.CodeRequestMalformed, "", nil))
	g.CountStranger("session", vault.CodeProof)
	name := call("c-1").Target.Name
	want := []string{"allow " + name, "allow ", "allow " + name, "deny scan.content " + name, "deny request.malformed ", "stranger proof"}
	if !slices.Equal(w.verdicts, want) {
		t.Errorf("counted %q, want %q", w.verdicts, want)
	}
	for n, want := range map[int]string{
		1: "verify resolve check decide scan admit run release", 2: "verify", 3: "verify resolve check decide scan admit run release", 4: "verify resolve check decide scan",
	} {
		if got := strings.Join(w.stages[n], " "); got != want || w.ended[n] != 1 {
			t.Errorf("call %d: stages %s, ended %d times", n, got, w.ended[n])
		}
	}
}
