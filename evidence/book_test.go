package evidence

import (
	"archive/zip"
	"bytes"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"

	"github.com/pilox/vault"
)

// A book is a ledger in memory.
type book struct {
	t      testing.TB
	key    string
	leaves [][]byte
	hashes []vault.Digest
	runs   map[vault.TaskID]*runState
	opens  map[uint64][]Opened

	anchors   []Anchor
	witnesses []byte
}

const bookOrigin = "vault.test/log/1"

func newBook(t testing.TB) *book {
	vkey, err := VerifierKey(bookOrigin, testKey("log").Public())
	if err != nil {
		t.Fatal(err)
	}
	return &book{t: t, key: vkey, runs: map[vault.TaskID]*runState{}, opens: map[uint64][]Opened{}}
}

func (b *book) add(run vault.TaskID, class vault.Class, phase vault.Phase) {
	b.t.Helper()
	r := b.runs[run]
	if r == nil {
		r = &runState{id: run}
		b.runs[run] = r
	}
	idx := uint64(len(b.leaves))
	names := vault.FieldsOf(class)
	commitments := make([]vault.Digest, len(names))
	for i, n := range names {
		o := Opened{Name: n, Value: []byte(n + " of a record"), Salt: Salt{byte(idx), byte(i), 1}}
		commitments[i] = o.Commit()
		b.opens[idx] = append(b.opens[idx], o)
	}
	l := Leaf{
		Log: bookOrigin, Index: idx, Time: time.UnixMicro(1.7e15 + int64(idx)), Run: run, RunSeq: r.next, PrevRunLeaf: r.prev,
		Call: "c-1", Class: class, Phase: phase, Verdict: vault.Allow, Tool: "read_file", Kind: vault.KindTool,
		Fields: Fields{len(names), FieldRoot(commitments)},
	}
	text, err := l.Append(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	h := HashLeaf(text)
	r.follow(&l, h)
	b.leaves, b.hashes = append(b.leaves, text), append(b.hashes, h)
}

// filled is a book with a closed run t-a, an open run t-b and the daemon's own.
func filled(t testing.TB) *book {
	b := newBook(t)
	b.add("", vault.ClassDaemon, vault.PhaseNoted)
	b.add("t-a", vault.ClassTask, vault.PhaseOpened)
	b.add("t-b", vault.ClassTask, vault.PhaseOpened)
	for range 4 {
		b.add("t-a", vault.ClassCall, vault.PhaseIntent)
		b.add("t-b", vault.ClassCall, vault.PhaseIntent)
		b.add("t-a", vault.ClassCall, vault.PhaseDone)
	}
	b.add("t-a", vault.ClassTask, vault.PhaseClosed)
	b.add("t-b", vault.ClassCall, vault.PhaseDone)
	return b
}

func (b *book) checkpoint(size int, key string) []byte {
	b.t.Helper()
	t := NewTree(0)
	for _, h := range b.hashes[:size] {
		t.Append(h)
	}
	signed, err := Checkpoint{Origin: bookOrigin, Size: uint64(size), Root: t.Root()}.Sign(testKey(key))
	if err != nil {
		b.t.Fatal(err)
	}
	return signed
}

func (b *book) nodes(n proof.Nodes, err error) []vault.Digest {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	hashes, err := Nodes(n, func(id compact.NodeID) ([]byte, error) {
		lo, hi := id.Coverage()
		t := NewTree(0)
		for _, h := range b.hashes[lo:hi] {
			t.Append(h)
		}
		root := t.Root()
		return root[:], nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	var path []vault.Digest
	for _, h := range hashes {
		path = append(path, vault.Digest(h))
	}
	return path
}

// bundle exports a run, or the whole book if run is empty.
func (b *book) bundle(run vault.TaskID, since int) []byte {
	b.t.Helper()
	size := uint64(len(b.leaves))
	var of []uint64
	for i, text := range b.leaves {
		l, err := ParseLeaf(text)
		if err != nil {
			b.t.Fatal(err)
		}
		if run == "" || l.Run == run {
			of = append(of, uint64(i))
		}
	}
	out := Bundle{Scope: ScopeRun, Run: run, Count: uint64(len(of)), Checkpoint: b.checkpoint(len(b.leaves), "log"), Keys: []string{b.key}}
	out.Sign = func(p []byte) (EnvelopeSignature, error) { return SignStatement(bookOrigin, testKey("log"), p) }
	out.Anchors, out.Witnesses = b.anchors, b.witnesses
	if run == "" {
		out.Scope = ScopeLog
	}
	out.Leaves = func(w *LeafWriter) error {
		for _, i := range of {
			if err := w.Write(b.leaves[i]); err != nil {
				return err
			}
		}
		return nil
	}
	out.Proofs = func(yield func(Inclusion) error) error {
		for _, i := range of {
			if err := yield(Inclusion{i, b.nodes(proof.Inclusion(i, size))}); err != nil {
				return err
			}
		}
		return nil
	}
	out.Hashes = func(yield func(vault.Digest) error) error {
		for _, i := range of {
			if err := yield(b.hashes[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if since > 0 {
		out.Consistency = &Consistency{uint64(since), b.nodes(proof.Consistency(uint64(since), size))}
	}
	out.Disclosures = func(yield func(Disclosure) error) error {
		for _, i := range of {
			l, _ := ParseLeaf(b.leaves[i])
			var commitments []vault.Digest
			for _, o := range b.opens[i] {
				commitments = append(commitments, o.Commit())
			}
			for _, o := range b.opens[i] {
				d, err := Disclose(i, l.Class, o, commitments)
				if err != nil {
					return err
				}
				if err := yield(d); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var w bytes.Buffer
	if _, err := out.WriteTo(&w); err != nil {
		b.t.Fatal(err)
	}
	return w.Bytes()
}

func verify(t testing.TB, bundle []byte, o Options) Report {
	t.Helper()
	r, err := VerifyBytes(bundle, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Exit != r.Problem.Exit() {
		t.Fatalf("exit %d for %s", r.Exit, r.Problem)
	}
	return r
}

// A content is an unpacked bundle, for those who change it.
type content struct {
	names []string
	text  map[string]string
}

func unpack(t testing.TB, bundle []byte) *content {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal("others cannot read it: ", err)
	}
	c := &content{text: map[string]string{}}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r) // checks the CRC
		if err != nil {
			t.Fatal(err)
		}
		c.names, c.text[f.Name] = append(c.names, f.Name), string(b)
	}
	return c
}

// pack writes the bundle again, as an attacker would who knows the format: with
// the digests, sizes and counts that fit what he changed.
func (c *content) pack(t testing.TB) []byte {
	t.Helper()
	var m Manifest
	if err := decodeLine([]byte(c.text[fileManifest]), &m); err != nil {
		t.Fatal(err)
	}
	m.Files = nil
	if m.Count > 0 {
		m.Count = uint64(strings.Count(c.text[fileLeaves], "\n"))
	}
	for _, n := range c.names[1:] {
		d := newDigester()
		io.WriteString(d, c.text[n])
		m.Files = append(m.Files, FileDigest{n, d.sum(), d.n})
	}
	text, err := encodeLine(m)
	if err != nil {
		t.Fatal(err)
	}
	c.text[fileManifest] = string(text)
	return c.zip(t)
}

func (c *content) zip(t testing.TB) []byte {
	t.Helper()
	var files []zipFile
	for _, n := range c.names {
		files = append(files, zipFile{name: n, size: int64(len(c.text[n])), crc: crc32.ChecksumIEEE([]byte(c.text[n]))})
	}
	dir, err := layout(files)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for i := range files {
		b = append(files[i].local(b), c.text[files[i].name]...)
	}
	return append(b, dir...)
}

func (c *content) lines(name string) []string {
	return strings.SplitAfter(strings.TrimSuffix(c.text[name], "\n"), "\n")
}

func (c *content) setLines(name string, lines []string) {
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\n") + "\n"
	}
	c.text[name] = strings.Join(lines, "")
}

func drop(lines []string, i int) []string { return append(lines[:i:i], lines[i+1:]...) }

func swap(lines []string, i, j int) []string {
	lines[i], lines[j] = strings.TrimSuffix(lines[j], "\n"), strings.TrimSuffix(lines[i], "\n")
	return lines
}

// dropDisclosuresFrom withholds the fields of the records from index from on.
func (c *content) dropDisclosuresFrom(from uint64) {
	var keep []string
	for _, l := range c.lines(fileDisclosures) {
		var d Disclosure
		if err := decodeLine([]byte(l), &d); err == nil && d.Index < from {
			keep = append(keep, l)
		}
	}
	c.setLines(fileDisclosures, keep)
}

// restate changes the statement, whose signature the attacker cannot mend.
func (c *content) restate(t testing.TB, change func(string) string) {
	t.Helper()
	var e Envelope
	if err := decodeLine([]byte(c.text[fileStatement]), &e); err != nil {
		t.Fatal(err)
	}
	was := string(e.Payload)
	if e.Payload = []byte(change(was)); string(e.Payload) == was {
		t.Fatal("nothing was changed, so this shows nothing: ", was)
	}
	text, err := encodeLine(e)
	if err != nil {
		t.Fatal(err)
	}
	c.text[fileStatement] = string(text)
}
