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

// key returns a fixed Ed25519 key for a name.
func key(name string) ed25519.PrivateKey {
	seed := vault.Hash("test-key", []byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

func approver(name string) approval.Approver {
	return approval.Approver{ID: "key:" + name, Public: public(name)}
}

// A recorder keeps events in memory and can be told to fail.
type recorder struct {
	mu     sync.Mutex
	events []vault.Event
	err    error
	before func() // runs at the start of Commit
}

func (r *recorder) Commit(_ context.Context, e *vault.Event) (vault.Receipt, error) {
	if r.before != nil {
		r.before()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return vault.Receipt{}, r.err
	}
	r.events = append(r.events, *e)
	return vault.Receipt{Index: uint64(len(r.events))}, nil
}

// facts returns a call that moves money. Each test changes what it is about.
func facts() *vault.Facts {
	server := vault.ServerID(vault.Hash("server", []byte("pay")))
	return &vault.Facts{
		Call: &vault.Call{
			ID: "c-1", Task: "t-1", Tenant: "acme", Agent: "spiffe://example.org/agent/acme/clerk/1",
			Principal: "user:clerk@example.com", Kind: vault.KindTool, Server: "pay",
			Target: vault.Target{Server: server, Name: "transfer"},
			Args:   vault.MustArgs(`{"to":"DE02120300000000202051","amount":12.5,"currency":"EUR"}`),
		},
		Grant: &vault.Grant{
			Chain: vault.Hash("chain"), Leaf: vault.Hash("leaf"), Purpose: "Pay the open invoices",
			Holders: []vault.Digest{vault.Hash("holder")}, Proof: vault.ProofSession,
			Expires: time.Now().Add(time.Hour),
		},
		Tool:  &vault.Tool{Server: "pay", ID: server, Name: "transfer", Definition: vault.Hash("definition")},
		Scope: vault.Label{Integrity: vault.FromWeb, Readers: vault.Only("finance"), Sources: []vault.Source{{Kind: vault.KindTool, Server: "files", Name: "read_file"}}},
		Origins: []vault.Origin{
			{Path: "/to", Found: []string{"tool:files/read_file"}},
			{Path: "/amount", Found: []string{"task"}, Trusted: true},
		},
		Grade: vault.GradeB,
	}
}

func asked() vault.Decision {
	return vault.Asked("flow", vault.CodeFlowProvenance, "/to", "the value stands only in a file from the web")
}

var revision = vault.Hash("policy")

func newDesk(t *testing.T, change func(*approval.Config)) (*approval.Desk, *recorder) {
	t.Helper()
	r := new(recorder)
	c := approval.Config{Signer: key("gateway"), Recorder: r, Approvers: []approval.Approver{approver("lead"), approver("deputy"), approver("other")}}
	if change != nil {
		change(&c)
	}
	d, err := approval.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d, r
}

// ask puts a question and shows it.
func ask(t *testing.T, d *approval.Desk, f *vault.Facts, dec vault.Decision) vault.Question {
	t.Helper()
	q, err := d.Question(t.Context(), f, dec, revision)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Show(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	return q
}

func sign(t *testing.T, q vault.Question, name string, e approval.Effect) []byte {
	t.Helper()
	raw, err := approval.Sign(q.Bytes, public("gateway"), "key:"+name, e, time.Time{}, func(b []byte) ([]byte, error) { return ed25519.Sign(key(name), b), nil })
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func submit(t *testing.T, d *approval.Desk, q vault.Question, name string, e approval.Effect) {
	t.Helper()
	if _, err := d.Submit(t.Context(), sign(t, q, name, e)); err != nil {
		t.Fatal(err)
	}
}

func code(err error) vault.Code {
	if err == nil {
		return ""
	}
	return vault.DenialOf(err).Reason.Code
}

// The story of one approval, as the gateway and an approver live it.
func TestApproved(t *testing.T) {
	d, r := newDesk(t, nil)
	f := facts()
	q, err := d.Question(t.Context(), f, asked(), revision)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Pending()) != 0 {
		t.Error("a question is visible before it is shown")
	}
	if _, err := d.Submit(t.Context(), sign(t, q, "lead", approval.Allow)); !errors.Is(err, approval.ErrUnknown) {
		t.Errorf("answered before it was shown: %v", err)
	}
	if err := d.Show(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	_, err = d.Answer(t.Context(), q, 0)
	den := vault.DenialOf(err)
	if den.Verdict != "pending" || den.Reason.Code != vault.CodeApprovalRequired || den.Retry != vault.RetrySameCallID || den.ApprovalID != q.ID || den.Executed != vault.ExecutedNo {
		t.Errorf("pending denial is %+v", den)
	}
	p := d.Pending()
	if len(p) != 1 || p[0].ID != q.ID || p[0].State != "open" {
		t.Fatalf("pending = %+v", p)
	}
	submit(t, d, q, "lead", approval.Allow)

	f.Call.ID = "c-1" // the retry
	again, err := d.Question(t.Context(), f, asked(), revision)
	if err != nil || again.ID != q.ID || !again.Shown {
		t.Fatalf("the retry asks %+v, %v; want the same question, shown", again, err)
	}
	a, err := d.Answer(t.Context(), again, time.Hour)
	if err != nil || a.ID != q.ID || a.Approver != "key:lead" {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := d.Recheck(t.Context(), a, f, asked(), revision); err != nil {
		t.Fatal(err)
	}
	d.Spend(t.Context(), a)

	if err := d.Recheck(t.Context(), a, f, asked(), revision); code(err) != vault.CodeApprovalInvalid {
		t.Errorf("a spent approval: %v", err)
	}
	fresh, err := d.Question(t.Context(), f, asked(), revision)
	if err != nil || fresh.ID == q.ID {
		t.Errorf("after it was spent the same call asks %s again, %v", fresh.ID, err)
	}
	if len(r.events) != 1 {
		t.Fatalf("%d events, want the answer", len(r.events))
	}
	e := r.events[0]
	if e.Class != vault.ClassApproval || e.Verdict != vault.Allow || e.Run != "t-1" || e.Policy != revision {
		t.Errorf("event %+v", e)
	}
	var names []string
	for _, fl := range e.Fields {
		names = append(names, fl.Name)
	}
	if got, want := strings.Join(names, " "), strings.Join(vault.FieldsOf(vault.ClassApproval), " "); got != want {
		t.Errorf("fields %s, want %s", got, want)
	}
	effect, _, err := approval.Verify(e.Fields[0].Value, e.Fields[2].Value, public("gateway"), public("lead"))
	if err != nil || effect != approval.Allow {
		t.Errorf("the recorded answer does not verify: %v %v", effect, err)
	}
}

// TestBinding: an approval is good for the call that was shown and for no other.
func TestBinding(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(f *vault.Facts, d *vault.Decision, policy *vault.Digest)
		same   bool
	}{
		{"nothing", func(*vault.Facts, *vault.Decision, *vault.Digest) {}, true},
		{"another call id", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.ID = "c-2" }, true},
		{"the wording of a reason", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) { d.Reasons[0].Detail = "seen twice" }, true},
		{"another source of the same worth", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Scope.Sources = append(f.Scope.Sources, vault.Source{Kind: vault.KindTool, Server: "files", Name: "stat"})
		}, true},
		{"the same decision by two stages", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) { *d = d.Join(asked()) }, true},
		{"one byte of the arguments", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Call.Args = vault.MustArgs(`{"to":"DE02120300000000202052","amount":12.5,"currency":"EUR"}`)
		}, false},
		{"an argument more", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Call.Args = vault.MustArgs(`{"to":"DE02120300000000202051","amount":12.5,"currency":"EUR","now":true}`)
		}, false},
		{"other parameters of the protocol", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Call.Params = vault.MustArgs(`{"task":{"ttl":1}}`)
		}, false},
		{"another agent", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Call.Agent = "spiffe://example.org/agent/acme/clerk/2"
		}, false},
		{"another principal", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.Principal = "user:other" }, false},
		{"another tenant", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.Tenant = "other" }, false},
		{"another task", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.Task = "t-2" }, false},
		{"another purpose", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Grant.Purpose = "Pay" }, false},
		{"another capability", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Grant.Leaf = vault.Hash("x") }, false},
		{"another tool", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.Target.Name = "refund" }, false},
		{"another server", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) {
			f.Call.Target.Server = vault.ServerID(vault.Hash("server", []byte("evil")))
		}, false},
		{"another kind", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Call.Kind = vault.KindResource }, false},
		{"another definition", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Tool.Definition = vault.Hash("x") }, false},
		{"another sandbox grade", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Grade = vault.GradeD }, false},
		{"a worse integrity in scope", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Scope.Integrity = vault.FromUser }, false},
		{"other readers in scope", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Scope.Readers = vault.Readers{} }, false},
		{"an origin that is no longer trusted", func(f *vault.Facts, _ *vault.Decision, _ *vault.Digest) { f.Origins[1].Trusted = false }, false},
		{"another policy revision", func(_ *vault.Facts, _ *vault.Decision, p *vault.Digest) { *p = vault.Hash("x") }, false},
		{"another rule that asks", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) {
			*d = vault.Asked("flow", vault.CodeFlowDeadlyThree, "/to", "")
		}, false},
		{"the rule at another place", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) { d.Reasons[0].Path = "/amount" }, false},
		{"one more rule that asks", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) {
			*d = d.Join(vault.Asked("flow", vault.CodePolicyAsks, "", ""))
		}, false},
		{"another group", func(_ *vault.Facts, d *vault.Decision, _ *vault.Digest) { d.Groups = []string{"policy"} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDesk(t, nil)
			q := ask(t, d, facts(), asked())
			submit(t, d, q, "lead", approval.Allow)
			a, err := d.Answer(t.Context(), q, 0)
			if err != nil {
				t.Fatal(err)
			}
			f, dec, policy := facts(), asked(), revision
			tt.change(f, &dec, &policy)

			err = d.Recheck(t.Context(), a, f, dec, policy)
			if tt.same != (err == nil) || err != nil && code(err) != vault.CodeApprovalInvalid {
				t.Errorf("recheck: %v, want valid %v", err, tt.same)
			}
			again, err := d.Question(t.Context(), f, dec, policy)
			if err != nil || tt.same != (again.ID == q.ID) {
				t.Errorf("asks %s (first %s), %v", again.ID, q.ID, err)
			}
		})
	}
}

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

