package daemon_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// TestRecovery kills the daemon at one chosen moment, with a call in flight, and
// looks at everything that must have come through: what is not known is called
// unknown, and nothing became looser.
func TestRecovery(t *testing.T) {
	p := newProgram(t, pvaultBinary(t))
	p.start()
	web, act, mail := newUpstream(t, "fetch"), newUpstream(t, "act"), newUpstream(t, "send")
	p.addServer("web", daemon.Registration{Source: web.url, Loopback: true, Integrity: "web", Holds: "private[crm]"})
	p.addURL("up", act.url)
	p.addServer("mail", daemon.Registration{
		Source: mail.url, Loopback: true, Integrity: "org", Holds: "public",
		Tools: []byte(`{"send":{"roles":{"/to":"recipient","/text":"content"}}}`),
	})

	tainted := taskFor("be killed while reading the web", 50, "web.fetch: {args: any}", "mail.send: {args: any}") + "labels: {may_read: [crm]}\n"
	task := p.mint(tainted)
	small := p.mint(taskFor("have two calls", 2, "up.act: {args: any}"))
	stopped := p.mint(taskFor("be stopped", 50, "up.act: {args: any}"))
	asking := p.mint(taskFor("ask", 50, "up.act: {args: any, ask: default}"))

	// What happens before the kill.
	wantAllowed(t, p.callAs(small, "c-done", "up", "act", `{"id":"done"}`))
	if _, err := p.admin.Revoke(t.Context(), admin.RevokeRequest{What: "task", ID: string(stopped.ID)}); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, p.callAs(asking, "c-spent", "up", "act", `{"id":"spent"}`), vault.CodeApprovalRequired, vault.ExecutedNo)
	answer := p.answerAs(approverName, p.question(), true)
	spent := p.question()
	if err := p.admin.Answer(t.Context(), spent.ID, answer); err != nil {
		t.Fatal(err)
	}
	wantAllowed(t, p.callAs(asking, "c-spent", "up", "act", `{"id":"spent"}`))
	// A call that is in flight when the daemon dies: its effect happened.
	arrived := make(chan struct{})
	web.onCall(func(_ http.ResponseWriter, r *http.Request, _ effect) {
		close(arrived)
		<-r.Context().Done()
	})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		c := admin.NewClient(p.conf.Socket())
		defer c.Close()
		if _, err := c.Call(t.Context(), admin.CallRequest{Token: task.Token, ID: "c-flight", Kind: vault.KindTool, Server: "web", Name: "fetch", Args: []byte(`{"id":"flight"}`)}); err == nil {
			t.Error("an answer came out of a dead daemon")
		}
	}()
	<-arrived
	p.kill()
	<-gone
	web.onCall(nil)
	p.start()

	t.Run("what was in flight is unknown, and stays so", func(t *testing.T) {
		p.wantPhases(task, "c-flight", vault.PhaseIntent, vault.PhaseUnknown)
		for range 2 {
			wantDenied(t, p.callAs(task, "c-flight", "web", "fetch", `{"id":"flight"}`), vault.CodeCallUnknown, vault.ExecutedUnknown)
		}
		if n := web.ran("flight"); n != 1 {
			t.Errorf("it ran %d times", n)
		}
	})
	t.Run("what was closed is closed", func(t *testing.T) {
		wantDenied(t, p.callAs(small, "c-done", "up", "act", `{"id":"done"}`), vault.CodeCallClosed, vault.ExecutedYes)
		if n := act.ran("done"); n != 1 {
			t.Errorf("it ran %d times", n)
		}
	})
	t.Run("a budget goes on where it was", func(t *testing.T) {
		wantAllowed(t, p.call(small, "up", "act", `{}`))
		wantDenied(t, p.call(small, "up", "act", `{}`), vault.CodeCapabilityBudget, vault.ExecutedNo)
		again, err := p.admin.OpenTask(t.Context(), admin.TaskRequest{File: []byte(taskFor("have two calls", 2, "up.act: {args: any}"))})
		if err != nil || !again.Rejoined || again.ID != small.ID {
			t.Fatalf("%+v, %v", again, err)
		}
		wantDenied(t, p.call(again, "up", "act", `{}`), vault.CodeCapabilityBudget, vault.ExecutedNo)
	})
	t.Run("what was revoked is revoked", func(t *testing.T) {
		wantDenied(t, p.call(stopped, "up", "act", `{}`), vault.CodeCapabilityRevoked, vault.ExecutedNo)
	})
	t.Run("a spent approval is spent", func(t *testing.T) {
		_ = p.admin.Answer(t.Context(), spent.ID, answer) // whatever it says, nothing may run
		wantDenied(t, p.callAs(asking, "c-more", "up", "act", `{"id":"spent"}`), vault.CodeApprovalRequired, vault.ExecutedNo)
		if n := act.ran("spent"); n != 1 {
			t.Errorf("it ran %d times", n)
		}
	})
	t.Run("what the lost answer can have carried taints", func(t *testing.T) {
		wantDenied(t, p.call(task, "mail", "send", `{"to":"mallory@evil.example","text":"x"}`), vault.CodeApprovalRequired, vault.ExecutedNo)
		if n := len(mail.effects()); n != 0 {
			t.Errorf("%d mails went out", n)
		}
	})
	p.wantSound()
}

// TestRecoveryRefusesDamage: a daemon does not start on a ledger, a checkpoint or
// keys that are not what it wrote.
func TestRecoveryRefusesDamage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, data string)
	}{
		{"the ledger goes back to an earlier state", func(t *testing.T, data string) {
			if err := os.CopyFS(filepath.Join(data, "before"), os.DirFS(filepath.Join(data, "keep"))); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"vault.db", "vault.db-wal", "vault.db-shm"} {
				if err := os.Remove(filepath.Join(data, f)); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			if err := os.Rename(filepath.Join(data, "before", "vault.db"), filepath.Join(data, "vault.db")); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(data, "vault.db"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"the ledger's key is another one", func(t *testing.T, data string) {
			if err := os.Remove(filepath.Join(data, "keys", "ledger.pem")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := startDaemon(t, nil)
			r.stop()
			// A copy of the ledger as it is now.
			keep := filepath.Join(r.conf.Data, "keep")
			if err := os.Mkdir(keep, 0o700); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(r.conf.Data, "vault.db"))
			if err == nil {
				err = os.WriteFile(filepath.Join(keep, "vault.db"), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.start()
			task := r.mint(taskFor("leave a trace", 5))
			wantDenied(t, r.call(task, "", "act", `{}`), vault.CodeCapabilityTarget, vault.ExecutedNo)
			time.Sleep(50 * time.Millisecond) // until the checkpoint file says so too
			r.stop()
			tt.damage(t, r.conf.Data)
			d, err := daemon.Open(t.Context(), r.conf, discard)
			if err == nil {
				_ = d.Close()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), "ledger") {
				t.Errorf("it refuses with %v", err)
			}
		})
	}
}
