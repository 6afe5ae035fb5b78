package daemon_test

import (
	"crypto/ed25519"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// hand attenuates a capability to a new holder, offline, as an agent does.
func (h holder) hand(t *testing.T, token string) (holder, string) {
	t.Helper()
	return h.handLink(t, token, capability.Link{})
}

// handLink is hand with more in the link.
func (h holder) handLink(t *testing.T, token string, link capability.Link) (holder, string) {
	t.Helper()
	chain, err := capability.ParseText(token)
	if err != nil {
		t.Fatal(err)
	}
	to := newHolder(t)
	public, ok := to.key.Public().(ed25519.PublicKey)
	if !ok {
		t.Fatal("not Ed25519")
	}
	key, err := capability.KeyOf(public)
	if err != nil {
		t.Fatal(err)
	}
	link.Holder = capability.HeldBy(key)
	chain, err = capability.Attenuate(chain, link, capability.Signer{Key: h.key})
	if err != nil {
		t.Fatal(err)
	}
	return to, chain.Text()
}

// payTask grants payments of up to 9,000 and 10,000 in all.
func payTask(purpose string) string {
	return "version: 1\npurpose: " + purpose + "\nprincipal: user:clerk@example.com\nlife: 30m\n" +
		"tools: {up.pay: {args: {id: {max_length: 20}, n: {decimal: [0, 9000]}, to: {exact: EUR}}}}\n" +
		"budgets: {calls: 1000, \"sum(up.pay.n, EUR)\": 10000, recipients: 2}\ndelegate: {depth: 2}\n"
}

// TestThreeTransfers holds the classic: three payments of 9,000 under a limit of
// 10,000. The second is refused, by one agent, by sub-agents that race, and after a
// restart.
func TestThreeTransfers(t *testing.T) {
	r := startDaemon(t, nil)
	up := newUpstream(t, "pay")
	server := r.addURL("up", up.url)
	pay := func(s session, id string) bool {
		args := fmt.Sprintf(`{"id":%q,"n":9000,"to":"EUR"}`, id)
		_, body := r.post(t, s.sign(t, server.ID, id, "pay", args), id, "pay", args)
		if !strings.Contains(body, vault.DenialKey) {
			return true
		}
		if !strings.Contains(body, string(vault.CodeCapabilityBudget)) {
			t.Errorf("%s: %s", id, body)
		}
		return false
	}
	boss := newHolder(t)
	task := r.mintBound(payTask("pay once"), boss.bind())
	s := boss.open(t, r, task.Token)
	for i, want := range []bool{true, false, false} {
		if got := pay(s, fmt.Sprintf("one-%d", i)); got != want {
			t.Errorf("payment %d went through: %v", i, got)
		}
	}

	// Two sub-agents with capabilities of their own, made offline, at the same time.
	race := r.mintBound(payTask("pay in a race"), boss.bind())
	var went atomic.Int32
	var wg sync.WaitGroup
	for a := range 2 {
		sub, token := boss.hand(t, race.Token)
		s := sub.open(t, r, token)
		wg.Go(func() {
			for i := range 3 {
				if pay(s, fmt.Sprintf("race-%d-%d", a, i)) {
					went.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := went.Load(); n != 1 {
		t.Errorf("%d payments went through in the race, want 1", n)
	}

	// A restart forgets nothing.
	last := r.mintBound(payTask("pay before a restart"), boss.bind())
	if !pay(boss.open(t, r, last.Token), "before") {
		t.Error("the first payment was refused")
	}
	r.stop()
	r.start()
	if pay(boss.open(t, r, last.Token), "after") {
		t.Error("a restart gave the budget back")
	}
	for id, want := range map[string]int{"one-0": 1, "one-1": 0, "one-2": 0, "before": 1, "after": 0} {
		if n := up.ran(id); n != want {
			t.Errorf("%s ran %d times", id, n)
		}
	}
	r.wantSound()
}

// TestSubAgentsShareABudget: sixty-four workers of eight managers of one boss, each with
// a capability of its own that was made offline, race for the boss's sum, of which no
// manager may hand out more than a share. Not one payment too many goes through, nor one
// too few, over a restart in the middle.
func TestSubAgentsShareABudget(t *testing.T) {
	const managers, workers, amount, share, all = 8, 8, 90, 2000, 10_000
	r := startDaemon(t, nil)
	up := newUpstream(t, "pay")
	server := r.addURL("up", up.url)
	id, err := vault.ParseDigest(server.ID)
	if err != nil {
		t.Fatal(err)
	}
	boss := newHolder(t)
	root := r.mintBound(strings.Replace(payTask("pay through sixty-four"), ", recipients: 2", "", 1), boss.bind()).Token
	of := capability.Budgets{Sums: []capability.Sum{{
		Kind: vault.KindTool, Server: vault.ServerID(id), Name: "pay", Arg: "/n", UnitArg: "/to", Unit: "EUR", Limit: share * 1e6,
	}}}
	type worker struct {
		holder
		token string
	}
	var hands [managers * workers]worker
	for m := range managers {
		manager, token := boss.handLink(t, root, capability.Link{Budgets: &of})
		for w := range workers {
			hand, token := manager.hand(t, token)
			hands[m*workers+w] = worker{hand, token}
		}
	}
	race := func(round string, each int) (went int64) {
		var n atomic.Int64
		var wg sync.WaitGroup
		for i, h := range hands {
			s := h.open(t, r, h.token)
			wg.Go(func() {
				for j := range each {
					id := fmt.Sprintf("m%d-%d-%s-%d", i/workers, i, round, j)
					args := fmt.Sprintf(`{"id":%q,"n":%d,"to":"EUR"}`, id, amount)
					_, body := r.post(t, s.sign(t, server.ID, id, "pay", args), id, "pay", args)
					switch {
					case !strings.Contains(body, vault.DenialKey):
						n.Add(1)
					case !strings.Contains(body, string(vault.CodeCapabilityBudget)):
						t.Errorf("%s: %s", id, body)
					}
				}
			})
		}
		wg.Wait()
		return n.Load()
	}
	before := race("a", 1)
	r.stop()
	r.start()
	after := race("b", 2)
	if before != managers*workers || before+after != all/amount {
		t.Errorf("%d payments went through before the restart and %d after it, want %d and %d in all", before, after, managers*workers, all/amount)
	}
	paid := map[string]int{}
	for _, e := range up.effects() {
		manager, _, _ := strings.Cut(e.id, "-")
		paid[manager] += amount
		paid["all"] += amount
	}
	for who, sum := range paid {
		if who == "all" && sum != all/amount*amount || who != "all" && sum > share {
			t.Errorf("%s paid %d", who, sum)
		}
	}
	r.stop()
	r.start()
	if n := race("c", 1); n != 0 {
		t.Errorf("%d more went through after another restart", n)
	}
	r.wantSound()
}

// Recipients that were reached before a restart cost nothing after it, and new ones
// still do.
func TestRecipientsOverARestart(t *testing.T) {
	r := startDaemon(t, nil)
	up := newUpstream(t, "mail")
	r.addURL("up", up.url)
	task := r.mint("version: 1\npurpose: mail two people\nprincipal: user:clerk@example.com\nlife: 30m\ntools: {up.mail: {args: {to: {email_domain: [a.example]}}}}\nbudgets: {calls: 50, recipients: 2}\n")
	send := func(to string, code vault.Code) {
		t.Helper()
		a := r.call(task, "up", "mail", fmt.Sprintf(`{"to":%q}`, to))
		switch {
		case code == "" && a.Denial != nil && a.Denial.Reason.Code == vault.CodeApprovalRequired: // flow asks: it is past the budget
		case code == "":
			wantAllowed(t, a)
		default:
			wantDenied(t, a, code, vault.ExecutedNo)
		}
	}
	send("x@a.example", "")
	r.stop()
	r.start()
	send("x@a.example", "")
	send("x@A.Example", "") // another spelling of the same address
	send("y@a.example", "")
	send("z@a.example", vault.CodeCapabilityBudget)
	r.stop()
	r.start()
	send("z@a.example", vault.CodeCapabilityBudget)
	send("y@a.example", "")
}
