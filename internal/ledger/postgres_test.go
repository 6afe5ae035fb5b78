//go:build unix

package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestOnPostgres runs the tests of the ledger again on PostgreSQL, and those that
// need a server. One server for all: to start one takes seconds.
func TestOnPostgres(t *testing.T) {
	pg := vaulttest.StartPostgres(t)
	n := 0
	database = func(t testing.TB) string {
		n++
		return pg.URL(t, fmt.Sprintf("v%d", n))
	}
	defer func() { database = nil }()
	for name, test := range map[string]func(*testing.T){
		"store failures":              TestStoreFailures,
		"commits fail fast":           TestWhileTheStoreIsDownCommitFailsFast,
		"another daemon takes over":   TestAnotherDaemonTakesOver,
		"many producers do not fork":  TestManyProducersDoNotFork,
		"recovered":                   TestRecoveredIsWhereTheLastDaemonStopped,
		"events that are not taken":   TestEventsALedgerDoesNotTake,
		"a run bundle verifies":       TestRunBundleFromTheLedgerVerifies,
		"tail":                        TestTailWaitsForMore,
		"large fields":                TestLargeFieldIsCommittedToAndNotKept,
		"erased keys":                 TestErasedKeyLeavesEveryProofAsItWas,
		"one field erased":            TestEraseOneField,
		"a subject erased":            TestEraseSubjectReachesBackups,
		"erasures refused":            TestEraseRefuses,
		"tiles":                       TestTiles,
		"missing checkpoints":         TestMissingOrForeignCheckpointIsNotPassedOver,
		"ledgers take over in a race": testTakeOver,
		"batches behind each other":   testPipeline,
	} {
		t.Run(name, test)
	}
	t.Run("the server is restarted", func(t *testing.T) { testServerRestart(t, pg) })
	t.Run("yesterday's dump is restored", func(t *testing.T) { testDump(t, pg, &n) })
	t.Run("kill with a local log", func(t *testing.T) { kill(t, database(t), 2, true) })
	t.Run("kill", func(t *testing.T) {
		kills := 4
		switch {
		case os.Getenv("PVAULT_LONG") != "":
			kills = 2000
		case testing.Short():
			kills = 2
		}
		kill(t, database(t), kills, false)
	})
}

// testTakeOver has ledgers on one database, each with connections of its own,
// take over from each other while producers write to all of them. What any of
// them acknowledged is on record once, at the place it said.
func testTakeOver(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	acked := map[uint64]vault.Digest{}
	var wg sync.WaitGroup
	leds := []*Ledger{r.led}
	for range 2 {
		next := &rig{t: t, dir: r.dir, url: r.url, key: r.key}
		last := leds[len(leds)-1]
		for p := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					got, err := last.Commit(context.Background(), intent(vault.TaskID(fmt.Sprintf("t-%d", p)), fmt.Sprint(i)))
					if err != nil {
						return
					}
					mu.Lock()
					if _, twice := acked[got.Index]; twice {
						t.Errorf("place %d was given twice", got.Index)
					}
					acked[got.Index] = got.Leaf
					mu.Unlock()
				}
			})
		}
		before := last.Head().Size
		eventually(t, "the leader writes", func() bool { return last.Head().Size > before+20 })
		next.openStore()
		var led *Ledger
		// The leader writes on while the next one reads, so its idea of the head is
		// soon old: it waits until the other stops, as a lease makes it, or tries again.
		eventually(t, "another takes over", func() bool {
			var err error
			led, err = Open(context.Background(), next.cfg)
			return err == nil
		})
		t.Cleanup(func() { led.Close() })
		eventually(t, "the stale leader knows", func() bool {
			_, err := last.Commit(context.Background(), &vault.Event{Class: vault.ClassDaemon, Phase: vault.PhaseNoted})
			return errors.Is(last.Health(), ErrLost) || errors.Is(err, ErrLost)
		})
		leds = append(leds, led)
	}
	r.led = leds[len(leds)-1]
	r.led.Close()
	wg.Wait()
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	r.check()
	checkAcked(t, r, acked)
}

