package approval_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"testing"
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
	early := a
	early.Expires = time.Now()
	if err := d.Recheck(t.Context(), early, f, asked(), revision); code(err) != vault.CodeApprovalTimeout {
		t.Errorf("an approval that says it is over: %v", err)
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
