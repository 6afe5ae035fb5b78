package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// discard is a log that nobody reads.
var discard = slog.New(slog.DiscardHandler)

// taskFor is a task file that grants tools, one line each in the words of a task
// file, and calls.
func taskFor(purpose string, calls int, tools ...string) string {
	return fmt.Sprintf("version: 1\npurpose: %s\nprincipal: user:clerk@example.com\nlife: 30m\ntools: {%s}\nbudgets: {calls: %d}\n",
		purpose, strings.Join(tools, ", "), calls)
}

// hostileServer installs the misbehaving program as a server in its jail.
func (r *rig) hostileServer(name string) admin.Server {
	r.t.Helper()
	dir := filepath.Join(r.dir, "src-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	build(r.t, filepath.Join(dir, "server"), "./testdata/hostile")
	return r.addServer(name, daemon.Registration{Source: "path:" + dir, Entry: "server", Integrity: "org", Holds: "public"})
}

// callAs makes one call with a call id of its own.
func (r *rig) callAs(task admin.Task, id, server, name, args string) admin.CallAnswer {
	r.t.Helper()
	a, err := r.admin.Call(r.t.Context(), admin.CallRequest{Token: task.Token, ID: id, Kind: vault.KindTool, Server: server, Name: name, Args: json.RawMessage(args)})
	if err != nil {
		r.t.Fatalf("call %s.%s: %v", server, name, err)
	}
	return a
}

// wantDenied checks code and effect of a refusal, and that it says what to do next.
func wantDenied(t *testing.T, a admin.CallAnswer, code vault.Code, executed vault.Executed) {
	t.Helper()
	d := a.Denial
	if d == nil {
		t.Errorf("went through with %s, want %s", a.Result, code)
		return
	}
	if d.Reason.Code != code || d.Executed != executed || d.HowToAsk == "" || a.Result != nil {
		t.Errorf("denied with %+v, want %s executed %s and what to do next", d, code, executed)
	}
}

// wantAllowed checks that a call went through.
func wantAllowed(t *testing.T, a admin.CallAnswer) {
	t.Helper()
	if a.Denial != nil || a.IsError || a.Event == nil {
		t.Errorf("want a result: %+v, denial %+v", a, a.Denial)
	}
}

// wantPhases checks the records of one call.
func (r *rig) wantPhases(task admin.Task, id string, want ...vault.Phase) {
	r.t.Helper()
	var s []string
	for _, p := range want {
		s = append(s, string(p))
	}
	// An outcome is on record at most 20 ms after the answer.
	eventually(r.t, fmt.Sprintf("call %s is recorded as %v", id, s), func() bool {
		return slices.Equal(r.phases(task.ID, vault.KindTool)[id], s)
	})
}

// TestHostileServerInJail: whatever an installed server does, the call ends with a
// denial that says that the effect may have happened, and the record is closed.
// Another task, which has a process of its own, does not notice.
func TestHostileServerInJail(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) {
		c.Sandbox.MinGrade = "none"
		c.Limits.Call = 8 * time.Second // long enough for a flood of a MiB under -race on a busy host
		c.Limits.Result = 1 << 20
	})
	if r.status().Grade == vault.GradeNone.String() {
		vaulttest.Missing(t, "sandbox", "this host has no process jail")
	}
	r.hostileServer("bad")
	for _, tt := range []struct {
		name, tool string
		code       vault.Code
		phases     []vault.Phase
	}{
		{"it crashes", "crash", vault.CodeUpstreamFailed, []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}},
		{"it hangs", "hang", vault.CodeUpstreamTimeout, []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}},
		{"it floods the channel", "flood", vault.CodeUpstreamTooLarge, []vault.Phase{vault.PhaseIntent, vault.PhaseReleased, vault.PhaseFailed}},
		{"it writes what is not the protocol", "garbage", vault.CodeUpstreamGarbage, []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}},
		{"it answers 100 MB", "huge", vault.CodeUpstreamTooLarge, []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := r.mint(taskFor(tt.name, 5, "bad."+tt.tool+": {args: any}"))
			before := r.status().Resident
			wantDenied(t, r.callAs(task, "c-bad", "bad", tt.tool, `{}`), tt.code, vault.ExecutedUnknown)
			r.wantPhases(task, "c-bad", tt.phases...)
			good := r.mint(taskFor("use the server while "+tt.name, 5, "bad.echo: {args: any}"))
			wantAllowed(t, r.callAs(good, "c-good", "bad", "echo", `{}`))
			if after := r.status().Resident; after > before+64<<20 {
				t.Errorf("resident memory went from %d to %d bytes", before, after)
			}
		})
	}
	r.wantSound()
}

