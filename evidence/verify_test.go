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

func TestSoundBundles(t *testing.T) {
	b := filled(t)
	pinned := Options{Keys: []string{b.key}}
	for name, tc := range map[string]struct {
		bundle []byte
		o      Options
		want   Problem
	}{
		"a closed run with the pinned key is ok":       {b.bundle("t-a", 0), pinned, ProblemNone},
		"a whole ledger with the pinned key is ok":     {b.bundle("", 0), pinned, ProblemNone},
		"an open run is incomplete":                    {b.bundle("t-b", 0), pinned, ProblemIncomplete},
		"without a key the answer is unpinned":         {b.bundle("t-a", 0), Options{}, ProblemUnpinned},
		"an open run without a key is incomplete":      {b.bundle("t-b", 0), Options{}, ProblemIncomplete},
		"the run that was asked for is ok":             {b.bundle("t-a", 0), Options{Keys: pinned.Keys, Run: "t-a"}, ProblemNone},
		"another run than asked for is said":           {b.bundle("t-a", 0), Options{Keys: pinned.Keys, Run: "t-b"}, ProblemOtherRun},
		"an open run of a whole ledger is incomplete":  {b.bundle("", 0), Options{Keys: pinned.Keys, Run: "t-b"}, ProblemIncomplete},
		"a run that a whole ledger does not have":      {b.bundle("", 0), Options{Keys: pinned.Keys, Run: "t-z"}, ProblemOtherRun},
		"it continues a checkpoint the verifier holds": {b.bundle("t-a", 6), Options{Keys: pinned.Keys, Since: b.checkpoint(6, "log")}, ProblemNone},
		"a whole ledger shows that without a proof":    {b.bundle("", 0), Options{Keys: pinned.Keys, Since: b.checkpoint(6, "log")}, ProblemNone},
		"a checkpoint of the same size":                {b.bundle("t-a", 0), Options{Keys: pinned.Keys, Since: b.checkpoint(len(b.leaves), "log")}, ProblemNone},
		"a checkpoint it has no proof for":             {b.bundle("t-a", 0), Options{Keys: pinned.Keys, Since: b.checkpoint(6, "log")}, ProblemUnrelated},
		"a checkpoint its proof is not for":            {b.bundle("t-a", 5), Options{Keys: pinned.Keys, Since: b.checkpoint(6, "log")}, ProblemUnrelated},
	} {
		t.Run(name, func(t *testing.T) {
			r := verify(t, tc.bundle, tc.o)
			if r.Problem != tc.want {
				t.Fatalf("want %s:\n%s", tc.want, r)
			}
			if !r.Intact || r.Disclosed == 0 {
				t.Fatalf("not intact or nothing opened:\n%s", r)
			}
		})
	}
	if x, y := b.bundle("t-a", 0), b.bundle("t-a", 0); !bytes.Equal(x, y) {
		t.Fatal("the same bundle twice is not the same bytes")
	}
	unpack(t, b.bundle("", 0)) // any zip reader can
}

