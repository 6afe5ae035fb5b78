package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/store"
)

// TestCloseTaskWhileClientStalls: an agent that does not read what a chatty server
// sends it keeps its call from ending. The run of its task is closed after the
// call's outcome all the same, and the daemon can be started again.
func TestCloseTaskWhileClientStalls(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(r *rig, hangUp func())
	}{
		{"and hangs up later", func(_ *rig, hangUp func()) { hangUp() }},
		{"and the daemon stops meanwhile", func(r *rig, _ func()) { r.stop(); r.start() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := startDaemon(t, nil)
			u := newUpstream(t, "act")
			r.addURL("up", u.url)
			task := r.mint(taskFor("stall", 5, "up.act: {args: any}"))
			u.onCall(func(w http.ResponseWriter, _ *http.Request, _ effect) {
				w.Header().Set("Content-Type", "text/event-stream")
				note := `data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"` + strings.Repeat("x", 60<<10) + `"}}` + "\n\n"
				for range 100 {
					if _, err := io.WriteString(w, note); err != nil {
						return
					}
				}
			})
			conn, err := new(net.Dialer).DialContext(t.Context(), "unix", r.conf.Socket())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			const meta = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"debug"`
			body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"act","arguments":{},"_meta":{` + meta + `,"dev.pilox.vault/call_id":"c-stall"}}}`
			fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: text/event-stream, application/json\r\n"+
				"MCP-Protocol-Version: 2026-07-28\r\nMCP-Method: tools/call\r\nMCP-Name: act\r\nContent-Length: %d\r\n\r\n%s", task.Token, len(body), body)
			eventually(t, "something was released", func() bool { return len(r.phases(task.ID, vault.KindTool)["c-stall"]) == 2 })
			if err := r.admin.CloseTask(timeout(t, 20*time.Second), task.ID); err != nil {
				t.Fatal(err)
			}
			tt.then(r, func() { _ = conn.Close() })
			eventually(t, "the run is closed", func() bool {
				recs := r.records(task.ID)
				return recs[len(recs)-1].Leaf.Phase == string(vault.PhaseClosed)
			})
			if got := r.phases(task.ID, vault.KindTool)["c-stall"]; len(got) != 3 || !vault.Phase(got[2]).Closes() {
				t.Errorf("the call is recorded as %v", got)
			}
			r.stop()
			r.start()
			r.wantSound()
		})
	}
}

