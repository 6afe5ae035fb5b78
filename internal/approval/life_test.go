package approval_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/approval"
)

// Time runs out in a bubble, so these take none.
func TestTime(t *testing.T) {
	t.Run("a call waits until somebody answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			var wg sync.WaitGroup
			start := time.Now()
			for range 3 {
				wg.Go(func() {
					if a, err := d.Answer(t.Context(), q, 25*time.Second); err != nil || a.ID != q.ID {
						t.Errorf("%+v %v", a, err)
					}
				})
			}
			time.Sleep(7 * time.Second)
			submit(t, d, q, "lead", approval.Allow)
			wg.Wait()
			if waited := time.Since(start); waited != 7*time.Second {
				t.Errorf("waited %v", waited)
			}
		})
	})
	t.Run("after the wait the call is pending and the question stays", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			start := time.Now()
			if _, err := d.Answer(t.Context(), q, 25*time.Second); code(err) != vault.CodeApprovalRequired || time.Since(start) != 25*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			submit(t, d, q, "lead", approval.Allow)
			if _, err := d.Answer(t.Context(), q, 25*time.Second); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("a caller that hangs up leaves the question", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := d.Answer(ctx, q, 25*time.Second)
			if code(err) != vault.CodeApprovalRequired || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("err = %v", err)
			}
			if len(d.Pending()) != 1 {
				t.Error("the question is gone")
			}
		})
	})
	t.Run("a question that nobody answers in time denies", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			start := time.Now()
			_, err := d.Answer(t.Context(), q, time.Hour)
			if code(err) != vault.CodeApprovalTimeout || vault.DenialOf(err).Verdict != "deny" {
				t.Errorf("err = %v", err)
			}
			if waited := time.Since(start); waited != 10*time.Minute {
				t.Errorf("waited %v", waited)
			}
			if _, err := d.Submit(t.Context(), sign(t, q, "lead", approval.Allow)); !errors.Is(err, approval.ErrClosed) {
				t.Errorf("too late: %v", err)
			}
			if again, err := d.Question(t.Context(), facts(), asked(), revision); err != nil || again.ID == q.ID {
				t.Errorf("asking anew: %+v %v", again.ID, err)
			}
		})
	})
	t.Run("an approval not used in time is worth nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			f := facts()
			q := ask(t, d, f, asked())
			submit(t, d, q, "lead", approval.Allow)
			a, err := d.Answer(t.Context(), q, 0)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10*time.Minute - time.Nanosecond)
			if err := d.Recheck(t.Context(), a, f, asked(), revision); err != nil {
				t.Errorf("just in time: %v", err)
			}
			time.Sleep(time.Nanosecond)
			if err := d.Recheck(t.Context(), a, f, asked(), revision); code(err) != vault.CodeApprovalTimeout {
				t.Errorf("too late: %v", err)
			}
		})
	})
	t.Run("an approver can make a yes shorter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			raw, err := approval.Sign(q.Bytes, public("gateway"), "key:lead", approval.Allow, time.Now().Add(time.Minute), func(b []byte) ([]byte, error) { return ed25519.Sign(key("lead"), b), nil })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Submit(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			a, err := d.Answer(t.Context(), q, 0)
			if err != nil || time.Until(a.Expires) != time.Minute {
				t.Fatalf("%+v %v", a, err)
			}
			time.Sleep(time.Minute)
			if _, err := d.Answer(t.Context(), q, 0); code(err) != vault.CodeApprovalRequired {
				t.Errorf("after a minute: %v", err)
			}
			if _, err := d.Submit(t.Context(), raw); !errors.Is(err, approval.ErrInvalid) {
				t.Errorf("the old yes again: %v", err)
			}
			submit(t, d, q, "lead", approval.Allow)
			if _, err := d.Answer(t.Context(), q, 0); err != nil {
				t.Errorf("a new yes: %v", err)
			}
		})
	})
	t.Run("a question does not outlive the capability", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			f := facts()
			f.Grant.Expires = time.Now().Add(time.Minute)
			if q := ask(t, d, f, asked()); time.Until(q.Expires) != time.Minute {
				t.Errorf("expires in %v", time.Until(q.Expires))
			}
			f.Call.Args = vault.MustArgs(`{}`)
			f.Grant.Expires = time.Now()
			if _, err := d.Question(t.Context(), f, asked(), revision); code(err) != vault.CodeCapabilityExpired {
				t.Errorf("an expired capability: %v", err)
			}
		})
	})
	t.Run("a denied question is not asked again until it expires", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			submit(t, d, q, "lead", approval.Deny)
			again, err := d.Question(t.Context(), facts(), asked(), revision)
			if err != nil || again.ID != q.ID {
				t.Fatalf("%s %v", again.ID, err)
			}
			if _, err := d.Answer(t.Context(), again, time.Hour); code(err) != vault.CodeApprovalDenied {
				t.Errorf("err = %v", err)
			}
			time.Sleep(10 * time.Minute)
			if again, err = d.Question(t.Context(), facts(), asked(), revision); err != nil || again.ID == q.ID {
				t.Errorf("after it expired: %s %v", again.ID, err)
			}
		})
	})
}

