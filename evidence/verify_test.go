package evidence

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/proof"

	"github.com/pilox/vault"
)

// A soundRow is a bundle that nobody changed.
type soundRow struct {
	bundle []byte
	o      Options
	want   Problem
}

func soundRows(b *book) map[string]soundRow {
	pinned := Options{Keys: []string{b.key}}
	return map[string]soundRow{
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
	}
}

func TestSoundBundles(t *testing.T) {
	b := filled(t)
	for name, tc := range soundRows(b) {
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

// A mutationRow is a bundle that somebody changed who knows the format and mends
// every digest that is not signed.
type mutationRow struct {
	run    vault.TaskID
	change func(*content)
	want   Problem
	record *uint64
}

func mutationRows(t testing.TB, b *book) map[string]mutationRow {
	at := func(i uint64) *uint64 { return &i }
	return map[string]mutationRow{
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
		"run: the closing record and its proof dropped": {"t-a", func(c *content) {
			l, p := c.lines(fileLeaves), c.lines(fileProofs)
			c.setLines(fileLeaves, l[:len(l)-1])
			c.setLines(fileProofs, p[:len(p)-1])
			c.dropDisclosuresFrom(15)
		}, ProblemTruncated, nil},
		"run: the statement lies about the grade": {"t-a", func(c *content) {
			c.restate(t, func(p string) string { return strings.Replace(p, `"grades":{"none":4}`, `"grades":{"A":4}`, 1) })
		}, ProblemStatement, nil},
		"run: the statement hides a tool": {"t-a", func(c *content) {
			c.restate(t, func(p string) string { return strings.Replace(p, "read_file", "send_file", 1) })
		}, ProblemStatement, nil},
		"run: the statement names another principal": {"t-a", func(c *content) {
			c.restate(t, func(p string) string { return strings.Replace(p, "principal of", "another one of", 1) })
		}, ProblemStatement, nil},
		"run: the statement is signed by nobody": {"t-a", func(c *content) {
			c.text[fileStatement] = regexp.MustCompile(`"signatures":.*`).ReplaceAllString(c.text[fileStatement], `"signatures":[]}`)
		}, ProblemStatement, nil},
		"run: the statement has a member twice": {"t-a", func(c *content) {
			c.text[fileStatement] = strings.Replace(c.text[fileStatement], `{"payload":`, `{"payload":"","payload":`, 1)
		}, ProblemMalformed, nil},
		"run: a disclosure dropped":        {"t-a", func(c *content) { c.setLines(fileDisclosures, drop(c.lines(fileDisclosures), 0)) }, ProblemStatement, nil},
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
	}
}

// TestMutations is the promise of the package: every change is noticed, told
// apart, and the record named.
func TestMutations(t *testing.T) {
	b := filled(t)
	for name, tc := range mutationRows(t, b) {
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
		ProblemStatement, ProblemUnwitnessed, ProblemUnanchored, ProblemStale, ProblemWrongKey, ProblemUnpinned, ProblemRollback, ProblemSplitView, ProblemUnrelated, ProblemOtherRun, ProblemIncomplete,
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
