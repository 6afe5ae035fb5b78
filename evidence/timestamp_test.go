package evidence

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// stampedAt is when the authorities of the tests stamp, before the witnesses sign.
var stampedAt = time.Unix(seenAt-3600, 0).UTC()

func stampOf(cp Checkpoint) vaulttest.Stamp {
	d := cp.Digest()
	return vaulttest.Stamp{Digest: d[:], Time: stampedAt}
}

func testCheckpoint(t testing.TB, size int) Checkpoint {
	cp, err := unverifiedCheckpoint(filled(t).checkpoint(size, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return cp
}

func roots(t testing.TB, a *vaulttest.Authority) *TSARoots {
	r, err := ParseTSARoots(a.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A stampCase is a change to a sound token, and whether it still counts.
type stampCase struct {
	change func(*vaulttest.Stamp)
	ok     bool
}

func stampCases(a *vaulttest.Authority) map[string]stampCase {
	twin := vaulttest.NewAuthority("stamps.test", func(c *x509.Certificate) { c.SerialNumber = big.NewInt(3) })
	return map[string]stampCase{
		"a sound token":                              {func(*vaulttest.Stamp) {}, true},
		"the root is inside too":                     {func(s *vaulttest.Stamp) { s.With = []*x509.Certificate{a.Root} }, true},
		"the signer by its key":                      {func(s *vaulttest.Stamp) { s.ByKey = true }, true},
		"the certificate named by its default hash":  {func(s *vaulttest.Stamp) { s.NamedBy = vaulttest.OIDSHA256 }, true},
		"at the first moment of the certificate":     {func(s *vaulttest.Stamp) { s.Time = vaulttest.StampsFrom }, true},
		"before the certificate":                     {func(s *vaulttest.Stamp) { s.Time = vaulttest.StampsFrom.Add(-time.Second) }, false},
		"after the certificate":                      {func(s *vaulttest.Stamp) { s.Time = vaulttest.StampsUntil.Add(time.Second) }, false},
		"of another checkpoint":                      {func(s *vaulttest.Stamp) { s.Digest = bytes.Repeat([]byte{1}, 32) }, false},
		"an imprint that says SHA-512":               {func(s *vaulttest.Stamp) { s.Hash = vaulttest.OIDSHA512 }, false},
		"an imprint that says SHA-1":                 {func(s *vaulttest.Stamp) { s.Hash = vaulttest.OIDSHA1 }, false},
		"a critical extension":                       {func(s *vaulttest.Stamp) { s.Critical = true }, false},
		"a time with an offset":                      {func(s *vaulttest.Stamp) { s.Stated = "20270101000000+0100" }, false},
		"a time with a zero at its end":              {func(s *vaulttest.Stamp) { s.Stated = "20270101000000.50Z" }, false},
		"a time without seconds":                     {func(s *vaulttest.Stamp) { s.Stated = "202701010000Z" }, false},
		"a time in the year 1":                       {func(s *vaulttest.Stamp) { s.Stated = "00010101000000Z" }, false},
		"an accuracy of a day and more":              {func(s *vaulttest.Stamp) { s.Seconds = 86401 }, false},
		"an accuracy below zero":                     {func(s *vaulttest.Stamp) { s.Seconds = -1 }, false},
		"an accuracy of a thousand milliseconds":     {func(s *vaulttest.Stamp) { s.Millis = 1000 }, false},
		"other content, says the content":            {func(s *vaulttest.Stamp) { s.Content = vaulttest.OIDData }, false},
		"other content, says the signed attribute":   {func(s *vaulttest.Stamp) { s.Attribute = vaulttest.OIDData }, false},
		"a signature over another content":           {func(s *vaulttest.Stamp) { s.Signs = []byte("x") }, false},
		"the digest twice":                           {func(s *vaulttest.Stamp) { s.Twice = true }, false},
		"no name of the certificate":                 {func(s *vaulttest.Stamp) { s.NoName = true }, false},
		"another certificate of the same key, named": {func(s *vaulttest.Stamp) { s.Names, s.With = twin.Cert, []*x509.Certificate{twin.Cert} }, false},
		"a certificate named by SHA-1":               {func(s *vaulttest.Stamp) { s.NamedBy = vaulttest.OIDSHA1 }, false},
		"a digest by SHA-1":                          {func(s *vaulttest.Stamp) { s.DigestBy = vaulttest.OIDSHA1 }, false},
		"a digest that says SHA-512":                 {func(s *vaulttest.Stamp) { s.DigestBy = vaulttest.OIDSHA512 }, false},
		"no signer":                                  {func(s *vaulttest.Stamp) { s.Signers = -1 }, false},
		"two signers":                                {func(s *vaulttest.Stamp) { s.Signers = 2 }, false},
		"no certificate":                             {func(s *vaulttest.Stamp) { s.Without = true }, false},
		"seventeen certificates":                     {func(s *vaulttest.Stamp) { s.With = slices.Repeat([]*x509.Certificate{a.Root}, 16) }, false},
	}
}

// TestTimestamps: what a token must be to count (RFC 3161 sections 2.3 and 2.4.2,
// RFC 5816, RFC 5652 section 5).
func TestTimestamps(t *testing.T) {
	cp := testCheckpoint(t, 16)
	a := vaulttest.NewAuthority("stamps.test", nil)
	stranger := vaulttest.NewAuthority("stranger.test", nil)
	trust := roots(t, a)
	for name, tc := range stampCases(a) {
		s := stampOf(cp)
		tc.change(&s)
		got, err := VerifyTimestamp(a.Stamp(s), cp, trust)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && got != (Timestamp{}) {
			t.Errorf("%s: refused, and says %v", name, got)
		}
		if _, err := VerifyTimestamp(stranger.Stamp(s), cp, trust); err == nil {
			t.Errorf("%s: taken from a stranger", name)
		}
	}
	s := stampOf(cp)
	s.Time, s.Seconds, s.Millis, s.Nonce = stampedAt.Add(900*time.Millisecond), 1, 200, big.NewInt(42)
	got, err := VerifyTimestamp(a.Stamp(s), cp, trust)
	if err != nil || got.By != "stamps.test" || got.Nonce.Int64() != 42 || !got.Before().Equal(stampedAt.Add(3*time.Second)) {
		t.Errorf("%+v, before %v, %v", got, got.Before(), err)
	}
	if _, err := VerifyTimestamp(append(a.Stamp(s), 0), cp, trust); err == nil {
		t.Error("a byte after the end was taken")
	}
	if _, err := VerifyTimestamp(bytes.Repeat([]byte{0x30, 0x80}, MaxTimestamp/2), cp, trust); err == nil {
		t.Error("indefinite lengths were taken")
	}
	// The authority's own certificate can be what is pinned.
	pinned, err := ParseTSARoots(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	s.Without = true
	if _, err := VerifyTimestamp(a.Stamp(s), cp, pinned); err != nil {
		t.Errorf("with the certificate pinned: %v", err)
	}
}

var certCases = map[string]struct {
	change func(*x509.Certificate)
	ok     bool
}{
	"for timestamping alone, critically": {nil, true},
	"with a name that draws":             {func(c *x509.Certificate) { c.Subject.CommonName = "a\x1b[2J, witness w" }, true},
	"for timestamping, not critically":   {func(c *x509.Certificate) { c.ExtraExtensions[0] = vaulttest.KeyUsages(false, 8) }, false},
	"for code signing":                   {func(c *x509.Certificate) { c.ExtraExtensions[0] = vaulttest.KeyUsages(true, 3) }, false},
	"for code signing too":               {func(c *x509.Certificate) { c.ExtraExtensions[0] = vaulttest.KeyUsages(true, 8, 3) }, false},
	"for a purpose that is not known":    {func(c *x509.Certificate) { c.ExtraExtensions[0] = vaulttest.KeyUsages(true, 8, 99) }, false},
	"for everything":                     {func(c *x509.Certificate) { c.ExtraExtensions = nil }, false},
	"of a CA":                            {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false},
	"for key agreement":                  {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, false},
	"with a critical extension that is not known": {func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	}, false},
}

// TestTSACertificates: what a certificate must be to stamp.
func TestTSACertificates(t *testing.T) {
	cp := testCheckpoint(t, 16)
	for name, tc := range certCases {
		a := vaulttest.NewAuthority("stamps.test", tc.change)
		got, err := VerifyTimestamp(a.Stamp(stampOf(cp)), cp, roots(t, a))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if strings.ContainsAny(got.By, "\x1b,") {
			t.Errorf("%s: %q", name, got.By)
		}
	}
	for bits, ok := range map[int]bool{1024: false, 2048: true} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		a := vaulttest.NewAuthority("stamps.test", nil)
		a.UseRSA(key)
		if _, err := VerifyTimestamp(a.Stamp(stampOf(cp)), cp, roots(t, a)); (err == nil) != ok {
			t.Errorf("RSA of %d bits: %v", bits, err)
		}
	}
}

func TestTSARoots(t *testing.T) {
	good := string(vaulttest.NewAuthority("stamps.test", nil).Roots())
	for name, tc := range map[string]struct {
		text string
		ok   bool
	}{
		"one":                  {good, true},
		"two":                  {good + "\n" + good, true},
		"none":                 {"", false},
		"words":                {"trust me", false},
		"words after":          {good + "trust me", false},
		"words before":         {"trust me\n" + good, false},
		"words between":        {good + "and\n" + good, false},
		"a key":                {good + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})), false},
		"a broken certificate": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})), false},
		"seventeen":            {strings.Repeat(good, 17), false},
		"too long":             {good + strings.Repeat("\n", MaxTSARoots), false},
	} {
		if _, err := ParseTSARoots([]byte(tc.text)); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := VerifyBytes(nil, Options{TSARoots: []byte(tc.text)}); (err == nil) != tc.ok {
			t.Errorf("%s, as an option: %v", name, err)
		}
	}
}