// Membership counts when the call is dispatched, not when the answer was given.
func TestReload(t *testing.T) {
	finance := map[string][]string{"finance": {"key:lead", "key:deputy"}}
	dec := vault.Asked("finance", vault.CodePolicyAsks, "", "")
	replaced := approver("lead")
	replaced.Public = public("new lead")
	for _, tt := range []struct {
		name      string
		approvers []approval.Approver
		groups    map[string][]string
		effect    approval.Effect
		want      vault.Code
	}{
		{"nothing changed", []approval.Approver{approver("lead"), approver("deputy")}, finance, approval.Allow, ""},
		{"the approver left the group", []approval.Approver{approver("lead"), approver("deputy")}, map[string][]string{"finance": {"key:deputy"}}, approval.Allow, vault.CodeApprovalInvalid},
		{"the approver was removed", []approval.Approver{approver("deputy")}, map[string][]string{"finance": {"key:deputy"}}, approval.Allow, vault.CodeApprovalInvalid},
		{"the approver's key was replaced", []approval.Approver{replaced, approver("deputy")}, finance, approval.Allow, vault.CodeApprovalInvalid},
		{"who denied was removed", []approval.Approver{approver("deputy")}, map[string][]string{"finance": {"key:deputy"}}, approval.Deny, vault.CodeApprovalDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := newDesk(t, func(c *approval.Config) { c.Groups = finance })
			q := ask(t, d, facts(), dec)
			submit(t, d, q, "lead", tt.effect)
			if err := d.Reload(tt.approvers, tt.groups); err != nil {
				t.Fatal(err)
			}
			a := vault.Approval{ID: q.ID, Approver: "key:lead", Expires: q.Expires}
			if err := d.Recheck(t.Context(), a, facts(), dec, revision); code(err) != tt.want {
				t.Errorf("recheck: %v, want %q", err, tt.want)
			}
		})
	}
}

