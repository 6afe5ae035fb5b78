package evidence

import (
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// FuzzContents changes one file of a bundle and mends all that is not signed. What
// is not the original must not pass for it.
func FuzzContents(f *testing.F) {
	b := filled(f)
	rekor := b.anchor(16)
	authority := vaulttest.NewAuthority("stamps.test", nil)
	b.anchors = append(b.anchors, Anchor{b.anchors[1].Checkpoint, AnchorTSA, b.anchors[1].Path, authority.Stamp(stampOf(testCheckpoint(f, 16)))})
	o := Options{Keys: []string{b.key}, Policy: []byte(tablePolicy()), RekorKeys: []string{rekor}, TSARoots: authority.Roots()}
	bundle := b.bundle("t-a", 5)
	whole := unpack(f, bundle)
	for i, name := range whole.names {
		f.Add(i, whole.text[name])
	}
	f.Fuzz(func(t *testing.T, i int, text string) {
		if i < 1 || i >= len(whole.names) || len(text) > 1<<20 {
			return
		}
		c := unpack(t, bundle)
		name := c.names[i]
		was := c.text[name]
		c.text[name] = text
		r := verify(t, c.pack(t), o)
		// Keys and witnesses inside are hints, and an anchor more, a stranger's
		// signature or a proof for somebody else changes nothing.
		free := name == fileKeys || name == fileWitnesses || name == fileConsistency || name == fileAnchors || name == fileCheckpoint
		if r.Problem == ProblemNone && text != was && !free {
			t.Fatalf("%s changed, and all is well:\n%s", name, r)
		}
	})
}

func FuzzWitnessPolicy(f *testing.F) {
	f.Add([]byte(tablePolicy()))
	f.Add([]byte("group g any\nquorum g"))
	b := newBook(f)
	b.add("", vault.ClassDaemon, vault.PhaseNoted)
	bare := b.checkpoint(1, "log")
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseWitnessPolicy(text)
		if err != nil {
			return
		}
		if ok, _, _ := p.Cosigned(bare); ok {
			t.Fatalf("a checkpoint without cosignatures satisfies %q", text)
		}
	})
}

func FuzzRekor(f *testing.F) {
	b := filled(f)
	cp, err := unverifiedCheckpoint(b.checkpoint(16, "log"))
	if err != nil {
		f.Fatal(err)
	}
	entry, key := rekorLog(f, cp)
	f.Add(entry)
	f.Fuzz(func(t *testing.T, entry []byte) {
		other := Checkpoint{Origin: bookOrigin, Size: 16, Root: vault.Digest{1}}
		if VerifyRekor(entry, other, key) == nil {
			t.Fatal("an entry of another checkpoint")
		}
		_ = VerifyRekor(entry, cp, key)
	})
}

// What a person keeps beside a record is small: its proof at a million records,
// with two witnesses.
func TestProofIsSmall(t *testing.T) {
	b := newBook(t)
	b.add("", vault.ClassDaemon, vault.PhaseNoted)
	cp := Checkpoint{Origin: "ledger.pilox.example/default", Size: 1 << 20, Root: b.hashes[0]}
	signed, err := cp.Sign(testKey("log"))
	if err != nil {
		t.Fatal(err)
	}
	signed = cosign(t, cosign(t, signed, "witness.one.example", seenAt), "witness.two.example", seenAt)
	p := Proof{Inclusion{Index: 1<<20 - 1}, signed}
	for range 20 {
		p.Path = append(p.Path, b.hashes[0])
	}
	if n := len(p.Marshal()); n > 1600 {
		t.Errorf("%d bytes, want at most 1600", n)
	} else {
		t.Logf("%d bytes", n)
	}
}