// testPipeline has so many producers that batches are staged behind each other,
// and now and then lets one fail, or happen and fail.
func testPipeline(t *testing.T) {
	r := newRig(t)
	acked := map[uint64]vault.Digest{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := make(chan struct{})
	halt := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer halt()
	for p := range 6 * pipelined { // with fewer, a large batch and a small one can take turns
		wg.Go(func() {
			for i := 0; ; {
				select {
				case <-stop:
					return
				default:
				}
				got, err := r.led.Commit(context.Background(), intent(vault.TaskID(fmt.Sprintf("t-%d", p%50)), fmt.Sprint(i)))
				if err != nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				i++
				mu.Lock()
				if _, twice := acked[got.Index]; twice {
					t.Errorf("place %d was given twice", got.Index)
				}
				acked[got.Index] = got.Leaf
				mu.Unlock()
			}
		})
	}
	// A store that is slow until enough wait: on a busy host few come while it writes.
	enough := func() bool {
		r.led.mu.Lock()
		defer r.led.mu.Unlock()
		return r.led.staged != nil || r.led.open != nil && r.led.open.waits >= pipelined
	}
	slow := func(real func() error) error {
		for i := 0; i < 1000 && !enough(); i++ {
			time.Sleep(time.Millisecond)
		}
		return real()
	}
	staged := func() int {
		r.fault.mu.Lock()
		defer r.fault.mu.Unlock()
		return r.fault.staged
	}
	for i := range 4 {
		before := staged()
		r.fault.set(slow)
		eventually(t, "a batch is staged behind another", func() bool { return staged() > before })
		if i%2 == 0 {
			r.fault.set(func(func() error) error { return errDisk })
		} else {
			r.fault.set(func(real func() error) error { return errors.Join(real(), errDisk) })
		}
		eventually(t, "it notices", func() bool { return r.led.Health() != nil || i%2 == 1 })
		r.fault.set(nil)
	}
	halt()
	r.check()
	checkAcked(t, r, acked)
}

func checkAcked(t *testing.T, r *rig, acked map[uint64]vault.Digest) {
	t.Helper()
	left := len(acked)
	for e, err := range r.cfg.Store.Entries(t.Context(), 0, r.led.Head().Size) {
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := acked[e.Index]; ok {
			left--
			if e.Hash != want {
				t.Fatalf("acknowledged record %d is another one", e.Index)
			}
		}
	}
	if left != 0 || len(acked) == 0 {
		t.Fatalf("%d of %d acknowledged records are lost", left, len(acked))
	}
}

// testServerRestart kills the server under producers: commits fail, then go on,
// and nothing that was acknowledged is lost.
func testServerRestart(t *testing.T, pg *vaulttest.Postgres) {
	r := newRig(t)
	acked := map[uint64]vault.Digest{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for p := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				got, err := r.led.Commit(context.Background(), intent(vault.TaskID(fmt.Sprintf("t-%d", p)), fmt.Sprint(i)))
				if err == nil {
					mu.Lock()
					acked[got.Index] = got.Leaf
					mu.Unlock()
				} else {
					time.Sleep(time.Millisecond) // refused at once while the server is down
				}
			}
		})
	}
	for range 2 {
		before := r.led.Head().Size
		eventually(t, "it writes", func() bool { return r.led.Head().Size > before+20 })
		pg.Kill()
		eventually(t, "it notices", func() bool { return r.led.Health() != nil })
		pg.Start(t)
		eventually(t, "it goes on", func() bool { return r.led.Health() == nil })
	}
	close(stop)
	wg.Wait()
	r.check()
	checkAcked(t, r, acked)
}

// testDump restores the database as it was before the last checkpoint.
func testDump(t *testing.T, pg *vaulttest.Postgres, n *int) {
	r := newRig(t)
	r.commit(opened("t-1"))
	r.led.Close()
	r.db.Close()
	of := fmt.Sprintf("v%d", *n)
	pg.SQL(t, "postgres", fmt.Sprintf("CREATE DATABASE dump TEMPLATE %s", of))
	if err := r.reopen(); err != nil {
		t.Fatal(err)
	}
	r.commit(intent("t-1", "c-1"))
	r.led.Close()
	r.db.Close()
	pg.SQL(t, "postgres", fmt.Sprintf("DROP DATABASE %s WITH (FORCE)", of))
	pg.SQL(t, "postgres", fmt.Sprintf("ALTER DATABASE dump RENAME TO %s", of))
	if err := r.reopen(); !errors.Is(err, ErrRollback) {
		t.Fatalf("opened yesterday's store: %v", err)
	}
	in, err := Inspect(t.Context(), r.cfg)
	if err != nil || !errors.Is(in.Problem, ErrRollback) || in.Size != 1 || in.Signed.Size != 2 || !in.Own {
		t.Fatalf("found %+v, %v", in, err)
	}
	archive(t, in, 1)
	if _, err := os.Stat(filepath.Join(r.dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
}

func TestADaemonThatCannotConfirmItsLeaseDenies(t *testing.T) {
	r := newRig(t)
	var lost error
	r.led.Close()
	r.cfg.Confirm = func() error { return lost }
	r.open()
	r.commit(opened("t-1"))
	lost = errors.New("no lease")
	if _, err := r.led.Commit(t.Context(), intent("t-1", "c-1")); !denied(err) || !errors.Is(err, lost) {
		t.Fatalf("allowed without a lease: %v", err)
	}
	// What has happened is still recorded.
	if _, err := r.led.Sequence(t.Context(), &vault.Event{Class: vault.ClassDaemon, Phase: vault.PhaseNoted}); err != nil {
		t.Fatal(err)
	}
	if rep := r.check(); rep.Records < 1 {
		t.Fatal(rep)
	}
}
