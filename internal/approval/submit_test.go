package approval_test

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/approval"
)

// TestSubmitRefuses says whose answers do not count.
func TestSubmitRefuses(t *testing.T) {
	groups := map[string][]string{"finance": {"key:lead", "key:deputy"}}
	signAs := func(t *testing.T, q vault.Question, id, keyName string, e approval.Effect) []byte {
		raw, err := approval.Sign(q.Bytes, public("gateway"), id, e, time.Time{}, func(b []byte) ([]byte, error) { return ed25519.Sign(key(keyName), b), nil })
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, tt := range []struct {
		name string
		raw  func(t *testing.T, d *approval.Desk, q vault.Question) []byte
		want error
	}{
		{"an approver outside the group", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return sign(t, q, "other", approval.Allow)
		}, approval.ErrNotApprover},
		{"an approver outside the group who denies", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return sign(t, q, "other", approval.Deny)
		}, approval.ErrNotApprover},
		{"somebody nobody knows", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return sign(t, q, "stranger", approval.Allow)
		}, approval.ErrNotApprover},
		{"a stranger's key under a member's name", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return signAs(t, q, "key:lead", "stranger", approval.Allow)
		}, approval.ErrInvalid},
		{"a member's key under another member's name", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return signAs(t, q, "key:deputy", "lead", approval.Allow)
		}, approval.ErrInvalid},
		{"a yes given before", func(t *testing.T, d *approval.Desk, q vault.Question) []byte {
			raw := sign(t, q, "lead", approval.Allow)
			if _, err := d.Submit(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			return raw
		}, approval.ErrClosed},
		{"a yes after a no", func(t *testing.T, d *approval.Desk, q vault.Question) []byte {
			submit(t, d, q, "lead", approval.Deny)
			return sign(t, q, "deputy", approval.Allow)
		}, approval.ErrClosed},
		{"an answer after the approval was spent", func(t *testing.T, d *approval.Desk, q vault.Question) []byte {
			submit(t, d, q, "lead", approval.Allow)
			d.Spend(t.Context(), vault.Approval{ID: q.ID})
			return sign(t, q, "deputy", approval.Allow)
		}, approval.ErrClosed},
		{"an answer to another question", func(t *testing.T, d *approval.Desk, q vault.Question) []byte {
			f := facts()
			f.Call.Args = vault.MustArgs(`{"to":"elsewhere"}`)
			other, err := d.Question(t.Context(), f, vault.Asked("finance", vault.CodePolicyAsks, "", ""), revision)
			if err != nil {
				t.Fatal(err)
			}
			return sign(t, other, "lead", approval.Allow) // never shown
		}, approval.ErrUnknown},
		{"garbage", func(*testing.T, *approval.Desk, vault.Question) []byte { return []byte("yes") }, approval.ErrInvalid},
		{"nothing", func(*testing.T, *approval.Desk, vault.Question) []byte { return nil }, approval.ErrInvalid},
		{"a megabyte", func(*testing.T, *approval.Desk, vault.Question) []byte { return make([]byte, 1<<20) }, approval.ErrInvalid},
		{"something after the answer", func(t *testing.T, _ *approval.Desk, q vault.Question) []byte {
			return append(sign(t, q, "lead", approval.Allow), 0)
		}, approval.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDesk(t, func(c *approval.Config) { c.Groups = groups })
			q := ask(t, d, facts(), vault.Asked("finance", vault.CodePolicyAsks, "", ""))
			if _, err := d.Submit(t.Context(), tt.raw(t, d, q)); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
}

// Every byte of an answer matters.
func TestSubmitFlippedByte(t *testing.T) {
	d, _ := newDesk(t, nil)
	q := ask(t, d, facts(), asked())
	raw := sign(t, q, "lead", approval.Allow)
	for i := range raw {
		for _, bit := range []byte{1, 0x80} {
			bad := append([]byte(nil), raw...)
			bad[i] ^= bit
			if _, err := d.Submit(t.Context(), bad); err == nil {
				t.Fatalf("byte %d: accepted", i)
			}
		}
	}
	if _, err := d.Answer(t.Context(), q, 0); code(err) != vault.CodeApprovalRequired {
		t.Errorf("after all that: %v", err)
	}
}

// Every byte of a question matters, and nobody signs what does not verify.
func TestOpenFlippedByte(t *testing.T) {
	d, _ := newDesk(t, nil)
	q := ask(t, d, facts(), asked())
	for i := range q.Bytes {
		bad := append([]byte(nil), q.Bytes...)
		bad[i] ^= 1
		if _, err := approval.Open(bad, public("gateway")); err == nil {
			t.Fatalf("byte %d: opened", i)
		}
		if _, err := approval.Sign(bad, public("gateway"), "key:lead", approval.Allow, time.Time{}, func([]byte) ([]byte, error) {
			t.Fatalf("byte %d: asked to sign", i)
			return nil, nil
		}); err == nil {
			t.Fatalf("byte %d: signed", i)
		}
	}
	if _, err := approval.Open(q.Bytes, public("stranger")); err == nil {
		t.Error("opened under another key")
	}
	if _, err := approval.Open(q.Bytes, nil); err == nil {
		t.Error("opened without a key")
	}
	if _, err := approval.Sign(q.Bytes, public("gateway"), "key:lead", "maybe", time.Time{}, nil); err == nil {
		t.Error("signed an effect that does not exist")
	}
}

func TestGroups(t *testing.T) {
	type answers []string // "lead+" allows, "lead-" denies
	groups := map[string][]string{"finance": {"key:lead"}, "legal": {"key:deputy", "key:lead"}, "empty": {}, "policy": {"key:deputy"}}
	for _, tt := range []struct {
		name    string
		groups  []string
		answers answers
		want    vault.Code
	}{
		{"one member is enough for one group", []string{"finance"}, answers{"lead+"}, ""},
		{"each group must say yes", []string{"finance", "legal"}, answers{"deputy+"}, vault.CodeApprovalRequired},
		{"one person can speak for two groups", []string{"finance", "legal"}, answers{"lead+"}, ""},
		{"two people speak for two groups", []string{"finance", "legal"}, answers{"deputy+", "lead+"}, ""},
		{"a no after a yes denies", []string{"legal"}, answers{"lead+", "deputy-"}, vault.CodeApprovalDenied},
		{"who said yes may change to no", []string{"legal"}, answers{"lead+", "lead-"}, vault.CodeApprovalDenied},
		{"a member of one of two groups can deny", []string{"finance", "legal"}, answers{"deputy-"}, vault.CodeApprovalDenied},
		{"anybody speaks for flow", []string{"flow"}, answers{"other+"}, ""},
		{"anybody speaks where no group is named", nil, answers{"other+"}, ""},
		{"a configured policy group is the operator's", []string{"policy"}, answers{"deputy+"}, ""},
		{"nobody answered", []string{"finance"}, nil, vault.CodeApprovalRequired},
		{"a group without members", []string{"empty"}, nil, vault.CodeApprovalNobody},
		{"a group that does not exist", []string{"sales"}, nil, vault.CodeApprovalNobody},
		{"one good group and one without members", []string{"finance", "empty"}, nil, vault.CodeApprovalNobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDesk(t, func(c *approval.Config) { c.Groups = groups })
			dec := vault.Decision{Verdict: vault.Ask, Groups: tt.groups, Reasons: []vault.Reason{{Code: vault.CodePolicyAsks}}}
			q, err := d.Question(t.Context(), facts(), dec, revision)
			if err == nil {
				err = d.Show(t.Context(), q)
			}
			for _, a := range tt.answers {
				e := approval.Allow
				if a[len(a)-1] == '-' {
					e = approval.Deny
				}
				submit(t, d, q, a[:len(a)-1], e)
			}
			if err == nil {
				var a vault.Approval
				a, err = d.Answer(t.Context(), q, 0)
				if again := d.Recheck(t.Context(), a, facts(), dec, revision); (again == nil) != (err == nil) {
					t.Errorf("answer says %v, recheck says %v", err, again)
				}
			}
			if code(err) != tt.want {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

// The requester never answers for itself, under whatever name.
func TestRequesterCannotApprove(t *testing.T) {
	lead := approver("lead")
	for _, tt := range []struct {
		name      string
		approvers []approval.Approver
		holders   []vault.Digest
	}{
		{"the approver has the agent's id", []approval.Approver{{ID: string(facts().Call.Agent), Public: lead.Public}}, nil},
		{"the approver has the agent's key", []approval.Approver{lead}, []vault.Digest{vault.Hash("root"), approval.Thumbprint(lead.Public)}},
		{"the approver delegated to the agent", []approval.Approver{lead}, []vault.Digest{approval.Thumbprint(lead.Public), vault.Hash("leaf")}},
		{"there is no approver at all", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDesk(t, func(c *approval.Config) { c.Approvers = tt.approvers })
			f := facts()
			f.Grant.Holders = tt.holders
			if _, err := d.Question(t.Context(), f, asked(), revision); code(err) != vault.CodeApprovalNobody {
				t.Errorf("alone: %v, want nobody", err)
			}
			d, _ = newDesk(t, func(c *approval.Config) { c.Approvers = append(tt.approvers, approver("deputy")) })
			q := ask(t, d, f, asked())
			if len(tt.approvers) == 0 {
				return
			}
			for _, e := range []approval.Effect{approval.Allow, approval.Deny} {
				raw, err := approval.Sign(q.Bytes, public("gateway"), tt.approvers[0].ID, e, time.Time{}, func(b []byte) ([]byte, error) { return ed25519.Sign(key("lead"), b), nil })
				if err != nil {
					t.Fatal(err)
				}
				if _, err := d.Submit(t.Context(), raw); !errors.Is(err, approval.ErrNotApprover) {
					t.Errorf("%s beside another approver: %v", e, err)
				}
			}
		})
	}
}
