package daemon_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault/internal/daemon"
)

// A siem takes CloudEvents while it is up.
type siem struct {
	mu   sync.Mutex
	up   bool
	got  map[uint64]string // leaf by index
	text strings.Builder
}

func (s *siem) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []struct {
		ID   string
		Data json.RawMessage
	}
	if err != nil || !s.up || json.Unmarshal(b, &batch) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.text.Write(b)
	for _, e := range batch {
		idx, err := strconv.ParseUint(e.ID, 10, 64)
		if err == nil {
			s.got[idx] = string(e.Data)
		}
	}
}

func (s *siem) set(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = up
}

// TestSinkThatIsDown: a receiver that is down holds up no call and no stop; when it
// is back, also after a restart, it gets every event, exactly as it stands in the
// ledger and without a sensitive field.
func TestSinkThatIsDown(t *testing.T) {
	s := &siem{got: map[uint64]string{}}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	r := startDaemon(t, func(c *daemon.Config) {
		c.Sinks = []daemon.Sink{{Name: "siem", Kind: "http", URL: web.URL}}
	})
	u := newUpstream(t, "act")
	r.addURL("up", u.url)
	task := r.mint(taskFor("ship what happens", 100, "up.act: {args: any}"))
	wantAllowed(t, r.call(task, "up", "act", `{"text":"a canary in the mine"}`))
	eventually(t, "the status says that it is down", func() bool {
		st := r.status()
		return len(st.Sinks) == 1 && st.Sinks[0].Lag > 0 && strings.Contains(st.Sinks[0].Error, "503")
	})
	began := time.Now()
	for range 20 {
		wantAllowed(t, r.call(task, "up", "act", `{}`))
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("20 calls took %v", took)
	}
	r.stop()
	s.set(true)
	r.start()
	eventually(t, "it is up to date", func() bool { st := r.status(); return st.Sinks[0].Lag == 0 && st.Sinks[0].Error == "" })
	s.mu.Lock()
	defer s.mu.Unlock()
	size := r.status().Ledger
	for i := range size {
		if s.got[i] == "" {
			t.Errorf("event %d of %d did not arrive", i, size)
		}
	}
	for _, rec := range r.raw() {
		if s.got[rec.index] != rec.leaf {
			t.Errorf("event %d arrived as %s", rec.index, s.got[rec.index])
		}
	}
	for _, secret := range []string{"a canary in the mine", "user:", "spiffe://", "ship what happens"} {
		if strings.Contains(s.text.String(), secret) {
			t.Errorf("%q left", secret)
		}
	}
	if !strings.Contains(s.text.String(), `"caller":"p-`) {
		t.Error("no pseudonym left")
	}
}

type rawRecord struct {
	index uint64
	leaf  string
}

// raw returns the exact leaves.
func (r *rig) raw() (out []rawRecord) {
	r.t.Helper()
	err := r.admin.Tail(r.t.Context(), 0, "", false, false, func(e json.RawMessage) error {
		var rec struct{ Leaf json.RawMessage }
		var leaf struct{ Idx uint64 }
		if err := json.Unmarshal(e, &rec); err != nil {
			return err
		}
		if err := json.Unmarshal(rec.Leaf, &leaf); err != nil {
			return err
		}
		out = append(out, rawRecord{leaf.Idx, string(rec.Leaf)})
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// TestSinkFilesAreOurs: what a sink writes is shown to no sandbox, whether or not it
// is there yet, nor what lies beside it; directories beside it are.
func TestSinkFilesAreOurs(t *testing.T) {
	dir := t.TempDir()
	r := startDaemon(t, func(c *daemon.Config) {
		c.Sinks = []daemon.Sink{{Name: "a", Kind: "file", File: filepath.Join(dir, "events.jsonl")}}
	})
	source := filepath.Join(r.dir, "src")
	write(t, filepath.Join(source, "server"), "#!/bin/sh\n")
	moved, beside := filepath.Join(dir, "events.jsonl.1"), filepath.Join(dir, "invoices")
	write(t, moved, "{}\n")
	write(t, filepath.Join(beside, "1.txt"), "1\n")
	other := filepath.Join(filepath.Dir(dir), "other.txt")
	write(t, other, "x\n")
	for _, path := range []string{beside, filepath.Join(beside, "1.txt"), other} {
		reg := daemon.Registration{Source: "path:" + source, Entry: "server", Read: []string{path}, Integrity: "org", Holds: "public"}
		if _, err := r.tryAddServer("spy", reg); err != nil && strings.Contains(err.Error(), "Vault's own") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, reg := range []daemon.Registration{
		{Source: "path:" + source, Entry: "server", Read: []string{dir}, Integrity: "org", Holds: "public"},
		{Source: "path:" + source, Entry: "server", Read: []string{moved}, Integrity: "org", Holds: "public"},
		{Source: "path:" + source, Entry: "server", Write: []string{filepath.Dir(dir)}, Integrity: "org", Holds: "public"},
	} {
		if _, err := r.tryAddServer("spy", reg); err == nil || !strings.Contains(err.Error(), "Vault's own") {
			t.Errorf("err = %v", err)
		}
	}
}