func TestWitnessPolicies(t *testing.T) {
	one, two := witnessKey("w-one"), witnessKey("w-two")
	w := "witness a " + one + "\nwitness b " + two + " https://b.test\n"
	for name, tc := range map[string]struct {
		text string
		ok   bool
	}{
		"a witness alone is a quorum":            {w + "quorum a", true},
		"any of a group":                         {w + "group g any a b\nquorum g", true},
		"comments and empty lines":               {"# x\n\n" + w + "  # y\nquorum a", true},
		"no quorum":                              {w, false},
		"a quorum of none asks for nothing":      {w + "quorum none", false},
		"two quorums":                            {w + "quorum a\nquorum b", false},
		"the same key under two names":           {w + "witness c " + one + "\ngroup g 2 a c\nquorum g", false},
		"a member twice":                         {w + "group g 2 a a\nquorum g", false},
		"a member of two groups":                 {w + "group g 1 a\ngroup h 1 a\nquorum h", false},
		"a threshold of zero":                    {w + "group g 0 a b\nquorum g", false},
		"a threshold above the members":          {w + "group g 3 a b\nquorum g", false},
		"a threshold with a sign":                {w + "group g +1 a b\nquorum g", false},
		"a group of a later name":                {"group g 1 a\n" + w + "quorum g", false},
		"a word that is not known":               {w + "quorum a\ntrust b", false},
		"a witness key with another hash":        {"witness a " + strings.Replace(one, "+", "+0", 1) + "\nquorum a", false},
		"longer than a policy is":                {w + "quorum a" + strings.Repeat("\n", MaxPolicy), false},
		"a name that a group and a witness have": {w + "group a 1 b\nquorum a", false},
	} {
		if _, err := ParseWitnessPolicy([]byte(tc.text)); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCosignatureTimes(t *testing.T) {
	b := filled(t)
	p, err := ParseWitnessPolicy([]byte("witness a " + witnessKey("w-one") + "\nquorum a"))
	if err != nil {
		t.Fatal(err)
	}
	cp := b.checkpoint(5, "log")
	for at, want := range map[uint64]bool{0: false, 1: true, seenAt: true, maxUnix: true, maxUnix + 1: false, 1 << 63: false} {
		ok, _, seen := p.Cosigned(cosign(t, cp, "w-one", at))
		if ok != want || ok && !seen.Equal(time.Unix(int64(at), 0)) {
			t.Errorf("at %d: %v, %v", at, ok, seen)
		}
	}
}

// An exporter cannot lie in a statement even with the key: it must be what the
// records say.
func TestSignedLieIsFound(t *testing.T) {
	b := filled(t)
	c := unpack(t, b.bundle("t-a", 0))
	var e Envelope
	if err := decodeLine([]byte(c.text[fileStatement]), &e); err != nil {
		t.Fatal(err)
	}
	e.Payload = []byte(strings.Replace(string(e.Payload), `"grades":{"none":4}`, `"grades":{"A":4}`, 1))
	sig, err := SignStatement(bookOrigin, testKey("log"), e.Payload)
	if err != nil {
		t.Fatal(err)
	}
	e.Signatures = []EnvelopeSignature{sig}
	text, err := encodeLine(e)
	if err != nil {
		t.Fatal(err)
	}
	c.text[fileStatement] = string(text)
	r := verify(t, c.pack(t), Options{Keys: []string{b.key}})
	if r.Problem != ProblemStatement || !strings.Contains(r.Detail, "grades") {
		t.Fatalf("want statement, naming the grades:\n%s", r)
	}
}

// A bundle brings the attacker's key, policy and log as hints. None is believed.
func TestHintsAreNotTrusted(t *testing.T) {
	b := filled(t)
	b.anchor(16)
	c := unpack(t, b.bundle("t-a", 0))
	resign(t, b, c)
	for name, tc := range map[string]struct {
		keys []string
		want Problem
	}{
		"without a pinned key":  {nil, ProblemUnpinned},
		"with the pinned key":   {[]string{b.key}, ProblemWrongKey},
		"with an empty key set": {[]string{}, ProblemUnpinned},
	} {
		r := verify(t, c.pack(t), Options{Keys: tc.keys})
		if tc.want == ProblemUnpinned && r.Problem == ProblemStatement {
			continue // the statement is still by the old key, which also ends it
		}
		if r.Problem != tc.want || r.Pinned || len(r.AnchoredBy) > 0 {
			t.Errorf("%s: want %s:\n%s", name, tc.want, r)
		}
	}
	r := verify(t, b.bundle("t-a", 0), Options{Keys: []string{b.key}})
	if len(r.AnchoredBy) > 0 || r.Before != nil || r.Strangers != 2 {
		t.Errorf("the witnesses of the bundle's own policy were believed:\n%s", r)
	}
}

// A bundle whose names are made to drive a terminal is told without them.
func TestReportIsPlain(t *testing.T) {
	b := filled(t)
	c := unpack(t, b.bundle("t-a", 0))
	c.text[fileManifest] = strings.Replace(c.text[fileManifest], `"run":"t-a"`, `"run":"\u001b[2J\u009bH"`, 1)
	r := verify(t, c.zip(t), Options{Keys: []string{b.key}})
	if r.Problem != ProblemMalformed {
		t.Fatalf("a run of that name:\n%s", r)
	}
	c = unpack(t, b.bundle("t-a", 0))
	c.names[1], c.text["\x1b[2J"] = "\x1b[2J", c.text[fileReadme]
	for _, r := range []Report{verify(t, c.zip(t), Options{}), {Problem: "x", Log: "\u009b2J", Run: "\x1b", Key: "\x07", Detail: "\r\n"}} {
		if strings.ContainsAny(r.String(), "\x1b\r\x07\u009b") {
			t.Errorf("%q", r.String())
		}
	}
}
