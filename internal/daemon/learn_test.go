package daemon_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// learner reads the runs of tasks as the command does.
func (r *rig) learner(runs ...admin.Task) *daemon.Learner {
	r.t.Helper()
	servers, err := r.admin.Servers(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := daemon.NewLearner(servers)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, task := range runs {
		if err := r.admin.Tail(r.t.Context(), 0, task.ID, false, true, func(raw json.RawMessage) error { return l.Add(raw) }); err != nil {
			r.t.Fatal(err)
		}
	}
	return l
}

func (r *rig) learn(q daemon.LearnRequest, runs ...admin.Task) *daemon.LearnResult {
	r.t.Helper()
	p, err := r.learner(runs...).Propose(r.conf.Autonomy, q)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// TestLearn follows requests of an agent into a task file that lets them through and
// little else: minted, it does. A request to a host that was not granted is in it only
// if that is asked for; and one that untrusted data may have chosen is not.
func TestLearn(t *testing.T) {
	in := newInternet(t)
	r := startOnline(t, in, nil)
	u := newUpstream(t, "read")
	r.addServer("notes", daemon.Registration{Source: u.url, Loopback: true, Integrity: "org", Holds: "public"})
	wide := r.mint(online("look up a balance", "tools: {notes.read: {args: any}}\n", "{host: api.example.com, methods: [GET], path: /**}"))
	wantDenied(t, r.send(wide, "early", "rates.example.com", `{"method":"GET","path":"/eur"}`), vault.CodeCapabilityTarget, vault.ExecutedNo)
	wantAllowed(t, r.call(wide, "notes", "read", `{}`))
	wantAllowed(t, r.send(wide, "one", "api.example.com", `{"method":"GET","path":"/v1/accounts/7"}`))
	// From here on the agent has read what came back from outside.
	wantDenied(t, r.send(wide, "late", "evil.example.com", `{"method":"GET","path":"/x"}`), vault.CodeCapabilityTarget, vault.ExecutedNo)

	// A refusal names who tried, also where the capability refused.
	for _, rec := range r.records(wide.ID) {
		if rec.Leaf.Phase == string(vault.PhaseRefused) && rec.Fields["caller"] != string(wide.Agent) {
			t.Errorf("the refusal %d names %q", rec.Leaf.Index, rec.Fields["caller"])
		}
	}

	p := r.learn(daemon.LearnRequest{List: 4}, wide)
	if !strings.Contains(p.File, "- {host: api.example.com, methods: [GET], path: /v1/accounts/7}") || !strings.Contains(p.File, "notes.read: {args: {}}") {
		t.Errorf("%s", p.File)
	}
	if strings.Contains(p.File, "rates") || strings.Contains(p.File, "evil") || len(p.Refused) != 2 || p.Refused[0].Included || p.Refused[1].Included {
		t.Errorf("%s\n%+v", p.File, p.Refused)
	}
	p = r.learn(daemon.LearnRequest{List: 4, Headroom: 50, Denied: true}, wide)
	if !strings.Contains(p.File, "# learned: 1 of 1 calls were refused then (capability.target)") || !strings.Contains(p.File, "host: rates.example.com") {
		t.Errorf("%s", p.File)
	}
	if strings.Contains(p.File, "evil") || len(p.LeftOut) != 1 || p.LeftOut[0].Target != "evil.example.com" {
		t.Errorf("%s\n%+v", p.File, p.LeftOut)
	}

	narrow := r.mint(p.File)
	wantDenied(t, r.send(narrow, "c-8", "api.example.com", `{"method":"GET","path":"/v1/accounts/8"}`), vault.CodeCapabilityArgument, vault.ExecutedNo)
	wantAllowed(t, r.send(narrow, "c-7", "api.example.com", `{"method":"GET","path":"/v1/accounts/7"}`))
	again := r.mint(online("look up two balances", "", "{host: api.example.com, methods: [GET], path: /**}"))
	if _, err := r.learner(wide, again).Propose(r.conf.Autonomy, daemon.LearnRequest{Name: "task.yaml", File: []byte("version: 2")}); err == nil {
		t.Error("a base that is no task file is taken")
	}
	if p = r.learn(daemon.LearnRequest{}, wide, again); len(p.Runs) != 2 || len(p.Notes) != 1 {
		t.Errorf("runs %v, notes %v", p.Runs, p.Notes)
	}
}

// TestUnknownScopes holds what is taken for known of a refusal whose record does not
// say what the agent had read: that it was nothing untrusted if a later call of the same
// agent says so, unless an earlier one says otherwise.
func TestUnknownScopes(t *testing.T) {
	const (
		clean   = `"context":"{\"integrity\":\"user\",\"risk\":\"low\"}"`
		tainted = `"context":"{\"integrity\":\"web\",\"risk\":\"low\"}"`
		unknown = `"note":"[]"`
	)
	event := func(phase, caller, host, context string) string {
		return `{"leaf":{"class":"call","phase":"` + phase + `","reason":"capability.target","run":"t-1","kind":"egress","ts":"2026-11-28T08:00:01Z"},` +
			`"fields":{"caller":"` + caller + `","target":"` + host + `.example.com","args":"{\"method\":\"GET\",\"path\":\"/x\"}",` + context + `}}`
	}
	refused := event("refused", "a", "new", unknown)
	for _, tt := range []struct {
		name   string
		events []string
		known  bool
	}{
		{"a later call had read nothing", []string{refused, event("intent", "a", "api", clean)}, true},
		{"a later call had", []string{refused, event("intent", "a", "api", tainted)}, false},
		{"nothing came later", []string{event("intent", "a", "api", clean), refused}, false},
		{"another agent had read nothing", []string{refused, event("intent", "b", "api", clean)}, false},
		{"its scope began anew", []string{event("intent", "a", "api", tainted), refused, event("intent", "a", "api", clean)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := daemon.NewLearner(nil)
			if err != nil {
				t.Fatal(err)
			}
			opened := `{"leaf":{"class":"task","phase":"opened","run":"t-1","ts":"2026-11-28T08:00:00Z"},"fields":{"principal":"user:a","purpose":"p","capability":"{\"links\":[{}]}"}}`
			for _, e := range append([]string{opened}, tt.events...) {
				if err := l.Add(json.RawMessage(e)); err != nil {
					t.Fatal(err)
				}
			}
			p, err := l.Propose(daemon.Autonomy{}, daemon.LearnRequest{List: 4, Denied: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(p.File, "new.example.com"); got != tt.known {
				t.Errorf("granted %v, want %v\n%s", got, tt.known, p.File)
			}
		})
	}
}

// FuzzLearner reads anything as events of a run. What is proposed of it is a task file,
// or nothing is.
func FuzzLearner(f *testing.F) {
	const opened = `{"leaf":{"class":"task","phase":"opened","run":"t-1","ts":"2026-11-28T08:00:00Z"},"fields":{"principal":"user:a","purpose":"p","capability":"{\"links\":[{\"caveats\":[\"true\"],\"sign_at\":\"high\"}]}"}}`
	f.Add([]byte(opened), []byte(`{"leaf":{"class":"call","phase":"intent","run":"t-1","kind":"egress","idx":1,"ts":"2026-11-28T08:00:01Z"},"fields":{"target":"a.example.com","args":"{\"method\":\"GET\",\"path\":\"/\"}","context":"{\"integrity\":\"web\"}"}}`))
	f.Add([]byte(opened), []byte(`{"leaf":{"class":"call","phase":"refused","run":"t-1","kind":"tool","reason":"capability.target"},"fields":{"args":"(erased)","note":"(erased)"}}`))
	f.Fuzz(func(t *testing.T, open, call []byte) {
		l, err := daemon.NewLearner(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range [][]byte{open, call, call} {
			if l.Add(raw) != nil {
				return
			}
		}
		p, err := l.Propose(daemon.Autonomy{}, daemon.LearnRequest{List: 2, Denied: true})
		if err != nil {
			return
		}
		if _, err := daemon.ReviewTask(daemon.Config{}, []byte(p.File), nil); err != nil {
			t.Fatalf("%v\n%s", err, p.File)
		}
	})
}
