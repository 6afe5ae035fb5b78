package anchor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

const origin = "vault.internal/default/test"

// A source is a ledger that only grows.
type source struct {
	vaulttest.Tree
	key  ed25519.PrivateKey
	vkey string
}

func newSource(t *testing.T) *source {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := evidence.VerifierKey(origin, pub)
	if err != nil {
		t.Fatal(err)
	}
	return &source{key: key, vkey: vkey}
}

func (s *source) grow(n int) {
	for range n {
		s.Add(fmt.Append(nil, s.Size))
	}
}

func (s *source) VerifierKey() string { return s.vkey }

func (s *source) Checkpoint(context.Context) ([]byte, error) {
	return evidence.Checkpoint{Origin: origin, Size: uint64(s.Size), Root: vault.Digest(s.Root())}.Sign(s.key)
}

func (s *source) Consistency(_ context.Context, older, newer uint64) (out []vault.Digest, err error) {
	if older == 0 || older == newer {
		return nil, nil
	}
	p, err := tlog.ProveTree(int64(newer), int64(older), s)
	for _, h := range p {
		out = append(out, vault.Digest(h))
	}
	return out, err
}

// A bench is a source with a witness, two logs, a time-stamp authority and the
// anchorer under test.
type bench struct {
	*Anchorer
	source  *source
	witness *vaulttest.Witness
	rekor   *vaulttest.Rekor
	rekorV1 *vaulttest.RekorV1
	tsa     *vaulttest.TSA
	cfg     Config
}

func newBench(t *testing.T) *bench {
	b := &bench{source: newSource(t)}
	w, ws := vaulttest.NewWitness(t, "w.example")
	k, ks := vaulttest.NewRekor(t)
	a, as := vaulttest.NewTSA(t, "stamps.test")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.witness, b.rekor, b.tsa, b.rekorV1 = w, k, a, vaulttest.NewRekorV1("rekor-v1.test")
	v1 := httptest.NewServer(b.rekorV1)
	t.Cleanup(v1.Close)
	b.cfg = Config{
		Policy: []byte("witness w " + w.VKey + " " + ws.URL + "/w\nquorum w\n"),
		Rekor:  ks.URL, RekorKey: k.VKey, Key: key, RekorV1: v1.URL, RekorV1Key: b.rekorV1.Key(), TSA: as.URL + "/tsr", TSARoots: a.Roots(), Dir: t.TempDir(), Timeout: 2 * time.Second,
	}
	b.open(t)
	return b
}

func (b *bench) asked() int {
	return b.witness.Asked() + b.rekor.Asked() + b.rekorV1.Asked() + b.tsa.Asked()
}

func (b *bench) open(t *testing.T) {
	t.Helper()
	a, err := Open(b.source, b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Anchorer = a
}

// check holds what is kept to the verifier that everybody has, and returns the
// newest size of each kind.
func (b *bench) check(t *testing.T) (witnessed, logged, loggedV1, stamped uint64) {
	t.Helper()
	list, err := b.Anchors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		cp, _, err := evidence.OpenCheckpoint([]byte(a.Checkpoint), b.source.vkey)
		if err != nil {
			t.Fatal(err)
		}
		switch a.Kind {
		case evidence.AnchorWitness:
			if ok, _, at := b.policy.Cosigned([]byte(a.Checkpoint)); !ok || at.IsZero() {
				t.Errorf("the kept checkpoint of %d is not cosigned", cp.Size)
			}
			witnessed = max(witnessed, cp.Size)
		case evidence.AnchorRekor:
			if err := evidence.VerifyRekor(a.Proof, cp, b.rekor.VKey); err != nil {
				t.Errorf("the kept entry of %d: %v", cp.Size, err)
			}
			logged = max(logged, cp.Size)
		case evidence.AnchorRekorV1:
			if _, err := evidence.VerifyRekorV1(a.Proof, cp, b.cfg.RekorV1Key); err != nil {
				t.Errorf("the kept v1 entry of %d: %v", cp.Size, err)
			}
			loggedV1 = max(loggedV1, cp.Size)
		case evidence.AnchorTSA:
			roots, err := evidence.ParseTSARoots(b.cfg.TSARoots)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := evidence.VerifyTimestamp(a.Proof, cp, roots); err != nil {
				t.Errorf("the kept token of %d: %v", cp.Size, err)
			}
			stamped = max(stamped, cp.Size)
		}
	}
	return witnessed, logged, loggedV1, stamped
}

