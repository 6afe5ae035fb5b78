package anchor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A tree is a log by another implementation than ours.
type tree struct {
	hashes []tlog.Hash
	size   int64
}

func (t *tree) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, t.hashes[i])
	}
	return out, nil
}

func (t *tree) add(leaf []byte) {
	h, err := tlog.StoredHashes(t.size, leaf, t)
	if err != nil {
		panic(err)
	}
	t.hashes, t.size = append(t.hashes, h...), t.size+1
}

func (t *tree) root() tlog.Hash {
	h, err := tlog.TreeHash(t.size, t)
	if err != nil {
		panic(err)
	}
	return h
}

const origin = "vault.internal/default/test"

// A source is a ledger that only grows.
type source struct {
	tree
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
		s.add(fmt.Append(nil, s.size))
	}
}

func (s *source) VerifierKey() string { return s.vkey }

func (s *source) Checkpoint(context.Context) ([]byte, error) {
	return evidence.Checkpoint{Origin: origin, Size: uint64(s.size), Root: vault.Digest(s.root())}.Sign(s.key)
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

// A witness checks what it is asked as the protocol says, and lies where twist does.
type witness struct {
	mu     sync.Mutex
	signer note.Signer
	vkey   string
	size   uint64
	root   tlog.Hash
	asked  int
	twist  func(w http.ResponseWriter, line string) bool // reports whether it answered
}

func newWitness(t *testing.T, name string) (*witness, *httptest.Server) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keyed := append([]byte{4}, pub...)
	id := sha256.Sum256(append([]byte(name+"\n"), keyed...))
	hash := fmt.Sprintf("%08x", binary.BigEndian.Uint32(id[:4]))
	// A note key for signing has the type of a plain one.
	plain := append([]byte{1}, pub...)
	plainID := sha256.Sum256(append([]byte(name+"\n"), plain...))
	skey := fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, binary.BigEndian.Uint32(plainID[:4]), base64.StdEncoding.EncodeToString(append([]byte{1}, priv.Seed()...)))
	w := &witness{vkey: name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(keyed)}
	if w.signer, err = fnote.NewSignerForCosignatureV1(skey); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	return w, s
}

func (s *witness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	body, _ := io.ReadAll(r.Body)
	head, rest, _ := strings.Cut(string(body), "\n\n")
	lines := strings.Split(head, "\n")
	old, err := strconv.ParseUint(strings.TrimPrefix(lines[0], "old "), 10, 64)
	text, _, ok := strings.Cut(rest, "\n\n")
	cp, err2 := evidence.ParseCheckpoint(text + "\n")
	if err != nil || err2 != nil || !ok || r.URL.Path != "/w/add-checkpoint" {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	if old != s.size {
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, "%d\n", s.size)
		return
	}
	var proof tlog.TreeProof
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			http.Error(w, "hash", http.StatusBadRequest)
			return
		}
		proof = append(proof, h)
	}
	if old > 0 && tlog.CheckTree(proof, int64(cp.Size), tlog.Hash(cp.Root), int64(old), s.root) != nil {
		http.Error(w, "inconsistent", http.StatusUnprocessableEntity)
		return
	}
	signed, err := note.Sign(&note.Note{Text: cp.Text()}, s.signer)
	if err != nil {
		panic(err)
	}
	line := string(signed[len(cp.Text())+1:])
	if s.twist != nil && s.twist(w, line) {
		return
	}
	s.size, s.root = cp.Size, tlog.Hash(cp.Root)
	io.WriteString(w, line)
}

func (s *witness) set(twist func(http.ResponseWriter, string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twist = twist
}

// A rekor is a Rekor v2 log as far as a client sees it.
type rekor struct {
	tree
	mu     sync.Mutex
	signer note.Signer
	vkey   string
	asked  int
	bodies [][]byte
	twist  func(w http.ResponseWriter, entry []byte) bool
}

func newRekor(t *testing.T) (*rekor, *httptest.Server) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "rekor-local")
	if err != nil {
		t.Fatal(err)
	}
	k := &rekor{vkey: vkey}
	if k.signer, err = note.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	k.grow()
	s := httptest.NewServer(k)
	t.Cleanup(s.Close)
	return k, s
}

