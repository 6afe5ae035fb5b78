package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

// A reload takes effect with the next call; one that fails leaves the rules in
// force, and the operator is told.
func TestPolicyReload(t *testing.T) {
	dir := t.TempDir()
	rules := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "p.rego"), []byte("package p\n\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rules("decision := {\"effect\": \"allow\"}")
	d := startDaemon(t, func(c *daemon.Config) {
		c.Policy = daemon.Policy{Bundles: []daemon.Bundle{{Dir: dir, Unsigned: true}}, Hooks: []daemon.Hook{{At: "tool.call", Query: "data.p.decision"}}}
	})
	up := newUpstream(t, "act")
	d.addURL("up", up.url)
	task := d.mint(taskFor("see a policy change", 50, "up.act: {args: any}"))
	wantAllowed(t, d.call(task, "up", "act", `{"id":"1"}`))

	rules("decision := {\"effect\": \"deny\", \"reasons\": [{\"code\": \"frozen\"}]}")
	if err := d.daemon.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, d.call(task, "up", "act", `{"id":"2"}`), vault.CodePolicyDenied, vault.ExecutedNo)

	rules("decision := {")
	if err := d.daemon.Reload(t.Context()); err == nil {
		t.Error("rules that do not parse were loaded")
	}
	wantDenied(t, d.call(task, "up", "act", `{"id":"3"}`), vault.CodePolicyDenied, vault.ExecutedNo)
	s, err := d.admin.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(s.Warnings, "\n"), "last reload failed") {
		t.Errorf("the operator is not told: %q, %v", s.Warnings, err)
	}
	if n := up.ran("2") + up.ran("3"); n != 0 {
		t.Errorf("%d refused calls ran", n)
	}
}
