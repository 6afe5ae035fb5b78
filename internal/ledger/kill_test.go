package ledger

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// TestKill kills a real process with SIGKILL while eight producers write, and
// looks at what is left: it opens, everything verifies, and every intent that was
// acknowledged is there at its place.
func TestKill(t *testing.T) {
	if dir := os.Getenv("LEDGER_TEST_DIR"); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	kills := 12
	switch {
	case os.Getenv("PVAULT_LONG") != "":
		kills = 10_000
	case testing.Short():
		kills = 3
	}
	for name, wal := range map[string]bool{"sqlite": false, "local log": true} {
		t.Run(name, func(t *testing.T) { kill(t, "", kills/2, wal) })
	}
}

func kill(t *testing.T, url string, kills int, wal bool) {
	dir := t.TempDir()
	acked := map[uint64]vault.Digest{}
	for i := range kills {
		killOnce(t, url, dir, wal, acked)
		r := &rig{t: t, dir: dir, url: url, wal: wal, key: testKey("ledger")}
		r.openStore()
		r.open()
		r.check()
		for idx, want := range acked {
			for e, err := range r.cfg.Store.Entries(t.Context(), idx, idx+1) {
				if err != nil || e.Hash != want {
					t.Fatalf("kill %d: acknowledged record %d is another one: %v", i, idx, err)
				}
			}
			if idx >= r.led.Head().Size {
				t.Fatalf("kill %d: acknowledged record %d is lost, the ledger has %d", i, idx, r.led.Head().Size)
			}
		}
		for _, o := range r.led.Recovered().Open {
			r.commit(o.Unknown())
		}
		r.led.Close()
		r.closeStore()
	}
	if len(acked) == 0 {
		t.Fatal("the child wrote nothing, so this shows nothing")
	}
}

// TestOnALocalLog runs tests of the ledger again with a local log before SQLite.
func TestOnALocalLog(t *testing.T) {
	localLog = true
	defer func() { localLog = false }()
	for name, test := range map[string]func(*testing.T){
		"store failures":             TestStoreFailures,
		"commits fail fast":          TestWhileTheStoreIsDownCommitFailsFast,
		"many producers do not fork": TestManyProducersDoNotFork,
		"recovered":                  TestRecoveredIsWhereTheLastDaemonStopped,
		"events that are not taken":  TestEventsALedgerDoesNotTake,
		"a run bundle verifies":      TestRunBundleFromTheLedgerVerifies,
		"tail":                       TestTailWaitsForMore,
		"large fields":               TestLargeFieldIsCommittedToAndNotKept,
	} {
		t.Run(name, test)
	}
}

// killOnce runs a child on dir, kills it at a random moment, and adds what it
// said was durable to acked.
func killOnce(t *testing.T, url, dir string, wal bool, acked map[uint64]vault.Digest) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), "LEDGER_TEST_DIR="+dir, "LEDGER_TEST_URL="+url, fmt.Sprint("LEDGER_TEST_WAL=", wal))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "durable ")
		if !ok {
			continue
		}
		// The first line starts the clock: before it the child only starts up.
		once.Do(func() {
			time.AfterFunc(time.Duration(rand.IntN(60_000))*time.Microsecond, func() { cmd.Process.Kill() })
		})
		var idx uint64
		var hash string
		if n, _ := fmt.Sscanf(rest, "%d %s", &idx, &hash); n != 2 || len(hash) != 64 {
			continue // the line at which it died
		}
		d, err := vault.ParseDigest(hash)
		if err != nil {
			t.Fatal(err)
		}
		acked[idx] = d
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
}

func writeUntilKilled(t *testing.T, dir string) {
	ctx := context.Background()
	db, err := openDB(ctx, os.Getenv("LEDGER_TEST_URL"), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := &rig{t: t, dir: dir, key: testKey("ledger"), db: db}
	tenant, err := db.Tenant(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := openFileKeys(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	var rows Store = tenant
	if os.Getenv("LEDGER_TEST_WAL") == "true" {
		if rows, err = tenant.OpenWAL(ctx, filepath.Join(dir, "wal")); err != nil {
			t.Fatal(err)
		}
	}
	r.cfg = Config{Store: rows, Origin: origin, Key: r.key, Keys: keys, CheckpointFile: filepath.Join(dir, "checkpoint"), Every: 5 * time.Millisecond}
	l, err := Open(ctx, r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				e := intent(vault.TaskID(fmt.Sprintf("t-%d", p)), fmt.Sprint(i))
				got, err := l.Commit(ctx, e)
				if err != nil {
					return
				}
				fmt.Printf("durable %d %s\n", got.Index, got.Leaf)
				if _, err := l.Sequence(ctx, outcomeOf(got, e, vault.PhaseDone)); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}
