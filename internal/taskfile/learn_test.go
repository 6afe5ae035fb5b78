package taskfile

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"maps"
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

func newJudge(t rapid.TB, text []byte) judge {
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
	return slices.ContainsFunc(p.LeftOut, func(l LeftOut) bool {
		return l.Target == k.String() && (slices.Contains(l.Events, s.Event) || l.Calls > len(l.Events) && s.Event > l.Events[len(l.Events)-1])
	})
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

// TestLearnReadsLike holds what is learned of an argument, one row for each form.
func TestLearnReadsLike(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string // of one call each
		list int
		want string // the constraints on /x
	}{
		{"one value is exact", []string{`"EUR"`, `"EUR"`}, 4, "{exact: EUR}"},
		{"few values are listed", []string{`"a"`, `"b"`}, 4, "{one_of: [a, b]}"},
		{"5 is not \"5\"", []string{`5`, `"5"`}, 4, `{schema: "{\"enum\":[\"5\",5]}"}`},
		{"what is not always there is optional", []string{`"a"`, ``}, 4, "{exact: a, optional: true}"},
		{"paths have a directory", []string{`"/srv/a/1"`, `"/srv/a/b/2"`, `"/srv/a/3"`}, 2, "{subpath: /srv/a}"},
		{"a directory ends at a slash", []string{`"/srv/aa"`, `"/srv/ab"`}, 1, "{subpath: /srv}"},
		{"paths that climb are no paths", []string{`"/srv/../etc"`, `"/srv/b"`}, 1, "{max_length: 14}"},
		{"addresses have a domain", []string{`"a@x.example"`, `"b@x.example"`, `"c@y.example"`}, 2, "{email_domain: [x.example, y.example]}"},
		{"URLs have hosts and a path", []string{`"https://a.example/v1/x"`, `"https://a.example/v1/y?q=1"`}, 1, "{url: {hosts: [a.example], path: /v1}}"},
		{"other schemes are named with their ports", []string{`"http://a.example:8080/"`, `"https://a.example/"`}, 1, "{url: {schemes: [http, https], hosts: [a.example], ports: [443, 8080]}}"},
		{"more numbers are a range", []string{`3`, `1`, `2`}, 2, "{integer: [1, 3]}"},
		{"fractions are a range", []string{`0.5`, `2`}, 4, "{decimal: [0.5, 2]}"},
		{"what no range holds is listed as JSON", []string{`1e-9`}, 0, `{schema: "{\"enum\":[1e-9]}"}`},
		{"long text has a length", []string{`"` + strings.Repeat("ab ", 40) + `"`}, 4, "{max_length: 150}"},
		{"text that cannot be shown has a length", []string{`"a\u202eb"`}, 4, "{max_length: 4}"},
		{"no text is listed at zero", []string{`"EUR"`}, 0, "{max_length: 4}"},
		{"a truth", []string{`true`, `false`}, 4, "{one_of: [false, true]}"},
		{"null", []string{`null`, `"a"`}, 4, `{schema: "{\"enum\":[\"a\",null]}"}`},
		{"a list of few", []string{`["a","b"]`, `["b"]`}, 4, "{subset: [a, b], count: [1, 2]}"},
		{"a list with repeats", []string{`["a","a"]`}, 4, "{each: {exact: a}, count: [2, 2]}"},
		{"an empty list", []string{`[]`}, 4, `{each: {exact: ""}, count: [0, 0]}`},
		{"an object is closed", []string{`{"a":1}`, `{"a":1,"b":"x"}`}, 4, "{object: {a: {exact: 1}, b: {exact: x, optional: true}}}"},
		{"a key of GitHub", []string{`"ghp_0123456789abcdefghijklmnopqrstuvwxyz"`}, 4, "{max_length: 50}"},
		{"random text", []string{`"x 9hT2kQ7vLm4Zp8Rw3Yb6 y"`}, 4, "{max_length: 30}"},
		{"a URL with a password", []string{`"https://u:hunter2@a.example/"`}, 4, "{max_length: 35}"},
		{"a secret inside an odd value", []string{`[null,"ghp_0123456789abcdefghijklmnopqrstuvwxyz"]`}, 4, `{each: {schema: "{\"maxLength\":50,\"type\":[\"null\",\"string\"]}"}, count: [2, 2]}`},
		{"a secret as a name", []string{`{"ghp_0123456789abcdefghijklmnopqrstuvwxyz":1}`}, 4, "not granted"},
		{"a UUID is a name", []string{`"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`}, 4, `{exact: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`},
		{"words that YAML takes for others", []string{`"no"`, `"1e3"`, `"2026-11-28"`, `"a: b"`, `"a - b"`, `"a b"`}, 6, `{one_of: ["1e3", "2026-11-28", "a - b", a b, "a: b", "no"]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls []Seen
			for _, a := range tt.args {
				doc := `{"x":` + a + `}`
				if a == "" {
					doc = `{}`
				}
				calls = append(calls, seen(t, "desk.say", doc))
			}
			o := options()
			o.List = tt.list
			p := learn(t, lesson(calls...), o)
			f, err := Parse(p.Text, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := "not granted"
			if len(f.Tools) == 1 {
				var w writer
				w.arg(f.Tools[0].Args["/x"])
				got = w.String()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s\n%s", got, tt.want, p.Text)
			}
		})
	}
}

// TestSecretsAreNotLearned holds that no secret is in a proposal, by its form, by the
// name of its argument, or as the name of one.
func TestSecretsAreNotLearned(t *testing.T) {
	const secret = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
	for _, doc := range []string{
		`{"x":"` + secret + `"}`, `{"x":["a","` + secret + `"]}`, `{"x":{"y":"use ` + secret + `"}}`, `{"x":[null,{"y":"` + secret + `"}]}`,
		`{"` + secret + `":1}`, `{"x":{"` + secret + `":[null]}}`, `{"x":[{"` + secret + `":1},2]}`,
		`{"password":"` + secret[4:12] + `"}`, `{"x":{"api_key":"` + secret[4:12] + `"}}`, `{"auth_token":["` + secret[4:12] + `"]}`,
	} {
		p := learn(t, lesson(seen(t, "desk.say", doc), seen(t, "desk.say", doc)), options())
		if strings.Contains(string(p.Text), secret[4:12]) {
			t.Errorf("%s\n%s", doc, p.Text)
		}
	}
	for _, doc := range []string{`{"pin":48213,"otp":991122}`, `{"credentials":{"value":48213,"x":991122}}`} {
		if p := learn(t, lesson(seen(t, "desk.say", doc)), options()); strings.Contains(string(p.Text), "48213") || strings.Contains(string(p.Text), "991122") {
			t.Errorf("%s\n%s", doc, p.Text)
		}
	}
	for _, path := range []string{"/bot/" + secret + "/send", "/hooks/" + secret} {
		call := Seen{Run: "t-1", Kind: vault.KindEgress, Name: "api.example.com", Args: jsonArgs(t, `{"method":"GET","path":"`+path+`"}`), Known: true}
		if p := learn(t, lesson(call), options()); strings.Contains(string(p.Text), secret) || len(p.Targets) != 1 {
			t.Errorf("%s\n%s", path, p.Text)
		}
	}
	web := Seen{Run: "t-1", Kind: vault.KindEgress, Name: "api.example.com", Args: jsonArgs(t, `{"method":"GET","path":"/v1/x?key=`+secret+`"}`), Known: true}
	uri := seen(t, "desk.file:///"+secret, `{}`)
	uri.Kind = vault.KindResource
	if p := learn(t, lesson(web, uri), options()); strings.Contains(string(p.Text), secret) || len(p.Targets) != 1 {
		t.Errorf("%s", p.Text)
	}
}

const reviewed = `# reviewed by two
version: 1
purpose: Remind  # them
principal: user:clerk@example.com
life: 30m

# what it may call
tools:
  # reading
  files.read: {args: {path: {subpath: /srv}, max: {integer: [1, 100], optional: true}}}
  files.gone: {args: {}}

  # money
  pay.transfer: {args: {to: {one_of: [DE1, DE2, DE3]}, amount: {decimal: [0, 1000]}, currency: {exact: EUR}}, ask: finance}
egress:
  - {host: api.bank.example, methods: [GET, POST], path: [/v1/accounts/*, /v1/rates]}
budgets: {calls: 50, "sum(pay.transfer.amount, EUR)": 2000}
labels: {may_read: [finance]}
`

func transferOf(t testing.TB, to string, amount int) Seen {
	return seen(t, "pay.transfer", fmt.Sprintf(`{"to":%q,"amount":%d,"currency":"EUR"}`, to, amount))
}

// TestLearnedFileIsEdited holds what becomes of a reviewed file: what was learned is
// replaced, and the rest, comments included, stands as it was.
func TestLearnedFileIsEdited(t *testing.T) {
	web := Seen{Run: "t-1", Kind: vault.KindEgress, Name: "api.bank.example", Args: jsonArgs(t, `{"method":"GET","path":"/v1/rates"}`), Known: true}
	p := learn(t, lesson(seen(t, "files.read", `{"path":"/srv/invoices/a"}`), transferOf(t, "DE1", 100), transferOf(t, "DE1", 300), web), onBase(t, reviewed))
	golden(t, "testdata/learn/narrow.yaml", p.Text)
	if len(p.Wider) > 0 {
		t.Errorf("wider: %v", p.Wider)
	}
	again := learn(t, lesson(seen(t, "files.read", `{"path":"/srv/invoices/a"}`), transferOf(t, "DE1", 100), transferOf(t, "DE1", 300), web), onBase(t, string(p.Text)))
	if string(again.Text) != string(p.Text) {
		t.Errorf("learned again, it is another file:\n%s", again.Text)
	}

	other := transferOf(t, "DE9", 100)
	other.Refused, other.Where = vault.CodeCapabilityArgument, "/to"
	tainted := seen(t, "files.read", `{"path":"/home/a"}`)
	tainted.Tainted, tainted.Sources, tainted.Untrusted = true, []string{"tool:web/fetch"}, []string{"/path"}
	erased := seen(t, "files.read", `{}`)
	erased.Args, erased.Missing = vault.Args{}, "erased"
	o := onBase(t, reviewed)
	o.Denied = true
	p = learn(t, lesson(seen(t, "files.read", `{"path":"/srv/a"}`), tainted, erased, other, seen(t, "mail.send", `{}`)), o)
	golden(t, "testdata/learn/wide.yaml", p.Text)
	if got, want := fmt.Sprint(p.Wider), "[files.read path mail.send]"; got != want {
		t.Errorf("wider %s, want %s", got, want)
	}
	if len(p.Refused) != 1 || p.Refused[0].Included || len(p.LeftOut) != 2 {
		t.Errorf("refused %+v, left out %+v", p.Refused, p.LeftOut)
	}
}

// TestLearnedIsNeverWider holds, for any calls that a file lets through, that the
// proposal which changes it lets nothing through that the file does not.
func TestLearnedIsNeverWider(t *testing.T) {
	constraints := map[string][]string{ // with values that pass
		"{}": {`"x"`, `1`, `true`}, "{optional: true}": {`"x"`, `"y"`, `2`}, "{max_length: 20}": {`"a"`, `"b c"`, `"/srv/a"`},
		"{subpath: /srv}": {`"/srv"`, `"/srv/a"`, `"/srv/a/b"`, `"/srv/c/d"`}, "{one_of: [EUR, /srv/a, 3, true, DE1, x]}": {`"EUR"`, `"/srv/a"`, `3`, `true`, `"x"`},
		"{integer: [-3, 4]}": {`-3`, `0`, `4`}, "{decimal: [0, 10]}": {`0.5`, `10`, `3`},
		"{email_domain: [example.com, customer.example]}": {`"a@example.com"`, `"b@customer.example"`, `"c@Example.com"`},
		"{each: {max_length: 5}}":                         {`["a"]`, `["a","b"]`, `[]`, `["c","c"]`}, "{each: {}, count: [0, 3]}": {`[1]`, `["a",true]`, `[]`},
		"{subset: [a, b, c]}": {`["a"]`, `["a","b"]`, `[]`}, "{set: [a, b]}": {`["a","b"]`, `["b","a"]`},
		"{object: {path: {optional: true}, to: {optional: true}}}":      {`{}`, `{"path":"x"}`, `{"to":1,"path":"/srv"}`},
		"{url: {schemes: [http, https], hosts: [a.example, .example]}}": {`"http://a.example/x"`, `"https://b.example/x/y"`, `"https://a.example/x?q"`},
		"{public_url: true}":                  {`"https://example.com/a"`, `"https://example.org/b"`},
		"{regex: '[a-z/@.]*'}":                {`"a@b.c"`, `"/srv/x"`, `""`},
		"{not_one_of: [EUR], optional: true}": {`"a"`, `"b"`}, "{length: [1, 30]}": {`"a"`, `"abc"`},
		`{schema: {type: [string, "null"]}}`: {`null`, `"a"`, `"b"`}, "{glob: '/**'}": {`"/a"`, `"/a/b"`}, "{host_suffix: [example]}": {`"a.example"`, `"b.a.example"`},
		"{subpath: /srv, max_length: 9}": {`"/srv/a"`, `"/srv/b"`}, "{each: {subpath: /srv}, contains: [/srv/a]}": {`["/srv/a"]`, `["/srv/a","/srv/b"]`},
		"{argv: {programs: [git], options: [-l, --n=], values: {integer: [0, 9]}, operands: {subpath: /srv}}}": {`["git"]`, `["git","-l","/srv/a"]`},
		"{prefix: ab}": {`"ab"`, `"abc"`}, "{cidr: [192.0.2.0/24]}": {`"192.0.2.1"`, `"192.0.2.9"`},
	}
	words := slices.Sorted(maps.Keys(constraints))
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		b.WriteString("version: 1\npurpose: p\nprincipal: user:a\nlife: 30m\ntools:\n  desk.say:\n    args:\n")
		fits := map[string]*rapid.Generator[string]{}
		odd := rapid.OneOf(values(1), rapid.Map(rapid.SampledFrom(words), func(w string) string { return constraints[w][0] }))
		for _, name := range []string{"path", "to", "/n/a"} {
			w := rapid.SampledFrom(words).Draw(t, name)
			fmt.Fprintf(&b, "      %s: %s\n", name, w)
			fits[name] = rapid.SampledFrom(constraints[w])
		}
		b.WriteString("budgets: {calls: 50}\n")
		base := newJudge(t, []byte(b.String()))
		probe := rapid.Custom(func(t *rapid.T) Seen {
			var args []string
			value := func(name string) string {
				if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
					return odd.Draw(t, name)
				}
				return fits[name].Draw(t, name)
			}
			for _, name := range []string{"path", "to"} {
				if rapid.IntRange(0, 9).Draw(t, "there") > 0 {
					args = append(args, quoted(name)+":"+value(name))
				}
			}
			args = append(args, `"n":{"a":`+value("/n/a")+`}`)
			s := Seen{Run: "t-1", Kind: vault.KindTool, Server: "desk", Name: "say", Known: true}
			s.Args, _ = vault.ParseArgs([]byte("{" + strings.Join(args, ",") + "}"))
			return s
		})
		var l []Seen
		all := rapid.SliceOfN(probe, 1, 30).Draw(t, "calls")
		for i := range all {
			if base.allows(t, &all[i]) == nil {
				l = append(l, all[i])
			}
		}
		if len(l) == 0 {
			t.Skip("the file lets none of them through")
		}
		f, err := Parse([]byte(b.String()), nil)
		if err != nil {
			t.Fatalf("%v", err)
		}
		o := options()
		o.Base, o.Text, o.List = f, []byte(b.String()), rapid.IntRange(0, 4).Draw(t, "list")
		p, err := Learn(lesson(l...), o)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if len(p.Wider) > 0 || len(p.LeftOut) > 0 {
			t.Fatalf("wider %v, left out %v\n%s", p.Wider, p.LeftOut, p.Text)
		}
		learned := newJudge(t, p.Text)
		for i := range l {
			if err := learned.allows(t, &l[i]); err != nil {
				t.Fatalf("%s: %v\n%s", l[i].Args, err, p.Text)
			}
		}
		more := rapid.SliceOfN(probe, 30, 30).Draw(t, "probes")
		for i := range more {
			if learned.allows(t, &more[i]) == nil && base.allows(t, &more[i]) != nil {
				t.Fatalf("it lets %s through, which the file does not:\n%s\n%s", more[i].Args, b.String(), p.Text)
			}
		}
	})
}

// TestSuspectCallsAsk holds what an injected agent cannot do: have its choice written
// down as the operator's.
func TestSuspectCallsAsk(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Seen)
		asks string
		note string
	}{
		{"a clean call", func(*Seen) {}, "[]", ""},
		{"after untrusted data, with values of trusted origin", func(s *Seen) { s.Tainted = true }, "[]", "1 of 1 calls came after"},
		{"a value from untrusted data", func(s *Seen) { s.Tainted, s.Untrusted = true, []string{"/to\n/x"} }, "[flow]", `gave /to\n/x`},
		{"a person was asked and said yes", func(s *Seen) { s.Flow = true }, "[flow]", "a person was asked"},
		{"nobody knows what was read", func(s *Seen) { s.Known = false }, "[flow]", "not on record for 1 of 1"},
		{"a group of the capability", func(s *Seen) { s.Ask = []string{"finance"} }, "[finance]", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := seen(t, "mail.send", `{"to":"a@b.example"}`)
			tt.edit(&s)
			p := learn(t, lesson(s), options())
			f, err := Parse(p.Text, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(f.Tools[0].Ask); got != tt.asks {
				t.Errorf("asks %s, want %s\n%s", got, tt.asks, p.Text)
			}
			if tt.note != "" != strings.Contains(string(p.Text), "# "+learnedMark) || !strings.Contains(string(p.Text), tt.note) {
				t.Errorf("want a note %q:\n%s", tt.note, p.Text)
			}
		})
	}
	// An egress rule cannot ask. What was refused is not granted even if that is asked
	// for; of what went, the paths are a pattern, which the flow of data goes on asking
	// about, since only a listed value counts as the operator's.
	web := Seen{Run: "t-1", Kind: vault.KindEgress, Name: "api.example.com", Args: jsonArgs(t, `{"method":"GET","path":"/v1/x"}`), Known: true, Tainted: true, Untrusted: []string{"/path"}}
	evil := web
	evil.Name, evil.Refused = "evil.example.com", vault.CodeCapabilityTarget
	o := options()
	o.Denied = true
	p := learn(t, lesson(web, evil), o)
	f, err := Parse(p.Text, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Egress) != 1 || f.Egress[0].rule().Args["/path"].All[0].Regex == nil || len(p.LeftOut) != 1 || strings.Contains(string(p.Text), "evil") {
		t.Errorf("%s", p.Text)
	}
}

// TestLearnedBudgets holds what is allowed in all: the most that one run used, with
// headroom.
func TestLearnedBudgets(t *testing.T) {
	roles := map[string]vault.Role{"/amount": vault.RoleAmount}
	a, b, c := transferOf(t, "DE1", 100), transferOf(t, "DE1", 301), transferOf(t, "DE2", 50)
	a.Roles, b.Roles, c.Roles = roles, roles, roles
	c.Run = "t-2"
	a.Debits = []vault.Debit{{Unit: vault.UnitRecipients, Amount: 1, Limit: 9}}
	p := learn(t, lesson(a, b, c), options())
	for _, want := range []string{
		"life: 5m\n", `budgets: {calls: 3, recipients: 2, bytes_out: `, `"sum(pay.transfer.amount, EUR)": 502}`, "amount: {integer: [50, 301]}",
	} {
		if !strings.Contains(string(p.Text), want) {
			t.Errorf("no %q in\n%s", want, p.Text)
		}
	}
	if p.Used.Calls != 2 || p.Used.Life != "1m30s" {
		t.Errorf("used %+v", p.Used)
	}
	for name, l := range map[string]Lesson{"nothing": {}, "too much": {Calls: make([]Seen, MaxSeen+1)}} {
		if _, err := Learn(l, options()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestWriterReadsBack holds that what is written of every accepted file reads back as
// the same rules.
func TestWriterReadsBack(t *testing.T) {
	for _, name := range files(t, "testdata/accept/*.yaml") {
		f, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range slices.Concat(f.Tools, f.Prompts, f.Resources) {
			var w writer
			w.rule(r.Server+"."+r.Name, &r.Rule)
			d := &decoder{}
			n, err := d.parse([]byte(w.String()))
			if err != nil {
				t.Fatalf("%v\n%s", err, w.String())
			}
			got := d.rules(n, "tools", func(string) error { return nil })
			if len(d.problems) > 0 || len(got) != 1 {
				t.Fatalf("%s: %v\n%s", name, d.problems, w.String())
			}
			var again writer
			again.rule(got[0].Server+"."+got[0].Name, &got[0].Rule)
			if again.String() != w.String() || got[0].Name != r.Name {
				t.Errorf("%s: %s became\n%s", name, w.String(), again.String())
			}
		}
	}
}

// FuzzLearn gives any file as the one to change, and any arguments as those of a call.
func FuzzLearn(f *testing.F) {
	f.Add([]byte(reviewed), []byte(`{"path":"/srv/a"}`), uint8(4))
	f.Add([]byte("{version: 1, purpose: p, principal: user:a, life: 1m, budgets: {calls: 1}}"), []byte(`{}`), uint8(0))
	f.Add([]byte("version: 1\r\npurpose: p\r\nprincipal: user:a\r\nlife: 1m\r\ntools: {files.read: {args: any}}\r\nbudgets: {calls: 1}"), []byte(`{"a":[1,{"b":null}]}`), uint8(1))
	f.Fuzz(func(t *testing.T, text, args []byte, list uint8) {
		base, err := Parse(text, func(string) ([]byte, error) { return nil, nil })
		if err != nil {
			return
		}
		if base, err = base.Under(DefaultLevels()); err != nil {
			return
		}
		doc, err := vault.ParseArgs(args)
		if err != nil {
			return
		}
		o := options()
		o.Base, o.Text, o.List = base, text, int(list)
		s := Seen{Run: "t-1", Kind: vault.KindTool, Server: "files", Name: "read", Args: doc, Known: true}
		l := lesson(s)
		l.Life = time.Second
		p, err := Learn(l, o)
		if err != nil {
			return
		}
		got, err := Parse(p.Text, func(string) ([]byte, error) { return nil, nil })
		if err != nil {
			t.Fatalf("%v\n%s", err, p.Text)
		}
		if got.Purpose != base.Purpose || got.Principal != base.Principal || got.Autonomy != base.Autonomy || !slices.Equal(got.Ask, base.Ask) || !slices.Equal(got.Caveats, base.Caveats) || got.SignAt != base.SignAt {
			t.Fatalf("it is another task:\n%s\n%s", text, p.Text)
		}
		if got.Life > base.Life || got.Budgets.Calls > base.Budgets.Calls {
			t.Fatalf("it may do more:\n%s\n%s", text, p.Text)
		}
	})
}