// TestMutations is the promise of the package: every change is noticed, told
// apart, and the record named. Each row is done by somebody who knows the format
// and mends every digest that is not signed.
func TestMutations(t *testing.T) {
	at := func(i uint64) *uint64 { return &i }
	b := filled(t)
	for name, tc := range map[string]struct {
		run    vault.TaskID
		change func(*content)
		want   Problem
		record *uint64
	}{
		"run: a record edited": {"t-a", func(c *content) {
			c.text[fileLeaves] = strings.Replace(c.text[fileLeaves], `"idx":5,`+`"intent_idx":null,"kind":"tool"`, `"idx":5,"intent_idx":null,"kind":"file"`, 1)
		}, ProblemAltered, at(5)},
		"run: a record made unreadable": {"t-a", func(c *content) { c.text[fileLeaves] = strings.Replace(c.text[fileLeaves], `"idx":5`, `"idx":-`, 1) }, ProblemAltered, at(5)},
		"run: a record dropped":         {"t-a", func(c *content) { c.setLines(fileLeaves, drop(c.lines(fileLeaves), 3)) }, ProblemDropped, at(8)},
		"run: a record and its proof dropped": {"t-a", func(c *content) {
			c.setLines(fileLeaves, drop(c.lines(fileLeaves), 3))
			c.setLines(fileProofs, drop(c.lines(fileProofs), 3))
			c.text[fileDisclosures] = ""
		}, ProblemDropped, at(8)},
		"run: the first record dropped": {"t-a", func(c *content) {
			c.setLines(fileLeaves, drop(c.lines(fileLeaves), 0))
			c.setLines(fileProofs, drop(c.lines(fileProofs), 0))
		}, ProblemDropped, at(3)},
		"run: two records swapped": {"t-a", func(c *content) { c.setLines(fileLeaves, swap(c.lines(fileLeaves), 2, 5)) }, ProblemSwapped, at(9)},
		"run: two records and their proofs swapped": {"t-a", func(c *content) {
			c.setLines(fileLeaves, swap(c.lines(fileLeaves), 2, 5))
			c.setLines(fileProofs, swap(c.lines(fileProofs), 2, 5))
		}, ProblemSwapped, at(9)},
		"run: the last record dropped, its proof kept": {"t-a", func(c *content) { l := c.lines(fileLeaves); c.setLines(fileLeaves, l[:len(l)-1]) }, ProblemTruncated, nil},
		"run: a record of another run put in": {"t-a", func(c *content) {
			l := c.lines(fileLeaves)
			c.setLines(fileLeaves, append(l[:3:3], append([]string{string(b.leaves[4])}, l[3:]...)...))
		}, ProblemAltered, at(6)},
		"run: an opened value changed": {"t-a", func(c *content) {
			c.text[fileDisclosures] = strings.Replace(c.text[fileDisclosures], `"value":"Y`, `"value":"Z`, 1)
		}, ProblemDisclosure, at(1)},
		"run: salts of two fields swapped": {"t-a", func(c *content) { swapSalts(c) }, ProblemDisclosure, at(1)},
		"run: the checkpoint's size changed": {"t-a", func(c *content) {
			c.text[fileCheckpoint] = strings.Replace(c.text[fileCheckpoint], "\n17\n", "\n16\n", 1)
		}, ProblemAltered, nil},
		"run: signed with another key": {"t-a", func(c *content) { resign(t, b, c) }, ProblemWrongKey, nil},
		"run: renamed to another run":  {"t-a", func(c *content) { c.text[fileManifest] = strings.Replace(c.text[fileManifest], "t-a", "t-b", 1) }, ProblemMalformed, at(1)},
		"run: a proof changed": {"t-a", func(c *content) {
			c.text[fileProofs] = strings.Replace(c.text[fileProofs], `"path":["`, `"path":["0`, 1)
		}, ProblemMalformed, nil},
		"run: nothing left":                {"t-a", func(c *content) { c.text[fileLeaves], c.text[fileProofs] = "", "" }, ProblemTruncated, nil},
		"run: the text for people changed": {"t-a", func(c *content) { c.text[fileReadme] = "trust me" }, ProblemMalformed, nil},

		"log: a record edited": {"", func(c *content) {
			c.text[fileLeaves] = strings.Replace(c.text[fileLeaves], `"idx":5,"intent_idx":null,"kind":"tool"`, `"idx":5,"intent_idx":null,"kind":"file"`, 1)
		}, ProblemAltered, at(5)},
		"log: a record and its hash edited": {"", func(c *content) {
			l := c.lines(fileLeaves)
			l[5] = strings.Replace(l[5], `"tool":"read_file"`, `"tool":"send_file"`, 1)
			h := HashLeaf([]byte(strings.TrimSuffix(l[5], "\n")))
			c.text[fileHashes] = c.text[fileHashes][:5*32] + string(h[:]) + c.text[fileHashes][6*32:]
			c.setLines(fileLeaves, l)
		}, ProblemAltered, at(5)},
		"log: a record dropped": {"", func(c *content) { c.setLines(fileLeaves, drop(c.lines(fileLeaves), 5)) }, ProblemDropped, at(5)},
		"log: a record and its hash dropped": {"", func(c *content) {
			c.setLines(fileLeaves, drop(c.lines(fileLeaves), 5))
			c.text[fileHashes] = c.text[fileHashes][:5*32] + c.text[fileHashes][6*32:]
		}, ProblemDropped, at(5)},
		"log: two records swapped":      {"", func(c *content) { c.setLines(fileLeaves, swap(c.lines(fileLeaves), 2, 9)) }, ProblemSwapped, at(2)},
		"log: the last records dropped": {"", func(c *content) { c.setLines(fileLeaves, c.lines(fileLeaves)[:10]) }, ProblemTruncated, at(10)},
		"log: the last records and hashes dropped": {"", func(c *content) {
			c.setLines(fileLeaves, c.lines(fileLeaves)[:10])
			c.text[fileHashes] = c.text[fileHashes][:10*32]
		}, ProblemTruncated, at(10)},
		"log: a record twice":          {"", func(c *content) { l := c.lines(fileLeaves); c.setLines(fileLeaves, append(l, l[0])) }, ProblemMalformed, nil},
		"log: signed with another key": {"", func(c *content) { resign(t, b, c) }, ProblemWrongKey, nil},
		"log: only a hash edited":      {"", func(c *content) { c.text[fileHashes] = "x" + c.text[fileHashes][1:] }, ProblemAltered, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := unpack(t, b.bundle(tc.run, 0))
			tc.change(c)
			r := verify(t, c.pack(t), Options{Keys: []string{b.key}})
			if r.Problem != tc.want || tc.record != nil && (r.Record == nil || *r.Record != *tc.record) {
				t.Fatalf("want %s at %v:\n%s", tc.want, tc.record, r)
			}
			if r.Complete && r.Problem.Exit() < ExitWrongKey && r.Intact {
				t.Fatalf("called intact:\n%s", r)
			}
		})
	}
}