// A yes counts once it is on record; a no counts at once.
func TestRecord(t *testing.T) {
	failure := errors.New("disk full")
	t.Run("a yes that cannot be recorded does not count", func(t *testing.T) {
		d, r := newDesk(t, nil)
		q := ask(t, d, facts(), asked())
		r.err = failure
		if _, err := d.Submit(t.Context(), sign(t, q, "lead", approval.Allow)); !errors.Is(err, failure) {
			t.Errorf("err = %v", err)
		}
		if _, err := d.Answer(t.Context(), q, 0); code(err) != vault.CodeApprovalRequired {
			t.Errorf("answer: %v", err)
		}
	})
	t.Run("a no that cannot be recorded counts", func(t *testing.T) {
		d, r := newDesk(t, nil)
		q := ask(t, d, facts(), asked())
		submit(t, d, q, "deputy", approval.Allow)
		r.err = failure
		if _, err := d.Submit(t.Context(), sign(t, q, "lead", approval.Deny)); !errors.Is(err, failure) {
			t.Errorf("err = %v", err)
		}
		if _, err := d.Answer(t.Context(), q, 0); code(err) != vault.CodeApprovalDenied {
			t.Errorf("answer: %v", err)
		}
	})
	t.Run("a no while the yes is being recorded wins", func(t *testing.T) {
		d, r := newDesk(t, nil)
		q := ask(t, d, facts(), asked())
		no := sign(t, q, "deputy", approval.Deny)
		r.before = func() {
			r.before = nil
			if _, err := d.Submit(t.Context(), no); err != nil {
				t.Error(err)
			}
		}
		if _, err := d.Submit(t.Context(), sign(t, q, "lead", approval.Allow)); !errors.Is(err, approval.ErrClosed) {
			t.Errorf("the yes: %v", err)
		}
		if _, err := d.Answer(t.Context(), q, 0); code(err) != vault.CodeApprovalDenied {
			t.Errorf("answer: %v", err)
		}
	})
	t.Run("an unprotected key is marked", func(t *testing.T) {
		d, r := newDesk(t, func(c *approval.Config) { c.Approvers[0].Unprotected = true })
		q := ask(t, d, facts(), asked())
		submit(t, d, q, "lead", approval.Allow)
		if got := string(r.events[0].Fields[1].Value); !strings.Contains(got, `"unprotected":true`) {
			t.Errorf("event says %s", got)
		}
		if a, err := d.Answer(t.Context(), q, 0); err != nil || !strings.Contains(a.Approver, "unprotected") {
			t.Errorf("%+v %v", a, err)
		}
	})
}

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