// TestHostileURLServer is the same for a server that Vault only reaches.
func TestHostileURLServer(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) {
		c.Limits.Call = 2 * time.Second
		c.Limits.Result = 1 << 20
	})
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	failed := []vault.Phase{vault.PhaseIntent, vault.PhaseFailed}
	for _, tt := range []struct {
		name   string
		code   vault.Code
		answer func(w http.ResponseWriter, r *http.Request, c effect)
	}{
		{"it hangs up", vault.CodeUpstreamFailed, func(http.ResponseWriter, *http.Request, effect) { panic(http.ErrAbortHandler) }},
		{"it hangs", vault.CodeUpstreamTimeout, func(_ http.ResponseWriter, r *http.Request, _ effect) { <-r.Context().Done() }},
		{"it floods with notifications", vault.CodeUpstreamTooLarge, func(w http.ResponseWriter, _ *http.Request, _ effect) {
			w.Header().Set("Content-Type", "text/event-stream")
			for {
				if _, err := w.Write([]byte("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":\"flood\"}}\n\n")); err != nil {
					return
				}
			}
		}},
		{"it answers garbage", vault.CodeUpstreamGarbage, func(w http.ResponseWriter, _ *http.Request, _ effect) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, "<html>It works!</html>")
		}},
		{"it answers 100 MB", vault.CodeUpstreamTooLarge, func(w http.ResponseWriter, _ *http.Request, _ effect) {
			w.Header().Set("Content-Type", "application/json")
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := r.mint(taskFor(tt.name, 5, "up.act: {args: any}"))
			u.onCall(tt.answer)
			wantDenied(t, r.callAs(task, "c-bad", "up", "act", `{}`), tt.code, vault.ExecutedUnknown)
			if tt.code == vault.CodeUpstreamTooLarge && strings.Contains(tt.name, "notifications") {
				// What came before the limit was reached was handed out.
				r.wantPhases(task, "c-bad", vault.PhaseIntent, vault.PhaseReleased, vault.PhaseFailed)
			} else {
				r.wantPhases(task, "c-bad", failed...)
			}
			u.onCall(nil)
			wantAllowed(t, r.callAs(task, "c-good", "up", "act", `{}`))
		})
	}
	t.Run("it is gone", func(t *testing.T) {
		gone := newUpstream(t, "act")
		r.addURL("gone", gone.url)
		task := r.mint(taskFor("it is gone", 5, "gone.act: {args: any}"))
		gone.stop()
		wantDenied(t, r.callAs(task, "c-gone", "gone", "act", `{}`), vault.CodeServerDown, vault.ExecutedNo)
		r.wantPhases(task, "c-gone", vault.PhaseIntent, vault.PhaseFailed)
	})
	r.wantSound()
}

// TestBadArguments: arguments that could mean two things to two parsers, or more
// than anybody needs, never become a call.
func TestBadArguments(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("send bad arguments", 5, "up.act: {args: any}"))
	for _, tt := range []struct {
		name, args string
		code       vault.Code
	}{
		{"an integer that a double does not keep", `{"n":9007199254740993}`, vault.CodeNumberUnsafe},
		{"a fraction that a double does not keep", `{"n":0.1000000000000000055511151231257827}`, vault.CodeNumberUnsafe},
		{"a number beyond every double", `{"n":1e999}`, vault.CodeNumberUnsafe},
		{"a key twice", `{"id":"a","id":"b"}`, vault.CodeArgsDuplicate},
		{"a key twice, once in escapes", `{"id":"a","\u0069d":"b"}`, vault.CodeArgsDuplicate},
		{"a key twice, in another case", `{"id":"a","ID":"b"}`, vault.CodeArgsDuplicate},
		{"a lone surrogate", `{"id":"\ud800"}`, vault.CodeArgsMalformed},
		{"a list", `["a"]`, vault.CodeArgsMalformed},
		{"nesting without end", `{"x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`, vault.CodeArgsTooLarge},
		{"more than the limit", `{"text":"` + strings.Repeat("x", vault.MaxArgsBytes) + `"}`, vault.CodeArgsTooLarge},
		{"the wrong type", `{"id":7}`, vault.CodeArgsSchema},
		{"an argument that the schema does not name", `{"other":"x"}`, vault.CodeArgsSchema},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := r.status().Ledger
			wantDenied(t, r.call(task, "up", "act", tt.args), tt.code, vault.ExecutedNo)
			for _, rec := range r.records("")[size:] {
				if rec.Leaf.Phase == string(vault.PhaseIntent) {
					t.Error("there is an intent")
				}
			}
		})
	}
	if n := len(u.effects()); n != 0 {
		t.Errorf("%d calls ran", n)
	}
}

