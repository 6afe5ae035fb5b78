package approval

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"testing"
	"unicode/utf8"

	"github.com/pilox/vault"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The COSE working group's example eddsa-sig-01, a COSE_Sign1 of RFC 9052 with the
// key of RFC 8032, section 7.1: our Sig_structure gives its signature. The message
// itself is refused, as its key id stands in an unprotected header.
func TestPublishedVector(t *testing.T) {
	key := ed25519.NewKeyFromSeed(unhex(t, "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
	public := key.Public().(ed25519.PublicKey)
	c := newCodec()
	tbs, err := c.enc.Marshal(sigStructure{Context: "Signature1", Protected: unhex(t, "a201270300"), Payload: []byte("This is the content.")})
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "7142fd2ff96d56db85bee905a76ba1d0b7321a95c8c4d3607c5781932b7afb8711497dfa751bf40b58b3bcc32300b1487f3db34085eef013bf08f4a44d6fef0d")
	if got := ed25519.Sign(key, tbs); !bytes.Equal(got, want) {
		t.Errorf("signature %x, want %x", got, want)
	}
	whole := append(unhex(t, "d28445a201270300a10442313154546869732069732074686520636f6e74656e742e5840"), want...)
	if _, err := c.unseal(whole, public); err == nil {
		t.Error("a message with an unprotected header was opened")
	}
}

func TestUnsealRefuses(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public := key.Public().(ed25519.PublicKey)
	c := newCodec()
	// make signs like seal, with parts that seal would not write.
	make := func(tag uint64, protected any, external string, unprotected string) []byte {
		p, err := c.enc.Marshal(protected)
		if err != nil {
			t.Fatal(err)
		}
		tbs, err := c.enc.Marshal(sigStructure{Context: "Signature1", Protected: p, External: []byte(external), Payload: []byte("payload")})
		if err != nil {
			t.Fatal(err)
		}
		m := append(c.head(t, 6, tag), 0x84)
		m = append(append(m, c.head(t, 2, uint64(len(p)))...), p...)
		m = append(m, unhex(t, unprotected)...)
		m = append(append(m, c.head(t, 2, 7)...), "payload"...)
		return append(append(m, c.head(t, 2, 64)...), ed25519.Sign(key, tbs)...)
	}
	good := header{algEd25519, questionType}
	if b, err := c.unseal(make(18, good, questionContext, "a0"), public); err != nil || string(b) != "payload" {
		t.Fatalf("the good one: %q %v", b, err)
	}
	for _, tt := range []struct {
		name string
		msg  []byte
	}{
		{"another algorithm", make(18, header{-7, questionType}, questionContext, "a0")},
		{"the algorithm that leaves the curve open", make(18, header{-8, questionType}, questionContext, "a0")},
		{"another type", make(18, header{algEd25519, "application/x"}, questionContext, "a0")},
		{"no type", make(18, map[int]int{1: algEd25519}, questionContext, "a0")},
		{"one more header", make(18, map[int]any{1: algEd25519, 16: questionType, 4: "kid"}, questionContext, "a0")},
		{"another context", make(18, good, "vault/link/v1", "a0")},
		{"no context", make(18, good, "", "a0")},
		{"an unprotected header", make(18, good, questionContext, "a10401")},
		{"COSE_Mac0", make(17, good, questionContext, "a0")},
		{"a long form of the tag", append([]byte{0xd8, 0x12}, make(18, good, questionContext, "a0")[1:]...)},
		{"no tag", make(18, good, questionContext, "a0")[1:]},
		{"something after it", append(make(18, good, questionContext, "a0"), 0)},
		{"nothing", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := c.unseal(tt.msg, public); err == nil {
				t.Error("opened")
			}
		})
	}
}

// head returns the head of a CBOR item (RFC 8949, section 3).
func (c codec) head(t *testing.T, major byte, n uint64) []byte {
	t.Helper()
	b, err := c.enc.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	b[0] |= major << 5
	return b
}

// FuzzParse: a question that is read would be written in the same bytes, holds
// canonical arguments, and can be shown. Signatures are left out, or nothing would
// get past them.
func FuzzParse(f *testing.F) {
	c := newCodec()
	for _, q := range []*Question{
		{Version: version, ID: "a-1", Agent: "x", Groups: []string{"g"}, ExpiresAt: 1},
		{
			Version: version, ID: "a-1", Call: "c-1", Agent: "x", Groups: []string{"g", "h"}, ExpiresAt: 1,
			Args: []byte(`{"a":[1,"b"]}`), ArgsDigest: vault.MustArgs(`{"a":[1,"b"]}`).Digest(), Params: []byte(`{}`),
			Scope: Scope{Readers: []string{"r"}}, Origins: []Origin{{Path: "/a", Found: []string{"task"}}}, Reasons: []Reason{{"c", "/p", "d"}},
		},
	} {
		b, err := c.enc.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := c.parse(b); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := c.parse(b)
		if err != nil {
			return
		}
		again, err := c.enc.Marshal(q)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x, %v", b, again, err)
		}
		if !canonical(q.Args) || !canonical(q.Params) {
			t.Errorf("arguments %q %q", q.Args, q.Params)
		}
		if !utf8.ValidString(Render(q)) {
			t.Error("text is not UTF-8")
		}
	})
}
