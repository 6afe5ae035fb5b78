package taskfile

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/tool"
)

// engines evaluate schemas as a daemon does; nothing that is learned has a CEL
// expression of its own.
var engines = &capability.Engines{Schema: tool.CompileValue}

func jsonArgs(t testing.TB, doc string) vault.Args {
	t.Helper()
	a, err := vault.ParseArgs([]byte(doc))
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return a
}

// seen is a call of a tool of which the record says all.
func seen(t testing.TB, target, doc string) Seen {
	server, name, _ := strings.Cut(target, ".")
	return Seen{Run: "t-1", Kind: vault.KindTool, Server: server, Name: name, Args: jsonArgs(t, doc), Known: true, Grade: vault.GradeB}
}

func lesson(calls ...Seen) Lesson {
	for i := range calls {
		calls[i].Event = uint64(i + 10)
	}
	return Lesson{Purpose: "Remind", Principal: "user:clerk@example.com", Life: 90 * time.Second, Calls: calls}
}

func options() LearnOptions { return LearnOptions{List: 4, Headroom: 25, Engines: engines} }

func learn(t testing.TB, l Lesson, o LearnOptions) *Proposal {
	t.Helper()
	p, err := Learn(l, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func onBase(t testing.TB, text string) LearnOptions {
	t.Helper()
	f, err := Parse([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = f.Under(DefaultLevels()); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Base, o.Text = f, []byte(text)
	return o
}

// A judge is a gateway's verifier with the capability of a task file.
type judge struct {
	verifier *capability.Verifier
	chain    []byte
}

func newJudge(t interface {
	Helper()
	Fatalf(string, ...any)
}, text []byte) judge {
	t.Helper()
	f, err := Parse(text, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	link, err := f.Claims(resolve)
	if err != nil {
		t.Fatalf("%v", err)
	}
	priv := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	now := time.Now()
	link.Tenant, link.Agent, link.Audience, link.Holder = "acme", "spiffe://example.org/agent/acme/a/1", "c", &capability.Holder{Bearer: true}
	link.Task.ID = "t-0123456789abcdefghjkmnpqrs"
	link.Issued, link.NotBefore, link.Expires = capability.InstantOf(now), capability.InstantOf(now), capability.InstantOf(now.Add(f.Life))
	chain, err := capability.Mint(link, capability.Signer{Key: priv, KID: "k1"})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	key, err := capability.KeyOf(priv.Public())
	if err != nil {
		t.Fatalf("%v", err)
	}
	v, err := capability.New(capability.Config{
		Roots:    []capability.RootIssuer{{KID: "k1", Key: key, Tenant: "acme", Own: true}},
		Audience: "c", AllowBearer: true, Engines: engines,
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return judge{v, chain.Bytes()}
}

// allows holds a call against the capability.
func (j judge) allows(t interface{ Context() context.Context }, s *Seen) error {
	target := vault.Target{Name: s.Name}
	if s.Server != "" {
		target.Server, _ = resolve(s.Server)
	}
	_, err := j.verifier.Verify(t.Context(), &vault.Call{
		ID: "c", Kind: s.Kind, Target: target, Args: s.Args, At: time.Now(),
		Credential: vault.Credential{Chain: j.chain, Binding: vault.Binding{Bearer: true}},
	})
	return err
}

func quoted(s string) string { return string(vault.AppendQuoted(nil, s)) }

// values draws what arguments hold, odd things included.
func values(depth int) *rapid.Generator[string] {
	texts := rapid.OneOf(
		rapid.SampledFrom([]string{"", "EUR", "true", "null", "-", "0x10", "2026-11-28", "a: b", "# no", "it's", `"`, `\`, "*", "../x", "no", "{", "\u00e9t\u00e9"}),
		rapid.StringMatching(`/(srv|home)/[a-z]{1,3}(/[a-z]{1,3}\.txt)?`),
		rapid.StringMatching(`[a-z]{1,5}@(example\.com|customer\.example)`),
		rapid.StringMatching(`https?://[a-z]{1,3}\.example(:8080)?/v1/[a-z]{0,3}(\?q=1)?`),
		rapid.StringN(0, 90, 300),
	)
	scalars := []*rapid.Generator[string]{
		rapid.Map(texts, quoted),
		rapid.Map(rapid.Int64Range(-maxSafe, maxSafe), func(n int64) string { return fmt.Sprint(n) }),
		rapid.Map(rapid.IntRange(-5, 5), func(n int) string { return fmt.Sprint(n) }),
		rapid.SampledFrom([]string{"true", "false", "null", "0.5", "12.25", "1e30", "-0.000001", "1e-9"}),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	inner := rapid.Deferred(func() *rapid.Generator[string] { return values(depth - 1) })
	return rapid.OneOf(append(scalars,
		rapid.Map(rapid.SliceOfN(inner, 0, 4), func(v []string) string { return "[" + strings.Join(v, ",") + "]" }),
		objects(inner))...)
}

func objects(inner *rapid.Generator[string]) *rapid.Generator[string] {
	names := rapid.SampledFrom([]string{"path", "to", "a.b", "x/y", "t~", "amount", "currency", "opt", "y", "a b"})
	return rapid.Map(rapid.MapOfN(names, inner, 0, 4), func(m map[string]string) string {
		var out []string
		for k, v := range m {
			out = append(out, quoted(k)+":"+v)
		}
		return "{" + strings.Join(out, ",") + "}"
	})
}

// calls draws recorded calls of a few tools and hosts.
func calls(t *rapid.T) []Seen {
	args := objects(values(2))
	out := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Seen {
		s := Seen{
			Run: vault.TaskID(rapid.SampledFrom([]string{"t-1", "t-2"}).Draw(t, "run")), Kind: vault.KindTool, Server: "desk",
			Name:  rapid.SampledFrom([]string{"say", "read", "a.b", "odd name", "*"}).Draw(t, "name"),
			Known: rapid.Bool().Draw(t, "known"), Tainted: rapid.Bool().Draw(t, "tainted"), Grade: vault.GradeB,
			Roles: map[string]vault.Role{"/to": vault.RoleRecipient, "/amount": vault.RoleAmount, "/path": vault.RolePath},
		}
		doc := args.Draw(t, "args")
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			s.Kind, s.Server, s.Name, s.Known = vault.KindEgress, "", "api.example.com", true
			doc = `{"method":` + quoted(rapid.SampledFrom([]string{"GET", "POST", "TRACE"}).Draw(t, "method")) +
				`,"path":` + quoted(rapid.StringMatching(`/v1(/[a-z*]{1,2}){0,2}(\?[a-z]=[a-z*])?`).Draw(t, "path")) + `}`
		case 1:
			s.Kind, s.Name = vault.KindResource, "file:///srv/a"
		case 2:
			s.Refused = vault.CodeCapabilityTarget
		}
		if a, err := vault.ParseArgs([]byte(doc)); err == nil {
			s.Args = a
		} else {
			s.Missing = "erased"
		}
		return s
	}), 1, 12).Draw(t, "calls")
	for i := range out {
		out[i].Event = uint64(i)
	}
	return out
}

// leftOut says whether the proposal names a call among those that it does not learn from.
func leftOut(p *Proposal, s *Seen) bool {
	k := lessonKey{s.Kind, s.Server, s.Name}
	return slices.ContainsFunc(p.LeftOut, func(l LeftOut) bool { return l.Target == k.String() && slices.Contains(l.Events, s.Event) })
}

// TestLearnedCallsPass holds, for any set of recorded calls, that a proposal is a task
// file; that its capability lets every call through that it was learned from; that a
// call which is not learned from is named; and that no target is granted that was not
// called, or was only refused.
func TestLearnedCallsPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := lesson()
		l.Calls = calls(t)
		o := options()
		o.List = rapid.IntRange(0, 5).Draw(t, "list")
		o.Denied = rapid.Bool().Draw(t, "denied")
		p, err := Learn(l, o)
		if err != nil {
			t.Fatalf("%v", err)
		}
		j := newJudge(t, p.Text)
		called := map[string]bool{}
		for i := range l.Calls {
			s := &l.Calls[i]
			if s.Refused != "" && !o.Denied || leftOut(p, s) {
				continue
			}
			called[lessonKey{s.Kind, s.Server, s.Name}.String()] = true
			if err := j.allows(t, s); err != nil {
				t.Fatalf("event %d, %s %s: %v\n%s", s.Event, s.Name, s.Args, err, p.Text)
			}
		}
		f, err := Parse(p.Text, nil)
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, r := range slices.Concat(f.Tools, f.Resources, f.Prompts, f.ServerRequests) {
			if !called[r.Server+"."+r.Name] || r.Any {
				t.Fatalf("%s.%s is granted and was not called, or with any arguments\n%s", r.Server, r.Name, p.Text)
			}
		}
		for _, e := range f.Egress {
			if !called[e.Host] {
				t.Fatalf("%s is granted and was not called\n%s", e.Host, p.Text)
			}
		}
		again, err := Learn(l, o)
		if err != nil || string(again.Text) != string(p.Text) {
			t.Fatalf("twice learned, two files: %v\n%s\n%s", err, p.Text, again.Text)
		}
	})
}
