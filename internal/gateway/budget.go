package gateway

import (
	"crypto/sha256"
	"errors"
	"time"

	"github.com/pilox/vault"
)

// A member is the first half of SHA-256 of a recipient or host. It lives in memory
// only: who was reached stands in the ledger in encrypted fields and nowhere else.
type member [16]byte

func memberOf(name string) member {
	sum := sha256.Sum256([]byte(name))
	return member(sum[:])
}

// A Reach is who gets something of a call: the recipients and hosts that it names,
// each in one spelling.
type Reach struct{ Recipients, Hosts []string }

// of returns those that count under the unit of a debit.
func (r *Reach) of(unit string) []string {
	switch unit {
	case vault.UnitRecipients:
		return r.Recipients
	case vault.UnitHosts:
		return r.Hosts
	}
	return nil
}

// distinct reports whether a counter of the unit counts different ones.
func distinct(unit string) bool { return unit == vault.UnitRecipients || unit == vault.UnitHosts }

// needsReach reports whether any of the debits does.
func needsReach(debits []vault.Debit) bool {
	for i := range debits {
		if distinct(debits[i].Unit) {
			return true
		}
	}
	return false
}

var errBudget = errors.New("a budget would be exceeded")

// debit takes all debits or none and returns them as they were taken: the amount
// of a distinct counter is how many are new under it, that of a counter of time is
// the longest the call may run, at most call.
func (t *Tasks) debit(debits []vault.Debit, r Reach, call time.Duration) ([]vault.Debit, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.get("")
	debits = append([]vault.Debit(nil), debits...)
	for i := range debits {
		d := &debits[i]
		have := t.counters[d.Counter]
		for _, earlier := range debits[:i] {
			if earlier.Counter == d.Counter {
				have += earlier.Amount
			}
		}
		switch {
		case distinct(d.Unit):
			d.Amount, d.Kept = t.fresh(d.Counter, r.of(d.Unit)), true
		case d.Unit == vault.UnitWall:
			d.Amount = min(max(call.Milliseconds(), 1), d.Limit-have)
			if d.Amount <= 0 {
				return nil, overBudget(d)
			}
		}
		if d.Amount < 0 || d.Limit < 0 || have > d.Limit || d.Amount > d.Limit-have {
			return nil, overBudget(d)
		}
	}
	for i := range debits {
		d := &debits[i]
		t.counters[d.Counter] += d.Amount
		if distinct(d.Unit) {
			for _, name := range r.of(d.Unit) {
				t.join(d.Counter, memberOf(name))
			}
		}
	}
	return debits, nil
}

func overBudget(d *vault.Debit) error {
	code := vault.CodeCapabilityBudget
	if d.Unit == "uses" {
		code = vault.CodeApprovalInvalid
	}
	denial := vault.NewDenial(code, "", errBudget)
	denial.Reason.Detail = d.Unit + " of " + d.Counter
	return denial
}

// fresh counts the names that are new under a counter, each once. Under t.mu.
func (t *Tasks) fresh(counter string, names []string) int64 {
	known := t.members[counter]
	seen := make(map[member]struct{}, len(names))
	for _, name := range names {
		m := memberOf(name)
		if _, ok := known[m]; !ok {
			seen[m] = struct{}{}
		}
	}
	return int64(len(seen))
}

// join notes that m was reached under a counter. Under t.mu.
func (t *Tasks) join(counter string, m member) {
	if t.members[counter] == nil {
		t.members[counter] = make(map[member]struct{})
	}
	t.members[counter][m] = struct{}{}
}

// timeLeft returns the least time that the debits leave a call, false if none of
// them is about time.
func timeLeft(debits []vault.Debit) (least time.Duration, ok bool) {
	for i := range debits {
		if d := &debits[i]; d.Unit == vault.UnitWall {
			if t := time.Duration(d.Amount) * time.Millisecond; !ok || t < least {
				least, ok = t, true
			}
		}
	}
	return least, ok
}

// settle gives back the time that a call did not use and returns what stands in its
// outcome for that. A call that outran its time by a scheduler's delay has used
// what it was given.
func (t *Tasks) settle(debits []vault.Debit, ran time.Duration) []vault.Debit {
	used := (ran + time.Millisecond - 1).Milliseconds()
	var back []vault.Debit
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range debits {
		if d.Unit != vault.UnitWall || used >= d.Amount {
			continue
		}
		d.Amount = used - d.Amount
		t.counters[d.Counter] += d.Amount
		back = append(back, d)
	}
	return back
}

// refund gives back the debits that do not outlive a call that was not dispatched.
func (t *Tasks) refund(debits []vault.Debit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range debits {
		if d := &debits[i]; !d.Kept {
			t.counters[d.Counter] -= d.Amount
		}
	}
}

// giveBack undoes debit for a call whose intent was not written. Who counts as
// reached stays reached: another call may have passed for free on it meanwhile.
func (t *Tasks) giveBack(debits []vault.Debit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range debits {
		if d := &debits[i]; !distinct(d.Unit) {
			t.counters[d.Counter] -= d.Amount
		}
	}
}

// Spent returns how much of a counter is taken.
func (t *Tasks) Spent(counter string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counters[counter]
}
