package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"golang.org/x/mod/sumdb/note"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// A tableRow is a bundle, what its verifier brings, and the right answer. Every
// verifier runs the same table: this package, the command, the page, Python.
type tableRow struct {
	Name      string       `json:"name"`
	Bundle    string       `json:"bundle"` // file beside the table
	SHA256    vault.Digest `json:"sha256"`
	Keys      []string     `json:"keys"`
	Since     string       `json:"since,omitempty"`
	Run       string       `json:"run,omitempty"`
	NewerThan string       `json:"newer_than,omitempty"`
	Policy    string       `json:"policy,omitempty"`
	Rekor     []string     `json:"rekor,omitempty"`
	TSA       string       `json:"tsa,omitempty"`

	Problem    Problem  `json:"problem"`
	Exit       int      `json:"exit"`
	Record     *uint64  `json:"record"`
	Intact     bool     `json:"intact"`
	Complete   bool     `json:"complete"`
	Pinned     bool     `json:"pinned"`
	AnchoredBy []string `json:"anchored_by"`
	Before     string   `json:"before,omitempty"`
	Disclosed  uint64   `json:"disclosed"`

	data []byte
}

func (r *tableRow) options(t testing.TB) Options {
	o := Options{Keys: r.Keys, Run: vault.TaskID(r.Run), RekorKeys: r.Rekor}
	if r.Since != "" {
		o.Since = []byte(r.Since)
	}
	if r.Policy != "" {
		o.Policy = []byte(r.Policy)
	}
	if r.TSA != "" {
		o.TSARoots = []byte(r.TSA)
	}
	if r.NewerThan != "" {
		if _, err := fmt.Sscan(r.NewerThan, &o.NewerThanSize); err != nil || strings.Contains(r.NewerThan, "T") {
			o.NewerThanSize = 0
			if o.NewerThan, err = time.Parse(time.RFC3339, r.NewerThan); err != nil {
				t.Fatal(err)
			}
		}
	}
	return o
}

// cosign adds the cosignature of a witness to a signed checkpoint.
func cosign(t testing.TB, signed []byte, name string, at uint64) []byte {
	t.Helper()
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	msg := fmt.Sprintf("cosignature/v1\ntime %d\n%s\n", at, text)
	sig, err := testKey(name).Sign(nil, []byte(msg), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	raw := binary.BigEndian.AppendUint32(nil, witnessHash(name))
	raw = append(binary.BigEndian.AppendUint64(raw, at), sig...)
	return fmt.Appendf(bytes.Clone(signed), "— %s %s\n", name, base64.StdEncoding.EncodeToString(raw))
}

func witnessHash(name string) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n\x04"), testKey(name).Public().(ed25519.PublicKey)...))
	return binary.BigEndian.Uint32(h[:])
}

func witnessKey(name string) string {
	raw := append([]byte{4}, testKey(name).Public().(ed25519.PublicKey)...)
	return fmt.Sprintf("%s+%08x+%s", name, witnessHash(name), base64.StdEncoding.EncodeToString(raw))
}