func TestAnchors(t *testing.T) {
	b := newBench(t)
	if err := b.Now(t.Context()); err != nil || b.asked() != 0 {
		t.Fatalf("an empty ledger was anchored: %v", err)
	}
	for _, grow := range []int{1, 4, 300, 1, 1, 1, 1} {
		b.source.grow(grow)
		b.rekor.Grow()
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w, k, v1, s := b.check(t); w != uint64(b.source.Size) || k != w || v1 != w || s != w {
			t.Fatalf("anchored at %d, %d, %d and %d, the ledger has %d", w, k, v1, s, b.source.Size)
		}
	}
	asked := b.asked()
	if err := b.Now(t.Context()); err != nil || b.asked() != asked {
		t.Errorf("a ledger that has not grown was anchored again: %v", err)
	}
	if list, _ := b.Anchors(t.Context()); len(list) != 4*maxKept {
		t.Errorf("%d anchors are kept, want %d", len(list), 4*maxKept)
	}
	// A restart has forgotten what the witness holds, and is told.
	b.open(t)
	b.source.grow(7)
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w, k, v1, s := b.check(t); w != uint64(b.source.Size) || k != w || v1 != w || s != w {
		t.Errorf("after a restart: anchored at %d, %d, %d and %d, the ledger has %d", w, k, v1, s, b.source.Size)
	}
}

// TestFaults has each target fail in each way: nothing wrong is kept, the other
// targets are not held up, and the next attempt makes up for it.
func TestFaults(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, []byte) bool {
		return func(w http.ResponseWriter, _ []byte) bool { w.WriteHeader(code); return true }
	}
	huge := func(w http.ResponseWriter, _ []byte) bool {
		w.Write(bytes.Repeat([]byte("— w.example AAAA\n"), maxAnswer))
		return true
	}
	other, err := json.Marshal("no entry")
	if err != nil {
		t.Fatal(err)
	}
	for name, twist := range map[string]func(http.ResponseWriter, []byte) bool{
		"502": status(502),
		"404": status(404),
		"409": status(409),
		"a redirect": func(w http.ResponseWriter, _ []byte) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(307)
			return true
		},
		"a huge answer":    huge,
		"an empty answer":  func(http.ResponseWriter, []byte) bool { return true },
		"another's answer": func(w http.ResponseWriter, _ []byte) bool { w.Write(other); return true },
		"a broken answer": func(w http.ResponseWriter, good []byte) bool {
			bad := bytes.Replace(good, []byte("A"), []byte("B"), 1)
			bad = bytes.Replace(bad, []byte("w.example"), []byte("v.example"), 1)
			w.Write(bad[:len(bad)-2])
			return true
		},
		"a cut connection": func(http.ResponseWriter, []byte) bool { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.source.grow(5)
			b.witness.Set(func(w http.ResponseWriter, line string) bool { return twist(w, []byte(line)) })
			if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "witness w") || strings.Contains(err.Error(), "rekor") {
				t.Errorf("error %v, want one of the witness alone", err)
			}
			if w, k, v1, s := b.check(t); w != 0 || k != 5 || v1 != 5 || s != 5 {
				t.Errorf("anchored at %d, %d, %d and %d, want 0, 5, 5 and 5", w, k, v1, s)
			}
			b.witness.Set(nil)
			b.rekor.Set(twist)
			b.source.grow(5)
			if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "rekor") || strings.Contains(err.Error(), "witness") {
				t.Errorf("error %v, want one of the log alone", err)
			}
			if w, k, v1, s := b.check(t); w != 10 || k != 5 || v1 != 10 || s != 10 {
				t.Errorf("anchored at %d, %d, %d and %d, want 10, 5, 10 and 10", w, k, v1, s)
			}
			if s := b.Status(); s[0].Error != "" || s[1].Error == "" || s[1].Size != 5 {
				t.Errorf("status %+v", s)
			}
			b.rekor.Set(nil)
			if err := b.ask(t.Context(), false); err != nil {
				t.Error(err)
			}
			if w, k, v1, s := b.check(t); w != 10 || k != 10 || v1 != 10 || s != 10 {
				t.Errorf("caught up to %d, %d, %d and %d, want 10 each", w, k, v1, s)
			}
			n := len(b.rekor.Bodies)
			if same := bytes.Equal(b.rekor.Bodies[n-1], b.rekor.Bodies[n-2]); same == (name == "409") {
				t.Errorf("the second attempt sent the same bytes: %v", same)
			}
			for target, set := range map[string]func(func(http.ResponseWriter, []byte) bool){"tsa: ": b.tsa.Set, "rekor_v1: ": b.rekorV1.Set} {
				set(twist)
				before := uint64(b.source.Size)
				b.source.grow(5)
				if err := b.Now(t.Context()); err == nil || !strings.HasPrefix(err.Error(), target) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %v, want one of %s alone", err, target)
				}
				w, k, v1, s := b.check(t)
				if w != before+5 || k != w || min(v1, s) != before || max(v1, s) != w {
					t.Errorf("%s fails: anchored at %d, %d, %d and %d, the ledger has %d", target, w, k, v1, s, w)
				}
				set(nil)
				if err := b.ask(t.Context(), false); err != nil {
					t.Error(err)
				}
				if _, _, v1, s := b.check(t); v1 != w || s != w {
					t.Errorf("%s: caught up to %d and %d, want %d", target, v1, s, w)
				}
			}
		})
	}
}