func (k *rekor) grow() { k.add([]byte("another's")) }

func (k *rekor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	body, _ := io.ReadAll(r.Body)
	k.bodies = append(k.bodies, body)
	var req rekorRequest
	if err := json.Unmarshal(body, &req); err != nil || r.URL.Path != "/api/v2/log/entries" {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	b64 := base64.StdEncoding.EncodeToString
	v := &req.V002
	leaf := fmt.Appendf(nil, `{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"SHA2_256","digest":%q},"signature":{"content":%q,"verifier":{"keyDetails":%q,"publicKey":{"rawBytes":%q}}}}}}`,
		b64(v.Digest), b64(v.Signature.Content), v.Signature.Verifier.KeyDetails, b64(v.Signature.Verifier.PublicKey.RawBytes))
	k.add(leaf)
	proof, err := tlog.ProveRecord(k.size, k.size-1, k)
	if err != nil {
		panic(err)
	}
	root := k.root()
	cp, err := note.Sign(&note.Note{Text: fmt.Sprintf("rekor-local\n%d\n%s\n", k.size, b64(root[:]))}, k.signer)
	if err != nil {
		panic(err)
	}
	var hashes [][]byte
	for _, h := range proof {
		hashes = append(hashes, h[:])
	}
	entry, err := json.Marshal(map[string]any{
		"logIndex": strconv.FormatInt(k.size-1, 10), "canonicalizedBody": leaf,
		"inclusionProof": map[string]any{
			"logIndex": strconv.FormatInt(k.size-1, 10), "treeSize": strconv.FormatInt(k.size, 10), "hashes": hashes,
			"checkpoint": map[string]any{"envelope": string(cp)},
		},
	})
	if err != nil {
		panic(err)
	}
	if k.twist != nil && k.twist(w, entry) {
		return
	}
	w.WriteHeader(http.StatusCreated)
	w.Write(entry)
}

func (k *rekor) set(twist func(http.ResponseWriter, []byte) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.twist = twist
}

// A bench is a source with a witness, a log and the anchorer under test.
type bench struct {
	*Anchorer
	source  *source
	witness *witness
	rekor   *rekor
	cfg     Config
}

func newBench(t *testing.T) *bench {
	b := &bench{source: newSource(t)}
	w, ws := newWitness(t, "w.example")
	k, ks := newRekor(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.witness, b.rekor = w, k
	b.cfg = Config{
		Policy: []byte("witness w " + w.vkey + " " + ws.URL + "/w\nquorum w\n"),
		Rekor:  ks.URL, RekorKey: k.vkey, Key: key, Dir: t.TempDir(), Timeout: 2 * time.Second,
	}
	b.open(t)
	return b
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
func (b *bench) check(t *testing.T) (witnessed, logged uint64) {
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
			if err := evidence.VerifyRekor(a.Proof, cp, b.rekor.vkey); err != nil {
				t.Errorf("the kept entry of %d: %v", cp.Size, err)
			}
			logged = max(logged, cp.Size)
		}
	}
	return witnessed, logged
}

func TestAnchors(t *testing.T) {
	b := newBench(t)
	if err := b.Now(t.Context()); err != nil || b.witness.asked+b.rekor.asked != 0 {
		t.Fatalf("an empty ledger was anchored: %v", err)
	}
	for _, grow := range []int{1, 4, 300, 1, 1, 1, 1} {
		b.source.grow(grow)
		b.rekor.grow()
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w, k := b.check(t); w != uint64(b.source.size) || k != w {
			t.Fatalf("anchored at %d and %d, the ledger has %d", w, k, b.source.size)
		}
	}
	asked := b.witness.asked + b.rekor.asked
	if err := b.Now(t.Context()); err != nil || b.witness.asked+b.rekor.asked != asked {
		t.Errorf("a ledger that has not grown was anchored again: %v", err)
	}
	if list, _ := b.Anchors(t.Context()); len(list) != 2*maxKept {
		t.Errorf("%d anchors are kept, want %d", len(list), 2*maxKept)
	}
	// A restart has forgotten what the witness holds, and is told.
	b.open(t)
	b.source.grow(7)
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w, k := b.check(t); w != uint64(b.source.size) || k != w {
		t.Errorf("after a restart: anchored at %d and %d, the ledger has %d", w, k, b.source.size)
	}
}

// TestFaults has each target fail in each way: nothing wrong is kept, the other
// target is not held up, and the next attempt makes up for it.
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
			b.witness.set(func(w http.ResponseWriter, line string) bool { return twist(w, []byte(line)) })
			if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "witness w") || strings.Contains(err.Error(), "rekor") {
				t.Errorf("error %v, want one of the witness alone", err)
			}
			if w, k := b.check(t); w != 0 || k != 5 {
				t.Errorf("anchored at %d and %d, want 0 and 5", w, k)
			}
			b.witness.set(nil)
			b.rekor.set(twist)
			b.source.grow(5)
			if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "rekor") || strings.Contains(err.Error(), "witness") {
				t.Errorf("error %v, want one of the log alone", err)
			}
			if w, k := b.check(t); w != 10 || k != 5 {
				t.Errorf("anchored at %d and %d, want 10 and 5", w, k)
			}
			if s := b.Status(); s[0].Error != "" || s[1].Error == "" || s[1].Size != 5 {
				t.Errorf("status %+v", s)
			}
			b.rekor.set(nil)
			if err := b.ask(t.Context(), false); err != nil {
				t.Error(err)
			}
			if w, k := b.check(t); w != 10 || k != 10 {
				t.Errorf("caught up to %d and %d, want 10 and 10", w, k)
			}
			n := len(b.rekor.bodies)
			if same := bytes.Equal(b.rekor.bodies[n-1], b.rekor.bodies[n-2]); same == (name == "409") {
				t.Errorf("the second attempt sent the same bytes: %v", same)
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
	var entry []byte
	b.witness.set(func(_ http.ResponseWriter, l string) bool { line = l; return false })
	b.rekor.set(func(_ http.ResponseWriter, e []byte) bool { entry = e; return false })
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.source.grow(5)
	b.witness.set(func(w http.ResponseWriter, _ string) bool { io.WriteString(w, line); return true })
	b.rekor.set(func(w http.ResponseWriter, _ []byte) bool { w.Write(entry); return true })
	if err := b.Now(t.Context()); err == nil {
		t.Error("a cosignature and an entry of an older checkpoint were taken")
	}
	if w, k := b.check(t); w != 5 || k != 5 {
		t.Errorf("anchored at %d and %d, want 5 and 5", w, k)
	}
	stranger, _ := newRekor(t)
	b.cfg.RekorKey = stranger.vkey
	b.witness.set(nil)
	b.rekor.set(nil)
	b.open(t)
	if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), "rekor") {
		t.Errorf("an entry of a log with another key was taken: %v", err)
	}
}

// TestRollback asks a witness that has seen more than there is.
func TestRollback(t *testing.T) {
	b := newBench(t)
	b.source.grow(20)
	if err := b.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.source.tree = tree{}
	b.source.grow(10)
	b.cfg.Dir = t.TempDir()
	b.open(t)
	if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), ErrAhead.Error()) {
		t.Errorf("error %v, want %v", err, ErrAhead)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"http to another host":      func(c *Config) { c.Rekor = "http://rekor.example" },
		"a user in the URL":         func(c *Config) { c.Rekor = "https://a:b@rekor.example" },
		"a log without a key":       func(c *Config) { c.RekorKey = "" },
		"a file":                    func(c *Config) { c.Rekor = "file:///etc/passwd" },
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
		b.witness.set(func(w http.ResponseWriter, line string) bool {
			right = line
			twist(w, other.URL, line)
			return true
		})
		if err := b.Now(t.Context()); err == nil {
			t.Errorf("%s: taken", name)
		}
		if w, _ := b.check(t); w != 0 {
			t.Errorf("%s: anchored at %d", name, w)
		}
	}
}
