package daemon_test

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
)

// Kills of one test run, and how many of them one data directory goes through: the
// ledger is verified from its first record after every kill, so it must not grow
// for ever.
const (
	kills     = 200
	killsLong = 10_000
	killsKept = 50
)

// meterLimit is the budget of the task whose counter must survive every kill.
const meterLimit = 150

const loadTask = `version: 1
purpose: Work while the daemon is killed
principal: user:load@example.com
life: 24h
tools: {up.act: {args: any}}
budgets: {calls: 10000000}
`

const meterTask = `version: 1
purpose: Spend a small budget while the daemon is killed
principal: user:meter@example.com
life: 24h
tools: {up.act: {args: any}}
budgets: {calls: 150}
`

// TestKill kills the real program with SIGKILL at random moments, while it starts
// and while several connections make calls, and looks at what is left after each
// kill: no effect without its durable intent, nothing acknowledged lost, every
// intent closed once, budgets where they were, a ledger that verifies and that
// continues the one before the kill.
func TestKill(t *testing.T) {
	n, each := kills, killsKept
	switch {
	case os.Getenv("PVAULT_LONG") != "":
		n = killsLong
	case testing.Short():
		n = 10
	}
	total, binary := new(killCounts), pvaultBinary(t)
	for done := 0; done < n; done += each {
		k := newKillRig(t, binary)
		k.rounds(min(each, n-done))
		k.finish()
		total.add(k.counts)
	}
	t.Logf("%d kills: %+v", n, *total)
	if total.effects == 0 || total.unknown == 0 || total.done == 0 {
		t.Errorf("the kills hit nothing, so this shows nothing: %+v", *total)
	}
}

// killCounts says what the kills hit, so that a test that shows nothing fails.
type killCounts struct {
	effects, done, unknown, early, refused int
}

func (c *killCounts) add(d killCounts) {
	c.effects += d.effects
	c.done += d.done
	c.unknown += d.unknown
	c.early += d.early
	c.refused += d.refused
}

// A life is what the ledger says about one call id.
type life struct {
	run     string
	intent  uint64
	intents int
	closing uint64
	closed  []string // phases that close it
}

// An ack is an answer that reached a caller.
type ack struct {
	id      string
	event   uint64
	refused bool // the event is a refusal, else the outcome
	settled bool // a later call of the same connection was acknowledged too
}

// A killRig is a data directory that outlives many daemons.
type killRig struct {
	*program

	up         *upstream
	key        string // of the ledger, pinned at the first start
	checkpoint []byte // of the last bundle that verified
	load       admin.Task
	meter      admin.Task

	next   uint64           // first event not read yet
	lives  map[string]*life // by call id
	events map[uint64]record
	sent   int
	ran    map[string]bool // effects that were looked at
	looked int
	counts killCounts
}

func newKillRig(t *testing.T, binary string) *killRig {
	t.Helper()
	k := &killRig{
		program: newProgram(t, binary), up: newUpstream(t, "act"),
		lives: map[string]*life{}, events: map[uint64]record{}, ran: map[string]bool{},
	}
	// Some effects take a moment, so that kills find calls in flight.
	k.up.onCall(func(w http.ResponseWriter, r *http.Request, c effect) {
		pause := time.NewTimer(time.Duration(rand.IntN(8)) * time.Millisecond)
		defer pause.Stop()
		select {
		case <-pause.C:
			replyText(w, c, "did "+c.id)
		case <-r.Context().Done():
		}
	})

	k.start()
	k.key = k.status().LedgerKey
	k.addURL("up", k.up.url)
	k.load, k.meter = k.mint(loadTask), k.mint(meterTask)
	return k
}

// rounds kills the daemon n times.
func (k *killRig) rounds(n int) {
	k.t.Helper()
	for i := 0; i < n && !k.t.Failed(); i++ {
		if i%8 == 7 {
			// This one hits the start: data is opened, open intents are being closed.
			k.kill()
			k.spawn(func(io.Reader) error {
				time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
				return nil
			})
			k.counts.early++
			k.kill()
			k.start()
			k.look(nil)
			continue
		}
		acks := k.burst(time.Duration(20+rand.IntN(130)) * time.Millisecond)
		k.start()
		k.look(acks)
	}
}

