package evidence

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"

	"github.com/pilox/vault"
)

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// sample is a usual leaf: an intent with two debits.
func sample() *Leaf {
	return &Leaf{
		Log: "vault.test/log/1", Index: 41, Time: time.Date(2026, 3, 4, 5, 6, 7, 89000, time.UTC),
		Run: "t-0123456789abcdefghjkmnpqrs", RunSeq: 3, PrevRunLeaf: vault.Digest{9},
		Call: "c-0123456789abcdefghjkmnpqrs", Phase: vault.PhaseIntent, Epoch: 2, Class: vault.ClassCall,
		Verdict: vault.Allow, Policy: vault.Digest{7}, Server: vault.ServerID{1}, Tool: "read_file",
		Kind: vault.KindTool, Proof: vault.ProofSession, Grade: vault.GradeB,
		Debits: []vault.Debit{{Counter: "link/calls", Amount: 1, Limit: 50, Unit: "calls", Kept: true}},
		Fields: Fields{N: len(vault.FieldsOf(vault.ClassCall)), Root: vault.Digest{5}},
	}
}

// anyLeaf draws a leaf that may be written.
func anyLeaf(t *rapid.T) *Leaf {
	digest := func(label string) (d vault.Digest) {
		copy(d[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
		return d
	}
	name := rapid.StringN(0, 60, 200)
	index := rapid.Uint64Range(1, MaxInt)
	l := &Leaf{
		Log: "l" + name.Draw(t, "log"), Index: index.Draw(t, "idx"),
		Time:    time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "ts")).UTC(),
		Run:     vault.TaskID(rapid.StringMatching(`[a-zA-Z0-9_-]{0,64}`).Draw(t, "run")),
		Call:    name.Draw(t, "call"),
		Phase:   rapid.SampledFrom([]vault.Phase{vault.PhaseRefused, vault.PhaseIntent, vault.PhaseDone, vault.PhaseClosed}).Draw(t, "phase"),
		Epoch:   index.Draw(t, "epoch"),
		Class:   rapid.SampledFrom([]vault.Class{vault.ClassCall, vault.ClassTask, vault.ClassAccess}).Draw(t, "class"),
		Verdict: rapid.SampledFrom([]vault.Verdict{vault.Deny, vault.Ask, vault.Allow}).Draw(t, "verdict"),
		Reason:  vault.Code(rapid.StringMatching(`[a-z0-9_.]{0,64}`).Draw(t, "reason")),
		Tool:    name.Draw(t, "tool"),
		Kind:    rapid.SampledFrom([]vault.Kind{"", vault.KindTool, vault.KindEgress}).Draw(t, "kind"),
		Proof:   rapid.SampledFrom([]vault.ProofKind{"", vault.ProofBearer}).Draw(t, "proof"),
		Grade:   rapid.SampledFrom([]vault.Grade{vault.GradeNone, vault.GradeA}).Draw(t, "grade"),
		AnyArgs: rapid.Bool().Draw(t, "any"), SameUID: rapid.Bool().Draw(t, "uid"), Refund: rapid.Bool().Draw(t, "refund"),
		Policy: digest("policy"), Server: vault.ServerID(digest("server")),
	}
	l.Fields = Fields{len(vault.FieldsOf(l.Class)), vault.Hash("x")}
	if l.RunSeq = rapid.Uint64Range(0, l.Index).Draw(t, "seq"); l.RunSeq > 0 {
		l.PrevRunLeaf = vault.Hash("prev")
	}
	if l.HasIntent = rapid.Bool().Draw(t, "has intent"); l.HasIntent {
		l.Intent = rapid.Uint64Range(0, l.Index-1).Draw(t, "intent")
	}
	for range rapid.IntRange(0, 3).Draw(t, "debits") {
		l.Debits = append(l.Debits, vault.Debit{
			Counter: name.Draw(t, "counter"), Amount: rapid.Int64().Draw(t, "amount"),
			Limit: rapid.Int64().Draw(t, "limit"), Unit: name.Draw(t, "unit"), Kept: rapid.Bool().Draw(t, "kept"),
		})
	}
	return l
}

func TestLeafIsCanonicalJSONAndParsesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLeaf(t)
		b, err := l.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		canonical, err := jcs.Transform(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(canonical, b) {
			t.Fatalf("not canonical:\n got %s\nwant %s", b, canonical)
		}
		back, err := ParseLeaf(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		again, err := back.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("parse then encode: %v\n got %s\nwant %s", err, again, b)
		}
		if !back.Time.Equal(l.Time) || back.Index != l.Index || len(back.Debits) != len(l.Debits) || back.Tool != l.Tool {
			t.Fatalf("got %+v, want %+v", back, l)
		}
	})
}

