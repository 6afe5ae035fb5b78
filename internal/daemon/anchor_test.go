package daemon_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestAnchored: whom vault.yaml names vouches for the ledger in the background and
// when asked, their word goes into bundles, and whatever they do instead of it leaves
// calls alone and is made up for later.
func TestAnchored(t *testing.T) {
	witness, ws := vaulttest.NewWitness(t, "w.example")
	log, ls := vaulttest.NewRekor(t)
	authority, as := vaulttest.NewTSA(t, "stamps.test")
	policy := []byte("witness w " + witness.VKey + " " + ws.URL + "/w\nquorum w\n")
	v1 := vaulttest.NewRekorV1("rekor-v1.test")
	v1s := httptest.NewServer(v1)
	t.Cleanup(v1s.Close)
	dir := t.TempDir()
	file, roots, keyV1 := filepath.Join(dir, "policy"), filepath.Join(dir, "roots.pem"), filepath.Join(dir, "rekor-v1.pem")
	if err := errors.Join(os.WriteFile(file, policy, 0o600), os.WriteFile(roots, authority.Roots(), 0o600), os.WriteFile(keyV1, []byte(v1.Key()), 0o600)); err != nil {
		t.Fatal(err)
	}
	r := startDaemon(t, func(c *daemon.Config) {
		c.Anchor = daemon.Anchor{
			Witnesses: file, Rekor: ls.URL, RekorKey: log.VKey, RekorV1: v1s.URL, RekorV1Key: keyV1,
			TSA: as.URL + "/tsr", TSARoots: roots, Every: time.Second,
		}
	})
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("anchored", 100, "up.act: {args: any}"))
	// reached waits until all vouch for what is on record now.
	reached := func(what string) {
		t.Helper()
		size := r.status().Ledger
		eventually(t, what, func() bool {
			return !slices.ContainsFunc(r.status().Anchors, func(a admin.Anchor) bool { return a.Size < uint64(size) })
		})
	}
	r.call(task, "up", "act", "{}")
	reached("the background anchors")

	release := make(chan struct{})
	for what, answer := range map[string]func(w http.ResponseWriter){
		"502":     func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
		"404":     func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
		"garbage": func(w http.ResponseWriter) { w.Write([]byte("yes\n")) },
		"slow":    func(w http.ResponseWriter) { <-release },
	} {
		witness.Set(func(w http.ResponseWriter, _ string) bool { answer(w); return true })
		log.Set(func(w http.ResponseWriter, _ []byte) bool { answer(w); return true })
		v1.Set(func(w http.ResponseWriter, _ []byte) bool { answer(w); return true })
		authority.Set(func(w http.ResponseWriter, _ []byte) bool { answer(w); return true })
		asked, askedV1, stamped := log.Asked(), v1.Asked(), authority.Asked()
		for range 2 { // the first is what they are asked about
			if got := r.call(task, "up", "act", "{}"); got.Denial != nil || got.IsError {
				t.Errorf("a call while the anchors answer %s: %+v", what, got)
			}
			if what != "slow" { // counted when it answers
				eventually(t, "logs and authority are asked, and answer "+what, func() bool {
					return log.Asked() > asked && v1.Asked() > askedV1 && authority.Asked() > stamped
				})
			}
		}
		if what == "slow" {
			close(release)
		}
		witness.Set(nil)
		log.Set(nil)
		v1.Set(nil)
		authority.Set(nil)
		reached("what was missed while they answered " + what + " is made up for")
	}

	if list, err := r.admin.Anchor(t.Context()); err != nil || len(list) != 4 || list[0].Error+list[1].Error+list[2].Error+list[3].Error != "" {
		t.Errorf("anchored by hand: %+v, %v", list, err)
	}
	bundle, err := r.admin.Export(t.Context(), admin.ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := evidence.Options{Keys: []string{r.status().LedgerKey}, Policy: policy, RekorKeys: []string{log.VKey, v1.Key()}, TSARoots: authority.Roots()}
	report, err := evidence.VerifyBytes(bundle, want)
	if err != nil || report.Problem != evidence.ProblemNone || report.Anchored != report.Size || len(report.AnchoredBy) < 4 || report.Before == nil {
		b, _ := json.Marshal(report)
		t.Errorf("the bundle: %v, %s", err, b)
	}
	stranger, _ := vaulttest.NewRekor(t)
	want.RekorKeys = []string{stranger.VKey}
	if report, err = evidence.VerifyBytes(bundle, want); err != nil || report.Problem != evidence.ProblemUnanchored {
		t.Errorf("a log that never saw it vouches: %v, %s", err, report.Problem)
	}
	want.RekorKeys, want.TSARoots = nil, vaulttest.NewAuthority("stranger.test", nil).Roots()
	if report, err = evidence.VerifyBytes(bundle, want); err != nil || report.Problem != evidence.ProblemUnstamped {
		t.Errorf("an authority that never saw it vouches: %v, %s", err, report.Problem)
	}
	if logs := r.logs.String(); !strings.Contains(logs, "502") {
		t.Error("the log does not say that somebody did not vouch")
	}
}