// TestLies has a witness and a log answer with something that is true of another
// checkpoint, log or key.
func TestLies(t *testing.T) {
	b := newBench(t)
	b.source.grow(5)
	var line string
	var entry, entryV1, token []byte
	b.witness.Set(func(_ http.ResponseWriter, l string) bool { line = l; return false })
	b.rekor.Set(func(_ http.ResponseWriter, e []byte) bool { entry = e; return false })
	b.rekorV1.Set(func(_ http.ResponseWriter, e []byte) bool { entryV1 = e; return false })
	b.tsa.Set(func(_ http.ResponseWriter, a []byte) bool { token = a; return false })
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.source.grow(5)
	b.witness.Set(func(w http.ResponseWriter, _ string) bool { io.WriteString(w, line); return true })
	b.rekor.Set(func(w http.ResponseWriter, _ []byte) bool { w.Write(entry); return true })
	b.rekorV1.Set(func(w http.ResponseWriter, _ []byte) bool { w.Write(entryV1); return true })
	b.tsa.Set(func(w http.ResponseWriter, _ []byte) bool { w.Write(token); return true })
	if err := b.Now(t.Context()); err == nil {
		t.Error("what was said of an older checkpoint was taken")
	}
	if w, k, v1, s := b.check(t); w != 5 || k != 5 || v1 != 5 || s != 5 {
		t.Errorf("anchored at %d, %d, %d and %d, want 5 each", w, k, v1, s)
	}
	stranger, _ := vaulttest.NewRekor(t)
	b.cfg.RekorKey = stranger.VKey
	b.cfg.RekorV1Key = vaulttest.NewRekorV1("stranger.test").Key()
	b.cfg.TSARoots = vaulttest.NewAuthority("stranger.test", nil).Roots()
	b.witness.Set(nil)
	b.rekor.Set(nil)
	b.rekorV1.Set(nil)
	b.tsa.Set(nil)
	b.open(t)
	if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "rekor") {
		t.Errorf("an entry of a log with another key was taken: %v", err)
	} else if !strings.Contains(err.Error(), "tsa: ") || !strings.Contains(err.Error(), "rekor_v1: ") {
		t.Errorf("a token under another root or an entry of another v1 log was taken: %v", err)
	}
}

// TestRollback asks a witness that has seen more than there is.
func TestRollback(t *testing.T) {
	b := newBench(t)
	b.source.grow(20)
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.source.Tree = vaulttest.Tree{}
	b.source.grow(10)
	b.cfg.Dir = t.TempDir()
	b.open(t)
	if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), ErrAhead.Error()) {
		t.Errorf("error %v, want %v", err, ErrAhead)
	}
}