func TestLeafGolden(t *testing.T) {
	b, err := sample().Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"any_args":false,"call_id":"c-0123456789abcdefghjkmnpqrs","class":"call","debits":[{"amount":1,"counter":"link/calls","kept":true,"limit":50,"unit":"calls"}],"epoch":2,"fields":{"n":6,"root":"0500000000000000000000000000000000000000000000000000000000000000"},"grade":"B","idx":41,"intent_idx":null,"kind":"tool","log":"vault.test/log/1","phase":"intent","policy":"0700000000000000000000000000000000000000000000000000000000000000","prev_run_leaf":"0900000000000000000000000000000000000000000000000000000000000000","proof":"session","reason":"","refund":false,"run":"t-0123456789abcdefghjkmnpqrs","run_seq":3,"same_uid":false,"server":"0100000000000000000000000000000000000000000000000000000000000000","tool":"read_file","ts":"2026-03-04T05:06:07.000089Z","v":1,"verdict":"allow"}`
	if string(b) != want {
		t.Fatalf("the leaf format changed; that is a new version, not an edit:\n got %s\nwant %s", b, want)
	}
	if got := HashLeaf(b).String(); got != fmt.Sprintf("%x", sha256.Sum256(append([]byte{0}, b...))) {
		t.Fatalf("leaf hash %s is not that of RFC 6962", got)
	}
}

func TestParseLeafRefusesWhatItWouldNotWrite(t *testing.T) {
	good, err := sample().Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string][2]string{
		"a space between members":           {`"epoch":2`, `"epoch": 2`},
		"a leading zero":                    {`"epoch":2`, `"epoch":02`},
		"a float":                           {`"epoch":2`, `"epoch":2.0`},
		"a negative index":                  {`"idx":41`, `"idx":-41`},
		"an index beyond 2^53-1":            {`"epoch":2`, `"epoch":9007199254740992`},
		"a small amount as a string":        {`"amount":1`, `"amount":"1"`},
		"a large amount as a number":        {`"amount":1`, `"amount":9007199254740993`},
		"minus zero":                        {`"amount":1`, `"amount":-0`},
		"an escape that is not needed":      {`read_file`, `read\u005ffile`},
		"a short escape in the long form":   {`read_file`, `read\u000afile`},
		"an escaped slash":                  {`link/calls`, `link\/calls`},
		"upper-case hex":                    {`"root":"05`, `"root":"0A`},
		"a digest of zeros instead of null": {`"policy":"07`, `"policy":"00`},
		"a verdict nobody gives":            {`"allow"`, `"maybe"`},
		"an unknown member":                 {`"any_args"`, `"any":1,"any_args"`},
		"another version":                   {`"v":1`, `"v":2`},
		"another number of fields":          {`"n":6`, `"n":4`},
		"an unknown class":                  {`"class":"call"`, `"class":"kall"`},
		"an unknown phase":                  {`"intent","policy"`, `"indent","policy"`},
		"a day that does not exist":         {`2026-03-04`, `2026-02-30`},
		"a time with an offset":             {`.000089Z`, `.00008+Z`},
		"the 25th hour":                     {`T05:06`, `T25:06`},
		"invalid UTF-8":                     {`read_file`, "read\xfffile"},
		"a control character":               {`read_file`, "read\x01file"},
		"data after the end":                {`"verdict":"allow"}`, `"verdict":"allow"} `},
		"a run that is no file name":        {`"run":"t-`, `"run":"../`},
		"a first record with a predecessor": {`"run_seq":3`, `"run_seq":0`},
		"more in the run than in the log":   {`"run_seq":3`, `"run_seq":42`},
		"an intent that is not earlier":     {`"intent_idx":null`, `"intent_idx":41`},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(string(good), edit[0], edit[1], 1)
			if bad == string(good) {
				t.Fatal("the edit does nothing")
			}
			if l, err := ParseLeaf([]byte(bad)); err == nil {
				t.Fatalf("accepted as %+v", l)
			}
		})
	}
}

func TestLeafTellsNothingItCannotHold(t *testing.T) {
	for name, spoil := range map[string]func(*Leaf){
		"no log":                func(l *Leaf) { l.Log = "" },
		"the zero leaf's class": func(l *Leaf) { l.Class = "" },
		"no phase":              func(l *Leaf) { l.Phase = "" },
		"no field root":         func(l *Leaf) { l.Fields.Root = vault.Digest{} },
		"a name of 2 KiB":       func(l *Leaf) { l.Tool = strings.Repeat("x", 2048) },
		"invalid UTF-8":         func(l *Leaf) { l.Call = "\xff" },
		"too many debits":       func(l *Leaf) { l.Debits = make([]vault.Debit, MaxDebits+1) },
		"a year of five digits": func(l *Leaf) { l.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"a leaf over 64 KiB": func(l *Leaf) {
			l.Debits = make([]vault.Debit, 100)
			for i := range l.Debits {
				l.Debits[i].Counter = strings.Repeat("x", 1000)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := sample()
			spoil(l)
			if b, err := l.Append(nil); err == nil || len(b) > 0 {
				t.Fatalf("wrote %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestCommitmentTellsFieldsApart(t *testing.T) {
	salt, other := Salt{1}, Salt{2}
	seen := map[vault.Digest]string{}
	for name, c := range map[string]vault.Digest{
		"value":               Commit(&salt, "args", []byte("x")),
		"other value":         Commit(&salt, "args", []byte("y")),
		"other salt":          Commit(&other, "args", []byte("x")),
		"other name":          Commit(&salt, "argsx", nil),
		"empty":               Commit(&salt, "args", []byte{}),
		"null":                Commit(&salt, "args", nil),
		"name runs into text": Commit(&salt, "arg", []byte("sx")),
	} {
		if was, ok := seen[c]; ok {
			t.Fatalf("%s and %s commit to the same", name, was)
		}
		seen[c] = name
	}
}

func TestDisclosureOpensOneFieldAndOnlyAsRecorded(t *testing.T) {
	names := vault.FieldsOf(vault.ClassCall)
	commitments := make([]vault.Digest, len(names))
	var fields []Opened
	for i, n := range names {
		o := Opened{Name: n, Value: []byte("value of " + n), Salt: Salt{byte(i + 1)}}
		commitments[i] = o.Commit()
		fields = append(fields, o)
	}
	l := sample()
	l.Fields.Root = FieldRoot(commitments)
	for i, o := range fields {
		d, err := Disclose(l.Index, l.Class, o, commitments)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Verify(l); err != nil {
			t.Fatalf("%s: %v", o.Name, err)
		}
		for name, spoil := range map[string]func(*Disclosure){
			"another value":        func(d *Disclosure) { d.Value = []byte("z") },
			"null for a value":     func(d *Disclosure) { d.Value = nil },
			"another salt":         func(d *Disclosure) { d.Salt = bytes.Repeat([]byte{9}, 32) },
			"another field's salt": func(d *Disclosure) { s := fields[(i+1)%len(fields)].Salt; d.Salt = s[:] },
			"another field":        func(d *Disclosure) { d.Field = names[(i+1)%len(names)] },
			"another record":       func(d *Disclosure) { d.Index++ },
			"a shorter path":       func(d *Disclosure) { d.Path = d.Path[1:] },
			"an unknown field":     func(d *Disclosure) { d.Field = "x" },
			"a short salt":         func(d *Disclosure) { d.Salt = d.Salt[1:] },
		} {
			bad := d
			spoil(&bad)
			if bad.Verify(l) == nil {
				t.Errorf("field %s: %s verifies", o.Name, name)
			}
		}
	}
}

func TestCheckpointIsASignedNoteOfThreeLines(t *testing.T) {
	key := testKey("log")
	cp := Checkpoint{Origin: "vault.test/log/1", Size: 7, Root: vault.Digest{1}}
	signed, err := cp.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := VerifierKey(cp.Origin, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	got, by, err := OpenCheckpoint(signed, vkey)
	if err != nil || got != cp || by != vkey {
		t.Fatalf("%+v by %s: %v", got, by, err)
	}
	if cp.Digest() != sha256.Sum256([]byte(cp.Text())) || !strings.HasPrefix(string(signed), cp.Text()+"\n") {
		t.Fatal("the anchor digest is not that of the text without signatures")
	}
	other, err := VerifierKey(cp.Origin, testKey("other").Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenCheckpoint(signed, other); err == nil {
		t.Fatal("opened with another key")
	}
	// The same key under another name signs for another log.
	cp2 := cp
	cp2.Origin = "evil.test/log"
	if forged, err := cp2.Sign(key); err != nil {
		t.Fatal(err)
	} else if _, _, err := OpenCheckpoint(forged, vkey); err == nil {
		t.Fatal("a checkpoint of another log was accepted")
	}
	for name, text := range map[string]string{
		"an extension line": cp.Text() + "ext\n",
		"a leading zero":    strings.Replace(cp.Text(), "\n7\n", "\n07\n", 1),
		"no origin":         "\n7\n" + strings.Split(cp.Text(), "\n")[2] + "\n",
		"a short root":      cp.Origin + "\n7\nAAAA\n",
	} {
		if _, err := ParseCheckpoint(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// fields of Go's JSON decoder agree with ours on what a leaf says.
func TestLeafIsJSONForOthers(t *testing.T) {
	l := sample()
	l.Tool = "a\"\\\n\x01é\u2028"
	b, err := l.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m["tool"] != l.Tool || m["ts"] != "2026-03-04T05:06:07.000089Z" {
		t.Fatalf("%v", m)
	}
}

func BenchmarkLeafAppend(b *testing.B) {
	l := sample()
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = l.Append(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkLeafParse(b *testing.B) {
	text, _ := sample().Append(nil)
	s := string(text)
	l := new(Leaf)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.parse(s); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(s)))
}

func BenchmarkLeafHash(b *testing.B) {
	text, _ := sample().Append(nil)
	b.ReportAllocs()
	for b.Loop() {
		HashLeaf(text)
	}
	b.SetBytes(int64(len(text)))
}

func BenchmarkCommit(b *testing.B) {
	salt := Salt{1}
	v := bytes.Repeat([]byte("x"), 200)
	b.ReportAllocs()
	for b.Loop() {
		Commit(&salt, "args", v)
	}
}
