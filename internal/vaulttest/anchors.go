package vaulttest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	flog "github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Tree is a log by another implementation than ours.
type Tree struct {
	hashes []tlog.Hash
	Size   int64
}

// ReadHashes returns stored hashes, for package tlog.
func (t *Tree) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, t.hashes[i])
	}
	return out, nil
}

// Add appends a leaf.
func (t *Tree) Add(leaf []byte) {
	h, err := tlog.StoredHashes(t.Size, leaf, t)
	if err != nil {
		panic(err)
	}
	t.hashes, t.Size = append(t.hashes, h...), t.Size+1
}

// Root returns the hash of the tree.
func (t *Tree) Root() tlog.Hash {
	h, err := tlog.TreeHash(t.Size, t)
	if err != nil {
		panic(err)
	}
	return h
}

// A Witness checks what it is asked as C2SP tlog-witness says, and lies
// where [Witness.Set] says so.
type Witness struct {
	mu     sync.Mutex
	signer note.Signer
	VKey   string
	size   uint64
	root   tlog.Hash
	asked  int
	twist  func(w http.ResponseWriter, line string) bool // reports whether it answered
}

// NewWitness starts a witness; policies name its server with /w behind the URL.
func NewWitness(t testing.TB, name string) (*Witness, *httptest.Server) {
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
	w := &Witness{VKey: name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(keyed)}
	if w.signer, err = fnote.NewSignerForCosignatureV1(skey); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	return w, s
}

func (s *Witness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	body, _ := io.ReadAll(r.Body)
	head, rest, _ := strings.Cut(string(body), "\n\n")
	lines := strings.Split(head, "\n")
	old, err := strconv.ParseUint(strings.TrimPrefix(lines[0], "old "), 10, 64)
	text, _, ok := strings.Cut(rest, "\n\n")
	text += "\n"
	var cp flog.Checkpoint
	_, err2 := cp.Unmarshal([]byte(text))
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
	if old > 0 && tlog.CheckTree(proof, int64(cp.Size), tlog.Hash(cp.Hash), int64(old), s.root) != nil {
		http.Error(w, "inconsistent", http.StatusUnprocessableEntity)
		return
	}
	signed, err := note.Sign(&note.Note{Text: text}, s.signer)
	if err != nil {
		panic(err)
	}
	line := string(signed[len(text)+1:])
	if s.twist != nil && s.twist(w, line) {
		return
	}
	s.size, s.root = cp.Size, tlog.Hash(cp.Hash)
	_, _ = io.WriteString(w, line)
}

// Asked returns how many requests came.
func (s *Witness) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// Set has twist answer instead, where it reports that it did; nil ends that.
func (s *Witness) Set(twist func(http.ResponseWriter, string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twist = twist
}

// A Rekor is a Rekor v2 log as far as a client sees it.
type Rekor struct {
	Tree
	mu     sync.Mutex
	signer note.Signer
	VKey   string
	asked  int
	Bodies [][]byte
	twist  func(w http.ResponseWriter, entry []byte) bool
}

// NewRekor starts a log with one entry of another.
func NewRekor(t testing.TB) (*Rekor, *httptest.Server) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "rekor-local")
	if err != nil {
		t.Fatal(err)
	}
	k := &Rekor{VKey: vkey}
	if k.signer, err = note.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	k.Grow()
	s := httptest.NewServer(k)
	t.Cleanup(s.Close)
	return k, s
}

// Grow adds an entry of another.
func (k *Rekor) Grow() { k.Add([]byte("another's")) }