func swapSalts(c *content) {
	l := c.lines(fileDisclosures)
	salt := func(s string) string { _, s, _ = strings.Cut(s, `"salt":"`); s, _, _ = strings.Cut(s, `"`); return s }
	x, y := salt(l[0]), salt(l[1])
	l[0], l[1] = strings.Replace(l[0], x, y, 1), strings.Replace(l[1], y, x, 1)
	c.setLines(fileDisclosures, l)
}

func resign(t testing.TB, b *book, c *content) {
	c.text[fileCheckpoint] = string(b.checkpoint(len(b.leaves), "attacker"))
	k, err := VerifierKey(bookOrigin, testKey("attacker").Public())
	if err != nil {
		t.Fatal(err)
	}
	c.text[fileKeys] = k + "\n"
}

// An operator with the ledger key rewrites history. The bundle alone is sound;
// only what the verifier already holds tells.
func TestRewrittenHistoryNeedsACheckpointToBeSeen(t *testing.T) {
	b := filled(t)
	held := b.checkpoint(12, "log")
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
	forged := other.bundle("", 0)
	o := Options{Keys: []string{b.key}}
	if r := verify(t, forged, o); r.Problem != ProblemNone || r.Window == "" || !strings.Contains(r.String(), "never anchored") {
		t.Fatalf("alone it is sound and says what it cannot show:\n%s", r)
	}
	o.Since = held
	if r := verify(t, forged, o); r.Problem != ProblemSplitView {
		t.Fatalf("want split_view:\n%s", r)
	}
	if r := verify(t, other.bundle("t-a", 12), o); r.Problem != ProblemSplitView {
		t.Fatalf("want split_view:\n%s", r)
	}
	o.Since = b.checkpoint(len(b.leaves), "log")
	if r := verify(t, forged, o); r.Problem != ProblemSplitView {
		t.Fatalf("want split_view:\n%s", r)
	}
	older := filled(t)
	older.leaves, older.hashes = older.leaves[:12], older.hashes[:12]
	if r := verify(t, older.bundle("", 0), o); r.Problem != ProblemRollback {
		t.Fatalf("want rollback:\n%s", r)
	}
}