// TestLongestAnswersAreReadAgain: what logs and authorities can make anchors grow to
// does not keep the next start from reading them.
func TestLongestAnswersAreReadAgain(t *testing.T) {
	// Two logs and a token in base64, and a note of each kind with its lines escaped.
	if worst := maxKept * (2*maxAnswer*4/3 + evidence.MaxTimestamp*4/3 + 4*2*evidence.MaxCheckpoint); worst > maxFile {
		t.Errorf("%d bytes can be kept, and %d are read", worst, maxFile)
	}
	b := newBench(t)
	pad := func(most int, wrap func(good []byte, pad string) []byte) func(http.ResponseWriter, []byte) bool {
		return func(w http.ResponseWriter, good []byte) bool {
			w.Write(wrap(good, strings.Repeat(" ", most-len(good)-10)))
			return true
		}
	}
	b.rekor.Set(pad(maxAnswer, func(good []byte, pad string) []byte { return append(good, pad...) }))
	b.rekorV1.Set(pad(maxAnswer, func(good []byte, pad string) []byte {
		at := bytes.IndexByte(good, ':') + 2
		return append(append(bytes.Clone(good[:at]), pad...), good[at:]...)
	}))
	for range maxKept + 1 {
		b.source.grow(3)
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(b.file())
	if err != nil || info.Size() < 2*maxKept*maxAnswer {
		t.Fatalf("%v, %v: want what was padded", info, err)
	}
	b.open(t)
	if list, err := b.Anchors(t.Context()); err != nil || len(list) != 4*maxKept {
		t.Errorf("%d anchors are read again, %v, want %d", len(list), err, 4*maxKept)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"http to another host":      func(c *Config) { c.Rekor = "http://rekor.example" },
		"a user in the URL":         func(c *Config) { c.Rekor = "https://a:b@rekor.example" },
		"a log without a key":       func(c *Config) { c.RekorKey = "" },
		"a file":                    func(c *Config) { c.Rekor = "file:///etc/passwd" },
		"a v1 log over http":        func(c *Config) { c.RekorV1 = "http://rekor.example" },
		"a v1 log without a key":    func(c *Config) { c.RekorV1Key = "" },
		"a v1 log with a v2 key":    func(c *Config) { c.RekorV1Key = c.RekorKey },
		"an authority over http":    func(c *Config) { c.TSA = "http://tsa.example/tsr" },
		"an authority and no roots": func(c *Config) { c.TSARoots = nil },
		"roots that are none":       func(c *Config) { c.TSARoots = []byte("trust") },
		"a policy without a quorum": func(c *Config) { c.Policy = []byte("#\n") },
		"a witness over http":       func(c *Config) { c.Policy = bytes.Replace(c.Policy, []byte("127.0.0.1"), []byte("192.0.2.1"), 1) },
	} {
		b := newBench(t)
		change(&b.cfg)
		if _, err := Open(b.source, b.cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestOnlyTheNamedServerAnswers has a witness send on to a server that has the right
// answer, and bury the right answer in too much.
func TestOnlyTheNamedServerAnswers(t *testing.T) {
	for name, twist := range map[string]func(w http.ResponseWriter, elsewhere, line string){
		"a redirect to the right answer": func(w http.ResponseWriter, elsewhere, _ string) {
			w.Header().Set("Location", elsewhere)
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"the right answer and too much": func(w http.ResponseWriter, _, line string) {
			io.WriteString(w, line+strings.Repeat("\n", maxAnswer))
		},
	} {
		b := newBench(t)
		b.source.grow(5)
		var right string
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, right) }))
		t.Cleanup(other.Close)
		b.witness.Set(func(w http.ResponseWriter, line string) bool {
			right = line
			twist(w, other.URL, line)
			return true
		})
		if err := b.Now(t.Context()); err == nil {
			t.Errorf("%s: taken", name)
		}
		if w, _, _, _ := b.check(t); w != 0 {
			t.Errorf("%s: anchored at %d", name, w)
		}
	}
}