// burst makes calls on several connections and kills the daemon under them. It
// returns what was acknowledged.
func (k *killRig) burst(d time.Duration) []ack {
	k.t.Helper()
	const connections = 4
	k.sent++
	round := k.sent
	var wg sync.WaitGroup
	acks := make([][]ack, connections)
	socket := k.conf.Socket()
	for w := range connections {
		wg.Go(func() {
			c := admin.NewClient(socket)
			defer c.Close()
			for i := 0; ; i++ {
				task := k.load
				if i%16 == 5 {
					task = k.meter
				}
				id := fmt.Sprintf("c-%d-%d-%d", round, w, i)
				a, err := c.Call(k.t.Context(), callOf(task, id))
				if err != nil {
					return // it is dead
				}
				for j := range acks[w] {
					acks[w][j].settled = true
				}
				switch {
				case a.Denial == nil:
					acks[w] = append(acks[w], ack{id: id, event: *a.Event})
				case a.Denial.Reason.Code == vault.CodeCapabilityBudget && task.ID == k.meter.ID:
					if a.Denial.Event != nil {
						acks[w] = append(acks[w], ack{id: id, event: *a.Denial.Event, refused: true})
					}
				case a.Denial.Executed == vault.ExecutedUnknown || a.Denial.Reason.Code == vault.CodeCancelled:
					// The connection broke as the daemon died.
				default:
					k.t.Errorf("call %s: %v", id, a.Denial)
					return
				}
			}
		})
	}
	time.Sleep(d)
	k.kill()
	wg.Wait()
	var all []ack
	for _, list := range acks {
		all = append(all, list...)
	}
	return all
}

func callOf(task admin.Task, id string) admin.CallRequest {
	return admin.CallRequest{Token: task.Token, ID: id, Kind: vault.KindTool, Server: "up", Name: "act", Args: json.RawMessage(`{"id":"` + id + `"}`)}
}

// look holds everything that must be true after a restart.
func (k *killRig) look(acks []ack) {
	k.t.Helper()
	k.read()
	k.verify()
	effects := k.up.effects()
	for _, e := range effects[k.looked:] {
		l := k.lives[e.id]
		if l == nil || l.intents != 1 {
			k.t.Errorf("call %s was executed and the ledger has no intent of it: %+v", e.id, l)
		}
		if k.ran[e.id] {
			k.t.Errorf("call %s was executed twice", e.id)
		}
		k.ran[e.id] = true
		k.counts.effects++
	}
	k.looked = len(effects)
	for _, a := range acks {
		k.acknowledged(a)
	}
	spent := 0
	var unknown, done string
	for id, l := range k.lives {
		if l.intents == 0 {
			continue // refused only
		}
		if l.intents != 1 || len(l.closed) != 1 {
			k.t.Errorf("call %s has %d intents and the ends %v", id, l.intents, l.closed)
		}
		if l.run == string(k.meter.ID) {
			spent++
		}
		switch l.closed[0] {
		case string(vault.PhaseUnknown):
			unknown = id
		case string(vault.PhaseDone):
			done = id
		}
	}
	if spent > meterLimit {
		k.t.Errorf("%d calls ran on a budget of %d", spent, meterLimit)
	}
	k.retry(unknown, vault.CodeCallUnknown, vault.ExecutedUnknown)
	k.retry(done, vault.CodeCallClosed, vault.ExecutedYes)
}

// read takes in the events that are new.
func (k *killRig) read() {
	k.t.Helper()
	err := k.admin.Tail(k.t.Context(), k.next, "", false, false, func(raw json.RawMessage) error {
		var rec record
		if err := json.Unmarshal(raw, &rec); err != nil {
			return err
		}
		if rec.Leaf.Index != k.next {
			return fmt.Errorf("event %d where %d belongs", rec.Leaf.Index, k.next)
		}
		k.next++
		k.events[rec.Leaf.Index] = rec
		if rec.Leaf.Class != string(vault.ClassCall) {
			return nil
		}
		l := k.lives[rec.Leaf.Call]
		if l == nil {
			l = &life{run: rec.Leaf.Run}
			k.lives[rec.Leaf.Call] = l
		}
		switch p := vault.Phase(rec.Leaf.Phase); {
		case p == vault.PhaseIntent:
			l.intents++
			l.intent = rec.Leaf.Index
		case p.Closes():
			l.closed = append(l.closed, rec.Leaf.Phase)
			l.closing = rec.Leaf.Index
			if p == vault.PhaseUnknown {
				k.counts.unknown++
			} else {
				k.counts.done++
			}
		case p == vault.PhaseRefused:
			k.counts.refused++
		}
		return nil
	})
	if err != nil {
		k.t.Fatalf("read events: %v\n%s", err, k.stderr)
	}
}