// TestClosedTaskStaysClosed: the capability of a task that was closed is worth
// nothing, also at a daemon that was started later.
func TestClosedTaskStaysClosed(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("be closed", 5, "up.act: {args: any}"))
	if err := r.admin.CloseTask(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"at once", "after a restart"} {
		t.Run(when, func(t *testing.T) {
			wantDenied(t, r.callAs(task, "", "up", "act", `{}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://vault/mcp", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/json, text/event-stream")
			res, err := r.overSocket(task).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusUnauthorized {
				t.Errorf("MCP answers %s", res.Status)
			}
		})
		r.stop()
		r.start()
	}
}

// TestReviewAcceptsWhatWasShown: an approver accepts the definitions that were
// looked at. What the server offers by then instead stays in quarantine.
func TestReviewAcceptsWhatWasShown(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	u.redefine(`{"type":"object","properties":{"harmless":{"type":"string"}}}`)
	seen, err := r.admin.ReviewServer(t.Context(), "up", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.Offers) != 1 || !strings.Contains(seen.Offers[0].Text, "harmless") {
		t.Fatalf("the review shows %+v", seen.Offers)
	}
	u.redefine(`{"type":"object","properties":{"harmful":{"type":"string"}}}`)
	var refused *admin.Error
	if s, err := r.admin.AcceptServer(t.Context(), "up", seen.Offers, approverName, r.approver); !errors.As(err, &refused) {
		t.Errorf("accepted something else than was shown: %+v, %v", s, err)
	}
	task := r.mint(taskFor("use what was not reviewed", 5, "up.act: {args: any}"))
	wantDenied(t, r.callAs(task, "", "up", "act", `{"harmful":"x"}`), vault.CodeToolQuarantined, vault.ExecutedNo)

	if seen, err = r.admin.ReviewServer(t.Context(), "up", "", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.AcceptServer(t.Context(), "up", seen.Offers, approverName, r.approver); err != nil {
		t.Fatal(err)
	}
	wantAllowed(t, r.callAs(task, "", "up", "act", `{"harmful":"x"}`))
}

// TestSandboxNeverSeesVault: nothing that holds Vault's own data is shown to a
// program or a server, by whatever name it goes.
func TestSandboxNeverSeesVault(t *testing.T) {
	socketDir, err := os.MkdirTemp("", "pvs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, socketDir) })
	r := startDaemon(t, func(c *daemon.Config) { c.Listen.Admin = filepath.Join(socketDir, "admin.sock") })
	link := filepath.Join(r.dir, "keys")
	if err := os.Symlink(filepath.Join(r.conf.Data, "keys"), link); err != nil {
		t.Fatal(err)
	}
	up := filepath.Join(r.dir, "up")
	if err := os.Symlink(filepath.Dir(r.conf.Data), up); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(r.dir, "src")
	write(t, filepath.Join(source, "server"), "#!/bin/sh\n")
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("look around", 5, "up.act: {args: any}"))
	for _, tt := range []struct{ name, path string }{
		{"the data directory", r.conf.Data},
		{"a directory in it", filepath.Join(r.conf.Data, "keys")},
		{"a directory above it", filepath.Dir(r.conf.Data)},
		{"a link to a directory in it", link},
		{"a path through a link", filepath.Join(up, "data", "keys")},
		{"a link to a directory above it", up},
		{"the directory of the socket", socketDir},
		{"the socket", r.conf.Socket()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var refused *admin.Error
			for what, req := range map[string]admin.RunRequest{
				"read":  {Token: task.Token, Argv: []string{"/bin/true"}, ReadOnly: []string{tt.path}},
				"write": {Token: task.Token, Argv: []string{"/bin/true"}, ReadWrite: []string{tt.path}},
			} {
				err := r.admin.Run(timeout(t, 10*time.Second), req, func(admin.Frame) error { return nil })
				if !errors.As(err, &refused) || refused.Code != "invalid" {
					t.Errorf("a program may %s it: %v", what, err)
				}
			}
			for what, reg := range map[string]daemon.Registration{
				"read":  {Source: "path:" + source, Entry: "server", Read: []string{tt.path}, Integrity: "org", Holds: "public"},
				"write": {Source: "path:" + source, Entry: "server", Write: []string{tt.path}, Integrity: "org", Holds: "public"},
			} {
				if _, err := r.tryAddServer("spy", reg); !errors.As(err, &refused) || refused.Code != "invalid" {
					t.Errorf("a server may %s it: %v", what, err)
				}
			}
		})
	}
}

// TestCallIDIsBounded: a call id stands in every record of its call and is kept as
// long as the task, so no edge takes one of any length.
func TestCallIDIsBounded(t *testing.T) {
	r := startDaemon(t, nil)
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("send long ids", 5, "up.act: {args: any}"))
	for _, id := range []string{strings.Repeat("x", 129), "a\nb", "a\x00", "\u202e", "a b"} {
		a := r.callAs(task, id, "up", "act", `{}`)
		if a.Denial == nil || a.Denial.Reason.Code != vault.CodeRequestMalformed {
			t.Errorf("id %.20q: %+v", id, a)
		}
	}
	wantAllowed(t, r.callAs(task, strings.Repeat("x", 128), "up", "act", `{}`))
	if n := len(u.effects()); n != 1 {
		t.Errorf("%d calls arrived", n)
	}
}

// TestDelegateStaysTainted: after a crash that lost the saved labels, the ledger
// gives back to each agent of a task what it has seen, and not all to the first.
func TestDelegateStaysTainted(t *testing.T) {
	r := startDaemon(t, func(c *daemon.Config) { c.Approvals.Wait = 10 * time.Millisecond })
	u := newUpstream(t, "look", "act")
	server := r.addServer("up", daemon.Registration{Source: u.url, Loopback: true, Integrity: "web", Holds: "private[finance]"})
	const agent = "spiffe://vault.internal/agent/default/helper/1"
	first, second := newHolder(t), newHolder(t)
	task := r.mintBound(taskFor("hand on", 9, "up.look: {args: any}", "up.act: {args: any}")+
		"labels: {may_read: [finance]}\ndelegate: {depth: 1, to: ["+agent+"]}\n", first.bind())
	chain, err := capability.ParseText(task.Token)
	if err != nil {
		t.Fatal(err)
	}
	key, err := capability.KeyOf(second.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	child, err := capability.Attenuate(chain, capability.Link{Agent: agent, Holder: capability.HeldBy(key), Depth: capability.Depth(0)}, capability.Signer{Key: first.key})
	if err != nil {
		t.Fatal(err)
	}
	call := func(id, tool string) string {
		t.Helper()
		s := second.open(t, r, child.Text())
		_, body := r.post(t, s.sign(t, server.ID, id, tool, `{"text":"x"}`), id, tool, `{"text":"x"}`)
		return body
	}
	if body := call("c-1", "look"); !strings.Contains(body, "did look") {
		t.Fatalf("the delegate gets %s", body)
	}
	if body := call("c-2", "act"); !strings.Contains(body, string(vault.CodeFlowDeadlyThree)) && !strings.Contains(body, string(vault.CodeApprovalRequired)) {
		t.Fatalf("the delegate is not asked about: %s", body)
	}
	r.stop()
	r.forgetLabels()
	r.start()
	if body := call("c-3", "act"); !strings.Contains(body, string(vault.CodeApprovalRequired)) {
		t.Errorf("after the crash the delegate is not asked about: %s", body)
	}
}

// forgetLabels makes a stopped daemon's data look as after a crash.
func (r *rig) forgetLabels() {
	r.t.Helper()
	db, err := store.Open(r.t.Context(), filepath.Join(r.conf.Data, "vault.db"))
	if err != nil {
		r.t.Fatal(err)
	}
	rows, err := db.Tenant(r.t.Context(), vault.Tenant(r.conf.Tenant))
	if err == nil {
		err = rows.DeleteRecord(r.t.Context(), store.KindSetting, "labels")
	}
	if err := errors.Join(err, db.Close()); err != nil {
		r.t.Fatal(err)
	}
}