func TestConfigRefuses(t *testing.T) {
	ok := func() approval.Config {
		return approval.Config{Signer: key("gateway"), Recorder: new(recorder), Approvers: []approval.Approver{approver("lead")}}
	}
	for _, tt := range []struct {
		name   string
		change func(*approval.Config)
	}{
		{"no signer", func(c *approval.Config) { c.Signer = nil }},
		{"no recorder", func(c *approval.Config) { c.Recorder = nil }},
		{"a group that names nobody's id", func(c *approval.Config) { c.Groups = map[string][]string{"g": {"key:who"}} }},
		{"a group without a name", func(c *approval.Config) { c.Groups = map[string][]string{"": {"key:lead"}} }},
		{"an approver twice", func(c *approval.Config) { c.Approvers = append(c.Approvers, approver("lead")) }},
		{"one key under two names", func(c *approval.Config) {
			c.Approvers = append(c.Approvers, approval.Approver{ID: "key:two", Public: public("lead")})
		}},
		{"an approver without a key", func(c *approval.Config) { c.Approvers = append(c.Approvers, approval.Approver{ID: "key:two"}) }},
		{"a life of a week", func(c *approval.Config) { c.Life = 7 * 24 * time.Hour }},
		{"a negative bound", func(c *approval.Config) { c.MaxOpen = -1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := ok()
			tt.change(&c)
			if _, err := approval.New(c); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := approval.New(ok()); err != nil {
		t.Error(err)
	}
}