// A flipped bit anywhere in a bundle is noticed, by somebody who mends nothing.
func TestFlippedBytesAreNoticedEverywhere(t *testing.T) {
	b := newBook(t)
	b.add("t-a", vault.ClassTask, vault.PhaseOpened)
	b.add("t-a", vault.ClassTask, vault.PhaseClosed)
	for _, run := range []vault.TaskID{"t-a", ""} {
		bundle := b.bundle(run, 0)
		o := Options{Keys: []string{b.key}}
		if r := verify(t, bundle, o); r.Problem != ProblemNone {
			t.Fatal(r)
		}
		for i := 0; i < len(bundle); i += 29 { // every byte takes seconds and shows no more
			bundle[i] ^= 1
			if r := verify(t, bundle, o); r.Problem == ProblemNone || r.Intact && r.Problem.Exit() < ExitWrongKey {
				t.Fatalf("byte %d of %d flipped (%q):\n%s", i, len(bundle), bundle[max(0, i-20):min(len(bundle), i+20)], r)
			}
			bundle[i] ^= 1
		}
		for _, n := range []int{0, 1, 21, 22, 100, len(bundle) / 2, len(bundle) - 1} {
			if r := verify(t, bundle[:n], o); r.Problem != ProblemMalformed {
				t.Fatalf("cut to %d bytes:\n%s", n, r)
			}
		}
		if r := verify(t, append([]byte("x"), bundle...), o); r.Problem != ProblemMalformed {
			t.Fatalf("with a byte before:\n%s", r)
		}
	}
}

func TestFlippedByteInARecordNamesTheRecord(t *testing.T) {
	b := filled(t)
	bundle := b.bundle("t-a", 0)
	i := bytes.Index(bundle, []byte(`"idx":6,`))
	bundle[i-30] ^= 1
	r := verify(t, bundle, Options{Keys: []string{b.key}})
	if r.Problem != ProblemAltered || r.Record == nil || *r.Record != 6 || !strings.Contains(r.String(), "at record 6") {
		t.Fatalf("want altered at record 6:\n%s", r)
	}
}

func TestExitCodesAreDistinct(t *testing.T) {
	seen := map[int]Problem{1: "", 2: ""}
	for _, p := range []Problem{
		ProblemNone, ProblemAltered, ProblemDropped, ProblemSwapped, ProblemTruncated, ProblemDisclosure, ProblemMalformed,
		ProblemWrongKey, ProblemUnpinned, ProblemRollback, ProblemSplitView, ProblemUnrelated, ProblemOtherRun, ProblemIncomplete,
	} {
		if was, ok := seen[p.Exit()]; ok {
			t.Errorf("%s and %s exit %d", p, was, p.Exit())
		}
		seen[p.Exit()] = p
	}
	if Problem("").Exit() == ExitOK {
		t.Error("the zero Problem is ok")
	}
}

func FuzzParseLeaf(f *testing.F) {
	text, err := sample().Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"any_args":false}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLeaf(b)
		if err != nil {
			return
		}
		again, err := l.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %q and would write %q: %v", b, again, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	b := filled(f)
	f.Add(b.bundle("t-a", 5))
	f.Add(b.bundle("", 0))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		r, err := VerifyBytes(bundle, Options{Keys: []string{b.key}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Problem == ProblemNone && !bytes.Equal(unpack(t, bundle).zip(t), bundle) {
			t.Fatal("a file that is not exactly its contents is ok")
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	b := filled(f)
	f.Add(b.checkpoint(5, "log"))
	f.Fuzz(func(t *testing.T, signed []byte) {
		cp, _, err := OpenCheckpoint(signed, b.key)
		if err == nil && !strings.HasPrefix(string(signed), cp.Text()+"\n") {
			t.Fatalf("read %+v from %q", cp, signed)
		}
	})
}

func FuzzProof(f *testing.F) {
	b := filled(f)
	p := Proof{Inclusion{5, b.nodes(proof.Inclusion(5, 17))}, b.checkpoint(17, "log")}
	f.Add(p.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err == nil && !bytes.Equal(p.Marshal(), b) {
			t.Fatal("parse then encode differs")
		}
	})
}

// BenchmarkVerify checks a whole ledger: parse, leaf hash, run chain, tree, and
// the digests of the files beside it.
func BenchmarkVerify(bench *testing.B) {
	b := newBook(bench)
	const n = 20_000
	for i := range n {
		b.add([]vault.TaskID{"t-a", "t-b", "t-c"}[i%3], vault.ClassCall, vault.PhaseIntent)
	}
	b.opens = map[uint64][]Opened{}
	bundle := b.bundle("", 0)
	bench.ReportAllocs()
	for bench.Loop() {
		r, err := VerifyBytes(bundle, Options{Keys: []string{b.key}})
		if err != nil || r.Problem != ProblemNone {
			bench.Fatal(r, err)
		}
	}
	bench.ReportMetric(float64(n*bench.N)/bench.Elapsed().Seconds(), "events/s")
}