// TestChangedTimestamps changes each byte of a token. It is refused, or what changed
// was around what is signed and it says the same.
func TestChangedTimestamps(t *testing.T) {
	cp := testCheckpoint(t, 16)
	a := vaulttest.NewAuthority("stamps.test", nil)
	trust, token := roots(t, a), a.Stamp(stampOf(cp))
	refused := 0
	for i := range token {
		for _, bit := range []byte{1, 0x80} {
			changed := bytes.Clone(token)
			changed[i] ^= bit
			if got, err := VerifyTimestamp(changed, cp, trust); err != nil {
				refused++
			} else if !got.Time.Equal(stampedAt) || got.By != "stamps.test" || got.Accuracy != 0 {
				t.Errorf("byte %d: %+v", i, got)
			}
		}
		if _, err := VerifyTimestamp(token[:i], cp, trust); err == nil {
			t.Errorf("cut to %d bytes, and taken", i)
		}
	}
	if refused < len(token) {
		t.Errorf("%d of %d changes refused", refused, 2*len(token))
	}
}

func FuzzTimestamp(f *testing.F) {
	cp := testCheckpoint(f, 16)
	a := vaulttest.NewAuthority("stamps.test", nil)
	trust := roots(f, a)
	s := stampOf(cp)
	f.Add(a.Stamp(s))
	s.Seconds, s.Nonce, s.ByKey, s.With = 1, big.NewInt(1<<60), true, []*x509.Certificate{a.Root}
	f.Add(a.Stamp(s))
	f.Fuzz(func(t *testing.T, token []byte) {
		other := Checkpoint{Origin: bookOrigin, Size: 16, Root: vault.Digest{1}}
		if _, err := VerifyTimestamp(token, other, trust); err == nil {
			t.Fatal("a token of another checkpoint")
		}
		// Whatever is changed around what is signed, it says the same.
		if got, err := VerifyTimestamp(token, cp, trust); err == nil && (!got.Time.Equal(stampedAt) || got.By != "stamps.test") {
			t.Fatalf("a token of another time: %+v", got)
		}
	})
}