// rekorLog is a Rekor v2 log in memory with three entries, ours in the middle.
func rekorLog(t testing.TB, cp Checkpoint) (entry []byte, key string) {
	t.Helper()
	d := sha256.Sum256([]byte("anchor"))
	anchor, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), new(big.Int).SetBytes(d[:]).FillBytes(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	digest := cp.Digest()
	sig, err := anchor.Sign(nil, digest[:], crypto.SHA256) // deterministic, RFC 6979
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(anchor.Public())
	if err != nil {
		t.Fatal(err)
	}
	body := RekorBody(cp, sig, der)
	hashes := []vault.Digest{HashLeaf([]byte("one")), HashLeaf(body), HashLeaf([]byte("three"))}
	tree := NewTree(0)
	for _, h := range hashes {
		tree.Append(h)
	}
	key, err = note.NewEd25519VerifierKey("rekor.test", testKey("rekor").Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Checkpoint{Origin: "rekor.test", Size: 3, Root: tree.Root()}.Sign(testKey("rekor"))
	if err != nil {
		t.Fatal(err)
	}
	root := tree.Root()
	entry, err = json.Marshal(map[string]any{
		"logIndex": "1", "kindVersion": map[string]string{"kind": "hashedrekord", "version": "0.0.2"}, "canonicalizedBody": body,
		"inclusionProof": map[string]any{
			"logIndex": "1", "treeSize": "3", "rootHash": root[:], "hashes": [][]byte{hashes[0][:], hashes[2][:]},
			"checkpoint": map[string]string{"envelope": string(signed)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return entry, key
}

const seenAt = 1_800_000_000 // by the witnesses of the table

// anchor gives b two anchors of an older checkpoint: a quorum of witnesses and Rekor.
func (b *book) anchor(size int) (rekorKey string) {
	cp := b.checkpoint(size, "log")
	parsed, err := unverifiedCheckpoint(cp)
	if err != nil {
		b.t.Fatal(err)
	}
	entry, key := rekorLog(b.t, parsed)
	path := []vault.Digest{}
	if size < len(b.leaves) {
		path = b.nodes(proof.Consistency(uint64(size), uint64(len(b.leaves))))
	}
	both := cosign(b.t, cosign(b.t, cp, "w-one", seenAt), "w-two", seenAt+60)
	b.anchors = []Anchor{{string(both), AnchorWitness, path, nil}, {string(cp), AnchorRekor, path, entry}}
	b.witnesses = []byte(tablePolicy())
	return key
}

func tablePolicy() string {
	return "# two of three\nwitness a " + witnessKey("w-one") + " https://w-one.test\nwitness b " + witnessKey("w-two") +
		"\nwitness c " + witnessKey("w-three") + "\ngroup g 2 a b c\nquorum g\n"
}

// rewritten is b with record 5 told otherwise, signed by the same key: what an
// operator can do.
func rewritten(t testing.TB, b *book) *book {
	other := newBook(t)
	for i := range b.leaves {
		l, err := ParseLeaf(b.leaves[i])
		if err != nil {
			t.Fatal(err)
		}
		if i == 5 {
			l.Phase = vault.PhaseRefused
		}
		other.add(l.Run, l.Class, l.Phase)
	}
	return other
}

func table(t testing.TB) []tableRow {
	t.Helper()
	var rows []tableRow
	add := func(name string, data []byte, o Options, want Problem) *tableRow {
		r := tableRow{Name: name, data: data, Keys: o.Keys, Run: string(o.Run), Since: string(o.Since), Policy: string(o.Policy), Rekor: o.RekorKeys, TSA: string(o.TSARoots), Problem: want}
		rows = append(rows, r)
		return &rows[len(rows)-1]
	}
	b := filled(t)
	pinned := Options{Keys: []string{b.key}}
	sound := soundRows(b)
	for _, name := range slices.Sorted(maps.Keys(sound)) {
		add(name, sound[name].bundle, sound[name].o, sound[name].want)
	}
	mutations := mutationRows(t, b)
	for _, name := range slices.Sorted(maps.Keys(mutations)) {
		m := mutations[name]
		c := unpack(t, b.bundle(m.run, 0))
		m.change(c)
		add(name, c.pack(t), pinned, m.want).Record = m.record
	}
	forged := rewritten(t, b)
	held := Options{Keys: pinned.Keys, Since: b.checkpoint(12, "log")}
	add("history signed again, to who holds nothing", forged.bundle("", 0), pinned, ProblemNone)
	add("history signed again, a whole ledger, to who holds a checkpoint", forged.bundle("", 0), held, ProblemSplitView)
	add("history signed again, a run, to who holds a checkpoint", forged.bundle("t-a", 12), held, ProblemSplitView)
	short := filled(t)
	short.leaves, short.hashes = short.leaves[:12], short.hashes[:12]
	add("the ledger rolled back, to who holds a later checkpoint", short.bundle("", 0), Options{Keys: pinned.Keys, Since: b.checkpoint(17, "log")}, ProblemRollback)
	add("a bundle replayed, to who knows how many records there are", short.bundle("", 0), pinned, ProblemStale).NewerThan = "12"
	add("a bundle replayed, to who knows the day", b.bundle("t-a", 0), pinned, ProblemStale).NewerThan = "2026-01-01T00:00:00Z"
	add("a bundle of the right day", b.bundle("t-a", 0), pinned, ProblemNone).NewerThan = "2023-01-01T00:00:00Z"

	anchored := filled(t)
	rekorKey := anchored.anchor(16)
	asks := func(policy, rekor bool) Options {
		o := Options{Keys: pinned.Keys}
		if policy {
			o.Policy = []byte(tablePolicy())
		}
		if rekor {
			o.RekorKeys = []string{rekorKey}
		}
		return o
	}
	good := anchored.bundle("t-a", 0)
	add("anchored by witnesses and Rekor", good, asks(true, true), ProblemNone)
	add("anchored, a whole ledger", anchored.bundle("", 0), asks(true, true), ProblemNone)
	add("anchored by strangers", good, pinned, ProblemNone)
	add("the key pinned by the policy", good, Options{Policy: []byte("log " + b.key + "\n" + tablePolicy())}, ProblemNone)
	add("newer than what a witness saw of an older checkpoint", good, asks(true, false), ProblemStale).NewerThan = "2027-01-16T00:00:00Z"
	add("no witness where a quorum is asked for", b.bundle("t-a", 0), asks(true, false), ProblemUnwitnessed)
	add("no entry where Rekor is asked for", b.bundle("t-a", 0), asks(false, true), ProblemUnanchored)
	add("a quorum of one more than signed", good, Options{Keys: pinned.Keys, Policy: []byte(strings.Replace(tablePolicy(), "g 2", "g 3", 1))}, ProblemUnwitnessed)
	add("another Rekor log", good, Options{Keys: pinned.Keys, RekorKeys: []string{b.key}}, ProblemUnanchored)
	change := func(f func([]Anchor)) []byte {
		list := slices.Clone(anchored.anchors)
		f(list)
		x := filled(t)
		x.anchors = list
		return x.bundle("t-a", 0)
	}
	add("a cosignature over another checkpoint", change(func(l []Anchor) {
		_, sigs, _ := strings.Cut(l[0].Checkpoint, "\n\n")
		cp := string(b.checkpoint(17, "log"))
		l[0].Checkpoint, l[0].Path = cp+strings.SplitAfterN(sigs, "\n", 2)[1], []vault.Digest{}
	}), asks(true, false), ProblemUnwitnessed)
	add("one witness signs twice", change(func(l []Anchor) {
		l[0].Checkpoint = string(cosign(t, cosign(t, b.checkpoint(16, "log"), "w-one", seenAt), "w-one", seenAt+1))
	}), asks(true, false), ProblemUnwitnessed)
	add("a Rekor entry of another checkpoint", change(func(l []Anchor) {
		cp, _ := unverifiedCheckpoint(b.checkpoint(15, "log"))
		l[1].Proof, _ = rekorLog(t, cp)
	}), asks(false, true), ProblemUnanchored)
	add("a Rekor entry with another path", change(func(l []Anchor) {
		l[1].Proof = bytes.Replace(l[1].Proof, []byte(`"hashes":["`), []byte(`"hashes":["AAAA`), 1)
	}), asks(false, true), ProblemUnanchored)
	add("an anchored checkpoint by another key", change(func(l []Anchor) { l[0].Checkpoint = string(b.checkpoint(16, "attacker")) }), pinned, ProblemAltered)
	add("an anchored checkpoint with another path", change(func(l []Anchor) { l[0].Path = []vault.Digest{{1}} }), pinned, ProblemSplitView)
	kept := rewritten(t, b)
	kept.anchors = anchored.anchors
	add("history signed again, its old anchors kept", kept.bundle("t-a", 0), asks(true, true), ProblemSplitView)
	add("history signed again, its old anchors dropped, to who asks for witnesses", forged.bundle("t-a", 0), asks(true, false), ProblemUnwitnessed)
	add("history signed again, its old anchors dropped, to who asks for Rekor", forged.bundle("t-a", 0), asks(false, true), ProblemUnanchored)

	for _, trick := range zipTricks(t, good) {
		add("zip: "+trick.name, trick.data, pinned, ProblemMalformed)
	}
	c := unpack(t, b.bundle("t-a", 0))
	c.text[fileManifest] = strings.Replace(c.text[fileManifest], `"log":`, `"log":"x","log":`, 1)
	add("manifest: a member twice", c.zip(t), pinned, ProblemMalformed)

	authority := vaulttest.NewAuthority("stamps.test", nil)
	// stampedBy has a timestamp of the authority on a checkpoint of size records.
	stampedBy := func(authority *vaulttest.Authority, size int, change func(*vaulttest.Stamp)) []byte {
		x := filled(t)
		x.anchor(size)
		cp, err := unverifiedCheckpoint(b.checkpoint(size, "log"))
		if err != nil {
			t.Fatal(err)
		}
		s := stampOf(cp)
		if change != nil {
			change(&s)
		}
		x.anchors = append(x.anchors, Anchor{x.anchors[1].Checkpoint, AnchorTSA, x.anchors[1].Path, authority.Stamp(s)})
		return x.bundle("t-a", 0)
	}
	stamped := func(size int, change func(*vaulttest.Stamp)) []byte { return stampedBy(authority, size, change) }
	tsa := func(o Options) Options {
		o.TSARoots = authority.Roots()
		return o
	}
	sealed := stamped(16, nil)
	add("stamped", sealed, tsa(pinned), ProblemNone)
	add("stamped, cosigned and logged: the earliest word counts", sealed, tsa(asks(true, true)), ProblemNone)
	add("stamped by nobody that is trusted", sealed, pinned, ProblemNone)
	add("stamped by another authority than the trusted one", sealed, Options{Keys: pinned.Keys, TSARoots: vaulttest.NewAuthority("stranger.test", nil).Roots()}, ProblemUnstamped)
	add("no timestamp where an authority is asked for", good, tsa(pinned), ProblemUnstamped)
	add("stamped before its last records: nothing says when those existed", stamped(9, nil), tsa(pinned), ProblemNone)
	add("stamped by a clock that is a second off at most", stamped(16, func(s *vaulttest.Stamp) { s.Millis = 999 }), tsa(pinned), ProblemNone)
	add("a timestamp of another checkpoint", stamped(16, func(s *vaulttest.Stamp) { s.Digest[0] ^= 1 }), tsa(pinned), ProblemUnstamped)
	add("a timestamp after the end of the authority's certificate", stamped(16, func(s *vaulttest.Stamp) { s.Time = vaulttest.StampsUntil.Add(time.Second) }), tsa(pinned), ProblemUnstamped)
	add("a timestamp that does not name its certificate", stamped(16, func(s *vaulttest.Stamp) { s.NoName = true }), tsa(pinned), ProblemUnstamped)
	add("a timestamp says nothing about how new a bundle is", stamped(17, nil), tsa(pinned), ProblemStale).NewerThan = "2026-01-01T00:00:00Z"
	kept.anchors = []Anchor{{anchored.anchors[1].Checkpoint, AnchorTSA, anchored.anchors[1].Path, authority.Stamp(stampOf(testCheckpoint(t, 16)))}}
	add("history signed again, its old timestamp kept", kept.bundle("t-a", 0), tsa(pinned), ProblemSplitView)
	add("history signed again, its old timestamp dropped, to who asks for an authority", forged.bundle("t-a", 0), tsa(pinned), ProblemUnstamped)
	counts := map[bool]Problem{true: ProblemNone, false: ProblemUnstamped}
	tokens := stampCases(authority)
	for _, name := range slices.Sorted(maps.Keys(tokens)) {
		add("timestamp: "+name, stamped(16, tokens[name].change), tsa(pinned), counts[tokens[name].ok])
	}
	for _, name := range slices.Sorted(maps.Keys(certCases)) {
		a := vaulttest.NewAuthority("stamps.test", certCases[name].change)
		add("timestamp, certificate "+name, stampedBy(a, 16, nil), Options{Keys: pinned.Keys, TSARoots: a.Roots()}, counts[certCases[name].ok])
	}

	entryV1, keyV1 := rekorV1Log(t, testCheckpoint(t, 16))
	inV1 := func(entry []byte) []byte {
		x := filled(t)
		x.anchor(16)
		x.anchors[1].Kind, x.anchors[1].Proof = AnchorRekorV1, entry
		return x.bundle("t-a", 0)
	}
	v1 := Options{Keys: pinned.Keys, RekorKeys: []string{keyV1}}
	add("in a Rekor v1 log, which says when", inV1(entryV1), v1, ProblemNone)
	add("in a Rekor v1 log, and either version is asked for", inV1(entryV1), Options{Keys: pinned.Keys, RekorKeys: []string{rekorKey, keyV1}}, ProblemNone)
	add("in a Rekor v1 log that nobody named", inV1(entryV1), pinned, ProblemNone)
	add("in another Rekor v1 log", inV1(entryV1), Options{Keys: pinned.Keys, RekorKeys: []string{vaulttest.NewRekorV1("stranger.test").Key()}}, ProblemUnanchored)
	add("no entry where a Rekor v1 log is asked for", good, v1, ProblemUnanchored)
	add("a Rekor v2 entry said to be of v1", inV1(anchored.anchors[1].Proof), v1, ProblemUnanchored)
	otherV1, _ := rekorV1Log(t, testCheckpoint(t, 15))
	add("a Rekor v1 entry of another checkpoint", inV1(otherV1), v1, ProblemUnanchored)
	for _, name := range slices.Sorted(maps.Keys(v1Lies)) {
		add("a Rekor v1 entry "+name, inV1(changedV1(t, entryV1, v1Lies[name])), v1, ProblemUnanchored)
	}

	for i := range rows {
		r := &rows[i]
		r.Bundle, r.SHA256 = fmt.Sprintf("%03d.zip", i), sha256.Sum256(r.data)
	}
	return rows
}

type trick struct {
	name string
	data []byte
}

// zipTricks are the ways to have two readers of a zip see different files.
func zipTricks(t testing.TB, bundle []byte) []trick {
	files, err := openZip(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal(err)
	}
	dirAt := int(binary.LittleEndian.Uint32(bundle[len(bundle)-6:]))
	edit := func(at int, b ...byte) []byte {
		x := bytes.Clone(bundle)
		copy(x[at:], b)
		return x
	}
	leaves := slices.IndexFunc(files, func(f zipFile) bool { return f.name == fileLeaves })
	local := int(files[leaves].offset) - zipLocalLen - len(fileLeaves)
	twice := unpack(t, bundle)
	twice.names = append(twice.names, fileLeaves)
	swapped := unpack(t, bundle)
	swapped.names[1], swapped.names[2] = swapped.names[2], swapped.names[1]
	extra := unpack(t, bundle)
	extra.names, extra.text["../evil"] = append(extra.names, "../evil"), "x"
	return []trick{
		{"a file twice", twice.zip(t)},
		{"files in another order", swapped.zip(t)},
		{"a file more", extra.zip(t)},
		{"bytes after the end", append(bytes.Clone(bundle), "PK"...)},
		{"bytes before the start", append([]byte("#!"), bundle...)},
		{"a comment at the end", append(edit(len(bundle)-2, 1, 0), 'x')},
		{"another name in the local header", edit(local+zipLocalLen, 'L')},
		{"compressed, says the local header", edit(local+8, 8)},
		{"another size in the local header", edit(local+22, 1, 0, 0, 0)},
		{"files that overlap", edit(dirAt+42, 1)},
		{"zip64, says the directory", edit(dirAt+24, 0xff, 0xff, 0xff, 0xff)},
		{"more files than the directory has", edit(len(bundle)-12, 0xff, 0xff)},
		{"a local header with a time", edit(local+10, 1)},
		{"nothing", nil},
	}
}

// TestTable holds this package to the table and keeps the table: UPDATE=1 rewrites
// it. Each row's bundle has one digest, so a change to a format shows here.
func TestTable(t *testing.T) {
	rows := table(t)
	for i := range rows {
		row := &rows[i]
		r := verify(t, row.data, row.options(t))
		if r.Problem != row.Problem || row.Record != nil && (r.Record == nil || *r.Record != *row.Record) {
			t.Errorf("%s: want %s:\n%s", row.Name, row.Problem, r)
		}
		row.Exit, row.Record, row.Intact, row.Complete, row.Pinned = r.Exit, r.Record, r.Intact, r.Complete, r.Pinned
		row.AnchoredBy, row.Disclosed = r.AnchoredBy, r.Disclosed
		if r.Before != nil {
			row.Before = r.Before.Format(time.RFC3339)
		}
	}
	text, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/table.json"
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(want), text) {
		t.Errorf("%s: bundles or answers changed; UPDATE=1 and read the diff", golden)
	}
}

// writeTable writes the table and its bundles for a verifier outside.
func writeTable(t testing.TB) (dir string, rows []tableRow) {
	t.Helper()
	dir = t.TempDir()
	text, err := os.ReadFile("testdata/table.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	made := table(t)
	if len(made) != len(rows) {
		t.Fatal("testdata/table.json is old; UPDATE=1 rewrites it")
	}
	for i := range rows {
		rows[i].data = made[i].data
		if err := os.WriteFile(filepath.Join(dir, rows[i].Bundle), made[i].data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "table.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, rows
}