// TestBadTokens: a capability that is not what it should be, or not used as it
// should be, is refused with the reason, and nothing runs.
func TestBadTokens(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true })
	u := newUpstream(t, "act", "other")
	server := r.addURL("up", u.url)
	other := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true })
	other.addURL("up", u.url)
	// A daemon of another cluster that trusts the same issuer: its keys are a copy.
	keys := copiedKeys(t, r)
	cousin := startDaemon(t, func(c *daemon.Config) {
		c.Listen.Bearer = true
		keys(c)
	})
	cousin.addURL("up", u.url)

	const rule = "up.act: {args: any}"
	good := r.mintBound(taskFor("a good one", 5, rule), "bearer")
	short := r.mintBound(strings.Replace(taskFor("a short one", 5, rule), "30m", "1s", 1), "bearer")
	peer := r.mint(taskFor("bound to a uid", 5, rule))
	holder := newHolder(t)
	rich := r.mintBound(taskFor("rich", 5, rule)+"delegate: {depth: 2}\n", holder.bind())
	poor := r.mintBound(taskFor("poor", 5, "up.other: {args: any}")+"delegate: {depth: 2}\n", holder.bind())
	time.Sleep(1100 * time.Millisecond) // until the short one has expired

	for _, tt := range []struct {
		name, token string
		code        vault.Code
	}{
		{"not a token", "garbage", vault.CodeCapabilityMalformed},
		{"nothing inside", "vc1.", vault.CodeCapabilityMissing},
		{"noise inside", "vc1.AAAAAAAA", vault.CodeCapabilityMalformed},
		{"cut short", good.Token[:len(good.Token)-8], vault.CodeCapabilityMalformed},
		{"a bit flipped in the signature", flipLast(good.Token), vault.CodeCapabilitySignature},
		{"expired", short.Token, vault.CodeCapabilityExpired},
		{"of another issuer", other.mintBound(taskFor("elsewhere", 5, rule), "bearer").Token, vault.CodeCapabilitySignature},
		{"for another audience", cousin.mintBound(taskFor("elsewhere", 5, rule), "bearer").Token, vault.CodeCapabilityAudience},
		{"bound to a uid, over TCP", peer.Token, vault.CodeProof},
		{"bound to a key, without a proof", rich.Token, vault.CodeProof},
		{"spliced: a link of one chain on the root of another", holder.splice(t, rich.Token, poor.Token), vault.CodeCapabilityMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := r.post(t, http.Header{"Authorization": {"Bearer " + tt.token}}, "c-token", "act", `{}`)
			if status != http.StatusUnauthorized && status != http.StatusForbidden || !strings.Contains(body, `"`+string(tt.code)+`"`) {
				t.Errorf("%d %s, want %s", status, body, tt.code)
			}
		})
	}

	t.Run("replayed", func(t *testing.T) {
		s := holder.open(t, r, rich.Token)
		h := s.sign(t, server.ID, "c-once", "act", `{}`)
		if status, body := r.post(t, h, "c-once", "act", `{}`); status != http.StatusOK || strings.Contains(body, vault.DenialKey) {
			t.Fatalf("the first time: %d %s", status, body)
		}
		for name, again := range map[string]struct{ id, tool, args string }{
			"as it was":              {"c-once", "act", `{}`},
			"for other arguments":    {"c-once", "act", `{"id":"x"}`},
			"under another call id":  {"c-twice", "act", `{}`},
			"for another tool of it": {"c-once", "other", `{}`},
		} {
			if _, body := r.post(t, h, again.id, again.tool, again.args); !strings.Contains(body, `"`+string(vault.CodeProof)+`"`) && !strings.Contains(body, `"`+string(vault.CodeToolUnknown)+`"`) {
				t.Errorf("%s: %s", name, body)
			}
		}
		h = s.sign(t, server.ID, "c-next", "act", `{"id":"next"}`)
		if _, body := r.post(t, h, "c-next", "act", `{"id":"evil"}`); !strings.Contains(body, `"`+string(vault.CodeProof)+`"`) {
			t.Errorf("a proof for other arguments: %s", body)
		}
	})
	if got := u.effects(); len(got) != 1 {
		t.Errorf("%d calls ran, want the one that was proven: %+v", len(got), got)
	}
	r.wantSound()
}