func (k *Rekor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	body, _ := io.ReadAll(r.Body)
	k.Bodies = append(k.Bodies, body)
	var req struct {
		V002 struct {
			Digest    []byte
			Signature struct {
				Content  []byte
				Verifier struct {
					KeyDetails string
					PublicKey  struct{ RawBytes []byte }
				}
			}
		} `json:"hashedRekordRequestV002"`
	}
	if err := json.Unmarshal(body, &req); err != nil || r.URL.Path != "/api/v2/log/entries" {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	b64 := base64.StdEncoding.EncodeToString
	v := &req.V002
	leaf := fmt.Appendf(nil, `{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"SHA2_256","digest":%q},"signature":{"content":%q,"verifier":{"keyDetails":%q,"publicKey":{"rawBytes":%q}}}}}}`,
		b64(v.Digest), b64(v.Signature.Content), v.Signature.Verifier.KeyDetails, b64(v.Signature.Verifier.PublicKey.RawBytes))
	k.Add(leaf)
	proof, err := tlog.ProveRecord(k.Size, k.Size-1, k)
	if err != nil {
		panic(err)
	}
	root := k.Root()
	cp, err := note.Sign(&note.Note{Text: fmt.Sprintf("rekor-local\n%d\n%s\n", k.Size, b64(root[:]))}, k.signer)
	if err != nil {
		panic(err)
	}
	var hashes [][]byte
	for _, h := range proof {
		hashes = append(hashes, h[:])
	}
	entry, err := json.Marshal(map[string]any{
		"logIndex": strconv.FormatInt(k.Size-1, 10), "canonicalizedBody": leaf,
		"inclusionProof": map[string]any{
			"logIndex": strconv.FormatInt(k.Size-1, 10), "treeSize": strconv.FormatInt(k.Size, 10), "hashes": hashes,
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
	_, _ = w.Write(entry)
}

// Asked returns how many requests came.
func (k *Rekor) Asked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// Set has twist answer instead, where it reports that it did; nil ends that.
func (k *Rekor) Set(twist func(http.ResponseWriter, []byte) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.twist = twist
}

// A RekorV1 is a Rekor v1 log as far as a client sees it: hashedrekord 0.0.1 of its
// openapi.yaml.
type RekorV1 struct {
	Tree
	mu    sync.Mutex
	key   crypto.Signer
	der   []byte
	asked int
	twist func(w http.ResponseWriter, answer []byte) bool
}

// RekorV1At is when a [RekorV1] takes entries.
const RekorV1At = 1_800_000_123

// NewRekorV1 makes a log with one entry of another; the same name gives the same log.
func NewRekorV1(name string) *RekorV1 {
	k := &RekorV1{key: steadyKey(name)}
	var err error
	if k.der, err = x509.MarshalPKIXPublicKey(k.key.Public()); err != nil {
		panic(err)
	}
	k.Add([]byte("another's"))
	return k
}

// Key is its public key in PEM.
func (k *RekorV1) Key() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der}))
}

func (k *RekorV1) sign(text []byte) []byte {
	d := sha256.Sum256(text)
	sig, err := k.key.Sign(nil, d[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return sig
}

// Enter takes an entry's canonical form and returns the LogEntry.
func (k *RekorV1) Enter(leaf []byte) []byte {
	k.Add(leaf)
	proof, err := tlog.ProveRecord(k.Size, k.Size-1, k)
	if err != nil {
		panic(err)
	}
	hashes := []string{}
	for _, h := range proof {
		hashes = append(hashes, hex.EncodeToString(h[:]))
	}
	root, id := k.Root(), sha256.Sum256(k.der)
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf("rekor-v1.test - 42\n%d\n%s\n", k.Size, b64(root[:]))
	at, index := int64(RekorV1At), 1000+k.Size // it has shards before this one
	entry, err := json.Marshal(map[string]any{
		"body": leaf, "integratedTime": at, "logID": hex.EncodeToString(id[:]), "logIndex": index,
		"verification": map[string]any{
			"inclusionProof": map[string]any{
				"checkpoint": text + "\n— rekor-v1.test " + b64(append(id[:4:4], k.sign([]byte(text))...)) + "\n",
				"hashes":     hashes, "logIndex": k.Size - 1, "rootHash": hex.EncodeToString(root[:]), "treeSize": k.Size,
			},
			"signedEntryTimestamp": k.sign(fmt.Appendf(nil, `{"body":%q,"integratedTime":%d,"logID":"%x","logIndex":%d}`, b64(leaf), at, id, index)),
		},
	})
	if err != nil {
		panic(err)
	}
	return entry
}

func (k *RekorV1) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	var q struct {
		APIVersion, Kind string
		Spec             struct {
			Data struct {
				Hash struct{ Algorithm, Value string }
			}
			Signature struct {
				Content   []byte
				PublicKey struct{ Content []byte }
			}
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/api/v1/log/entries" || q.APIVersion != "0.0.1" || q.Kind != "hashedrekord" {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	b64 := base64.StdEncoding.EncodeToString
	s := &q.Spec
	entry := k.Enter(fmt.Appendf(nil, `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":%q,"value":%q}},"signature":{"content":%q,"publicKey":{"content":%q}}}}`,
		s.Data.Hash.Algorithm, s.Data.Hash.Value, b64(s.Signature.Content), b64(s.Signature.PublicKey.Content)))
	answer := fmt.Appendf(nil, `{"%x":%s}`, sha256.Sum256(entry), entry)
	if k.twist != nil && k.twist(w, answer) {
		return
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(answer)
}

// Asked returns how many requests came.
func (k *RekorV1) Asked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// Set has twist answer instead, where it reports that it did; nil ends that.
func (k *RekorV1) Set(twist func(http.ResponseWriter, []byte) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.twist = twist
}