// acknowledged holds that what a caller was told is on record. The intent is
// durable when the answer leaves; the outcome is with the next commit, so it can
// only be demanded if one followed on the same connection.
func (k *killRig) acknowledged(a ack) {
	k.t.Helper()
	at := k.events[a.event].Leaf
	if a.refused {
		if at.Call != a.id || at.Phase != string(vault.PhaseRefused) {
			k.t.Errorf("refusal of %s was acknowledged as event %d, which is %s %s", a.id, a.event, at.Call, at.Phase)
		}
		return
	}
	l := k.lives[a.id]
	switch {
	case l == nil || l.intents != 1:
		k.t.Errorf("call %s was acknowledged and the ledger has no intent of it", a.id)
	case a.settled && (l.closing != a.event || at.Call != a.id || at.Phase != string(vault.PhaseDone)):
		k.t.Errorf("call %s was acknowledged as event %d, which is %s %s; it ends at %d with %v", a.id, a.event, at.Call, at.Phase, l.closing, l.closed)
	case !a.settled && l.closed[0] != string(vault.PhaseDone) && l.closed[0] != string(vault.PhaseUnknown):
		k.t.Errorf("call %s was acknowledged and ends with %v", a.id, l.closed)
	}
}

// retry sends a call of an earlier life again and expects to be refused.
func (k *killRig) retry(id string, code vault.Code, executed vault.Executed) {
	k.t.Helper()
	if id == "" {
		return
	}
	task := k.load
	if k.lives[id].run == string(k.meter.ID) {
		task = k.meter
	}
	before := k.up.ran(id)
	a, err := k.admin.Call(k.t.Context(), callOf(task, id))
	switch {
	case err != nil:
		k.t.Errorf("retry %s: %v", id, err)
	case a.Denial == nil || a.Denial.Reason.Code != code || a.Denial.Executed != executed:
		k.t.Errorf("retry of %s, which ended %v: %+v, want %s", id, k.lives[id].closed, a.Denial, code)
	case k.up.ran(id) != before:
		k.t.Errorf("retry of %s ran it again", id)
	}
}

// verify exports the whole ledger and verifies it under the pinned key, as the
// continuation of the one that was exported last.
func (k *killRig) verify() {
	k.t.Helper()
	bundle, err := k.admin.Export(k.t.Context(), admin.ExportRequest{})
	if err != nil {
		k.t.Fatalf("export: %v\n%s", err, k.stderr)
	}
	report, err := evidence.VerifyBytes(bundle, evidence.Options{Keys: []string{k.key}, Since: k.checkpoint})
	if err != nil || report.Problem != evidence.ProblemNone || !report.Complete {
		k.t.Fatalf("after a kill the ledger does not verify: %v\n%s", err, report)
	}
	k.checkpoint = fileOf(k.t, bundle, "checkpoint")
}

// openZip opens a bundle as the zip file that it is.
func openZip(t *testing.T, bundle []byte) *zip.Reader {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// finish spends what is left of the small budget: the counter came through every
// kill, so exactly its limit ran.
func (k *killRig) finish() {
	k.t.Helper()
	if k.t.Failed() {
		return
	}
	for i := range meterLimit + 1 {
		a, err := k.admin.Call(k.t.Context(), callOf(k.meter, fmt.Sprintf("c-last-%d", i)))
		if err != nil {
			k.t.Fatal(err)
		}
		if a.Denial != nil {
			if a.Denial.Reason.Code != vault.CodeCapabilityBudget {
				k.t.Errorf("the budget ends with %v", a.Denial)
			}
			break
		}
	}
	k.read()
	intents := 0
	for _, l := range k.lives {
		if l.run == string(k.meter.ID) {
			intents += l.intents
		}
	}
	if intents != meterLimit {
		k.t.Errorf("%d calls ran on a budget of %d", intents, meterLimit)
	}
	k.kill()
}