// TestRetries: one call id has one effect, whatever became of it.
func TestRetries(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("retry", 50, "up.act: {args: any}"))
	const args = `{"id":"one"}`

	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	u.onCall(func(w http.ResponseWriter, _ *http.Request, c effect) {
		arrived <- struct{}{}
		<-release
		replyText(w, c, "once")
	})
	answers := make(chan admin.CallAnswer, 3)
	ask := func() { answers <- r.callAs(task, "c-1", "up", "act", args) }
	go ask()
	<-arrived
	go ask()
	go ask()
	// Other arguments under the id of a call in flight are refused at once.
	wantDenied(t, r.callAs(task, "c-1", "up", "act", `{"id":"two"}`), vault.CodeCallArgsDiffer, vault.ExecutedNo)
	close(release)
	var first admin.CallAnswer
	for i := range 3 {
		a := <-answers
		wantAllowed(t, a)
		if i == 0 {
			first = a
		} else if !bytes.Equal(a.Result, first.Result) || *a.Event != *first.Event {
			t.Errorf("a joined call got %s at %d, the first %s at %d", a.Result, *a.Event, first.Result, *first.Event)
		}
	}
	u.onCall(nil)

	// Closed: the same outcome while it is kept, in this life of the daemon.
	if a := r.callAs(task, "c-1", "up", "act", args); !bytes.Equal(a.Result, first.Result) {
		t.Errorf("a retry of a closed call got %s", a.Result)
	}
	wantDenied(t, r.callAs(task, "c-1", "up", "act", `{"id":"two"}`), vault.CodeCallArgsDiffer, vault.ExecutedNo)
	if n := u.ran("one"); n != 1 || u.ran("two") != 0 {
		t.Errorf("it ran %d times", n)
	}
	r.wantPhases(task, "c-1", vault.PhaseIntent, vault.PhaseRefused, vault.PhaseDone, vault.PhaseRefused)

	// And in the next life: the outcome is known, the result is not.
	r.stop()
	r.start()
	wantDenied(t, r.callAs(task, "c-1", "up", "act", args), vault.CodeCallClosed, vault.ExecutedYes)
	if n := u.ran("one"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	// Of a call that failed the retry gets the failure, not another attempt.
	u.onCall(func(http.ResponseWriter, *http.Request, effect) { panic(http.ErrAbortHandler) })
	for range 2 {
		wantDenied(t, r.callAs(task, "c-2", "up", "act", `{"id":"lost"}`), vault.CodeUpstreamFailed, vault.ExecutedUnknown)
	}
	if n := u.ran("lost"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	r.wantSound()
}

// TestStartRefuses: what is configured and cannot be had stops the start, and says
// why.
func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	bundle := func(name, rego string) daemon.Policy {
		d := filepath.Join(dir, name)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if rego != "" {
			if err := os.WriteFile(filepath.Join(d, "p.rego"), []byte(rego), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return daemon.Policy{Bundles: []daemon.Bundle{{Dir: d, Unsigned: true}}, Hooks: []daemon.Hook{{At: "tool.call", Query: "data.p.decision"}}}
	}
	for _, tt := range []struct {
		name   string
		mutate func(*daemon.Config)
		want   string
	}{
		{"a policy that does not parse", func(c *daemon.Config) { c.Policy = bundle("broken", "package p\n\ndecision := {") }, "policy: "},
		{"a policy that uses what is off", func(c *daemon.Config) {
			c.Policy = bundle("net", "package p\n\ndecision := http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"})\n")
		}, "http.send"},
		{"a policy directory without a policy", func(c *daemon.Config) { c.Policy = bundle("empty", "") }, "policy: "},
		{"a policy directory that is not there", func(c *daemon.Config) {
			c.Policy = bundle("x", "package p\n")
			c.Policy.Bundles[0].Dir = filepath.Join(dir, "none")
		}, "policy: "},
		{"a grade that no process sandbox gives", func(c *daemon.Config) { c.Sandbox.MinGrade = "A" }, "pvault doctor"},
		{"a data directory that others can read", func(c *daemon.Config) {
			if err := os.Mkdir(c.Data, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "chmod 700"},
		{"a data directory that is a file", func(c *daemon.Config) {
			if err := os.WriteFile(c.Data, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "data directory"},
		{"a group without such an approver", func(c *daemon.Config) {
			c.Approvals.Groups = map[string][]string{"finance": {"key:nobody"}}
		}, "key:nobody"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := daemon.Config{Data: filepath.Join(t.TempDir(), "data"), Listen: daemon.Listen{HTTP: "off"}, Sandbox: daemon.Sandbox{MinGrade: "none"}}
			tt.mutate(&c)
			if err := c.Complete(os.Getenv); err != nil {
				t.Fatal(err)
			}
			d, err := daemon.Open(t.Context(), c, discard)
			if err == nil {
				_ = d.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("it refuses with %q, which does not say %q", err, tt.want)
			}
		})
	}
	t.Run("a second daemon on the same data", func(t *testing.T) {
		r := startDaemon(t, nil)
		if _, err := daemon.Open(t.Context(), r.conf, discard); err == nil || !strings.Contains(err.Error(), "another process uses this data directory") {
			t.Errorf("a second daemon: %v", err)
		}
	})
}

// TestLedgerFull: while the ledger cannot be written nothing runs, and the caller
// learns why; once it can be written again everything goes on.
func TestLedgerFull(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Data = tinyDisk(t) })
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("fill the disk", 1000, "up.act: {args: any}"))
	wantAllowed(t, r.callAs(task, "c-before", "up", "act", `{"id":"before"}`))

	filler := filepath.Join(r.conf.Data, "filler")
	fill(t, filler)
	// A journal page may still have room, so it can take a few calls.
	var denied admin.CallAnswer
	n := 0
	for ; n < 200 && denied.Denial == nil; n++ {
		denied = r.callAs(task, fmt.Sprintf("c-full-%d", n), "up", "act", fmt.Sprintf(`{"id":"full-%d"}`, n))
	}
	wantDenied(t, denied, vault.CodeLedger, vault.ExecutedNo)
	for range 3 {
		wantDenied(t, r.call(task, "up", "act", `{"id":"never"}`), vault.CodeLedger, vault.ExecutedNo)
	}
	if u.ran("never") != 0 || u.ran(fmt.Sprintf("full-%d", n-1)) != 0 {
		t.Error("a call ran without its intent")
	}
	// Authority can be taken away all the same.
	if _, err := r.admin.Revoke(t.Context(), admin.RevokeRequest{What: "task", ID: string(task.ID)}); err == nil {
		t.Log("the revocation found room in the ledger")
	}
	wantDenied(t, r.call(task, "up", "act", `{"id":"revoked"}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	file := []byte(taskFor("after the disk was full", 10, "up.act: {args: any}"))
	var next admin.Task
	eventually(t, "a task can be opened again", func() bool {
		var err error
		next, err = r.admin.MintTask(t.Context(), admin.TaskRequest{File: file}, approverName, r.approver)
		return err == nil
	})
	eventually(t, "calls go through again", func() bool { return r.call(next, "up", "act", `{"id":"after"}`).Denial == nil })
	eventually(t, "the revocation is on record", func() bool {
		return slices.ContainsFunc(r.records(""), func(rec record) bool { return rec.Leaf.Class == string(vault.ClassRevocation) })
	})
	r.wantSound()
	for _, e := range u.effects() {
		if !slices.ContainsFunc(r.records(""), func(rec record) bool {
			return rec.Leaf.Phase == string(vault.PhaseIntent) && rec.Fields["args"] == e.args
		}) {
			t.Errorf("call %s ran and the ledger has no intent of it", e.id)
		}
	}
}

// flipLast changes the last bits of a token.
func flipLast(token string) string {
	b := []byte(token)
	i := len(b) - 3
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}