func TestBounds(t *testing.T) {
	distinct := func(f *vault.Facts, i int) *vault.Facts {
		f.Call.Args = vault.MustArgs(`{"n":"` + strings.Repeat("x", i) + `"}`)
		return f
	}
	t.Run("of one agent", func(t *testing.T) {
		d, _ := newDesk(t, nil)
		for i := range 32 {
			ask(t, d, distinct(facts(), i), asked())
		}
		_, err := d.Question(t.Context(), distinct(facts(), 99), asked(), revision)
		if code(err) != vault.CodeBusy || vault.DenialOf(err).Retry != vault.RetryAfter {
			t.Errorf("err = %v, want busy", err)
		}
		other := distinct(facts(), 99)
		other.Call.Agent = "spiffe://example.org/agent/acme/other/1"
		if _, err := d.Question(t.Context(), other, asked(), revision); err != nil {
			t.Errorf("another agent: %v", err)
		}
		if _, err := d.Question(t.Context(), distinct(facts(), 5), asked(), revision); err != nil {
			t.Errorf("an open question: %v", err)
		}
	})
	t.Run("in all", func(t *testing.T) {
		d, _ := newDesk(t, func(c *approval.Config) { c.MaxOpen = 2 })
		for i := range 2 {
			f := facts()
			f.Call.Agent += vault.AgentID(rune('a' + i))
			ask(t, d, f, asked())
		}
		if _, err := d.Question(t.Context(), facts(), asked(), revision); code(err) != vault.CodeBusy {
			t.Errorf("err = %v, want busy", err)
		}
	})
	t.Run("of arguments", func(t *testing.T) {
		d, _ := newDesk(t, nil)
		if _, err := d.Question(t.Context(), distinct(facts(), 1<<20), asked(), revision); code(err) != vault.CodeArgsTooLarge {
			t.Errorf("err = %v, want too large", err)
		}
	})
	t.Run("of text that is not UTF-8", func(t *testing.T) {
		d, _ := newDesk(t, nil)
		f := facts()
		f.Call.Principal = "user:\xff"
		if _, err := d.Question(t.Context(), f, asked(), revision); code(err) != vault.CodeInternal {
			t.Errorf("err = %v, want internal", err)
		}
	})
	t.Run("facts without a grant", func(t *testing.T) {
		d, _ := newDesk(t, nil)
		f := facts()
		f.Grant = nil
		if _, err := d.Question(t.Context(), f, asked(), revision); code(err) != vault.CodeInternal {
			t.Errorf("err = %v, want internal", err)
		}
		if err := d.Recheck(t.Context(), vault.Approval{}, f, asked(), revision); err == nil {
			t.Error("recheck passed")
		}
	})
}

func TestRestart(t *testing.T) {
	first, _ := newDesk(t, nil)
	f, denied, used, open := facts(), facts(), facts(), facts()
	denied.Call.Args = vault.MustArgs(`{"n":1}`)
	used.Call.Args = vault.MustArgs(`{"n":2}`)
	open.Call.Args = vault.MustArgs(`{"n":3}`)
	q, dq, uq, oq := ask(t, first, f, asked()), ask(t, first, denied, asked()), ask(t, first, used, asked()), ask(t, first, open, asked())
	submit(t, first, q, "lead", approval.Allow)
	submit(t, first, dq, "lead", approval.Deny)
	submit(t, first, uq, "lead", approval.Allow)
	first.Spend(t.Context(), vault.Approval{ID: uq.ID})
	b, err := first.Export()
	if err != nil {
		t.Fatal(err)
	}

	second, _ := newDesk(t, nil)
	if err := second.Import(b); err != nil {
		t.Fatal(err)
	}
	a, err := second.Answer(t.Context(), q, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Recheck(t.Context(), a, f, asked(), revision); err != nil {
		t.Error(err)
	}
	if _, err := second.Answer(t.Context(), dq, 0); code(err) != vault.CodeApprovalDenied {
		t.Errorf("denied: %v", err)
	}
	if _, err := second.Answer(t.Context(), uq, 0); code(err) != vault.CodeApprovalInvalid {
		t.Errorf("spent: %v", err)
	}
	submit(t, second, oq, "lead", approval.Allow)
	if again, err := second.Question(t.Context(), open, asked(), revision); err != nil || again.ID != oq.ID {
		t.Errorf("open: %s %v", again.ID, err)
	}

	for i := 0; i < len(b); i += 7 { // each costs four signatures
		bad := append([]byte(nil), b...)
		bad[i] ^= 1
		third, _ := newDesk(t, nil)
		if err := third.Import(bad); err != nil {
			continue
		}
		for _, x := range []vault.Question{dq, uq, oq} {
			if a, err := third.Answer(t.Context(), x, 0); err == nil {
				t.Fatalf("byte %d: %s became allowed by %s", i, x.ID, a.Approver)
			}
		}
	}
	stranger, _ := newDesk(t, func(c *approval.Config) { c.Signer = key("other gateway") })
	if err := stranger.Import(b); err == nil {
		t.Error("another gateway took the snapshot over")
	}
}
