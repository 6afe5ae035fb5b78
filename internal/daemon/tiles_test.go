package daemon_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

const readerToken = "0c7f0a5be9b54c7c83b1e7d1a4f3d2c6"

func withTiles(c *daemon.Config) {
	sum := sha256.Sum256([]byte(readerToken))
	c.Tiles = daemon.Tiles{Address: "127.0.0.1:0", Readers: []daemon.TilesReader{{Name: "auditor", SHA256: hex.EncodeToString(sum[:])}}}
}

// fill makes the ledger of r larger than a tile.
func (r *rig) fill() {
	r.t.Helper()
	u := newUpstream(r.t, "act")
	r.addURL("up", u.url)
	task := r.mint(loadTask)
	for range 140 { // two records each
		r.call(task, "up", "act", "{}")
	}
	r.wantSound() // an export signs a checkpoint over all
}

// TestTilesListener: the log is served where vault.yaml says, to whom it says.
func TestTilesListener(t *testing.T) {
	r := startDaemon(t, withTiles)
	r.fill()
	s := r.status()
	get := func(path string, change func(*http.Request)) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Tiles+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	auth := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+readerToken) }
	code, note := get("/checkpoint", nil)
	cp, _, err := evidence.OpenCheckpoint(note, s.LedgerKey)
	if code != http.StatusOK || err != nil || cp.Size < 257 {
		t.Fatalf("checkpoint: %d, size %d, %v", code, cp.Size, err)
	}
	code, b := get("/tile/entries/000", auth)
	if code != http.StatusOK || !strings.Contains(string(b), `"class":"daemon"`) {
		t.Errorf("entries: %d, %.80q", code, b)
	}
	for what, c := range map[string]struct {
		path   string
		change func(*http.Request)
		want   int
	}{
		"without a token":    {"/tile/entries/000", nil, 401},
		"a foreign page":     {"/checkpoint", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }, 403},
		"a rebound name":     {"/checkpoint", func(r *http.Request) { r.Host = "evil.example" }, 403},
		"the agents' routes": {"/mcp", auth, 404},
		"the console":        {"/console/", nil, 401},
	} {
		if code, _ := get(c.path, c.change); code != c.want {
			t.Errorf("%s: %d, want %d", what, code, c.want)
		}
	}
}

// TestTesseraAcceptsTheLog: fsck of the Tessera project rebuilds the served log from
// its entries, and finds every tile and the checkpoint as they should be.
func TestTesseraAcceptsTheLog(t *testing.T) {
	judge := vaulttest.Judges(t)
	r := startDaemon(t, withTiles)
	r.fill()
	s := r.status()
	origin, _, _ := strings.Cut(s.LedgerKey, "+")
	if out, err := judge("fsck", "http://"+s.Tiles+"/", origin, s.LedgerKey, readerToken); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := judge("fsck", "http://"+s.Tiles+"/", origin, s.LedgerKey, "guess"); err == nil {
		t.Errorf("it read the log without a token: %s", out)
	}
}
