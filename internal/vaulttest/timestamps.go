package vaulttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// An Authority makes RFC 3161 tokens, sound ones and others. The same calls give the
// same bytes.
type Authority struct {
	Root, Cert *x509.Certificate
	key        crypto.Signer
	rootKey    crypto.Signer
}

// steady signs the same bytes the same way each time (RFC 6979).
type steady struct{ crypto.Signer }

func (s steady) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.Signer.Sign(nil, digest, o)
}

func steadyKey(seed string) crypto.Signer {
	d := sha256.Sum256([]byte(seed))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		panic(err)
	}
	return steady{key}
}

func certify(template, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(nil, template, parent, pub, by)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// StampsFrom and StampsUntil are when the certificates of an [Authority] are valid.
var (
	StampsFrom  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	StampsUntil = time.Date(2036, 1, 1, 0, 0, 0, 0, time.UTC)
)

// NewAuthority makes an authority and its root. change, if not nil, changes the
// authority's certificate before it is signed.
func NewAuthority(name string, change func(*x509.Certificate)) *Authority {
	a := &Authority{key: steadyKey(name), rootKey: steadyKey(name + " root")}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + " root"}, NotBefore: StampsFrom, NotAfter: StampsUntil,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte(name + " root"),
	}
	a.Root = certify(root, root, a.rootKey.Public(), a.rootKey)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: StampsFrom, NotAfter: StampsUntil,
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(name), ExtraExtensions: []pkix.Extension{KeyUsages(true, 8)},
	}
	if change != nil {
		change(leaf)
	}
	a.Cert = certify(leaf, a.Root, a.key.Public(), a.rootKey)
	return a
}

// KeyUsages is an extended key usage extension with the purposes 1.3.6.1.5.5.7.3.N;
// 8 is timestamping, 3 is code signing.
func KeyUsages(critical bool, purposes ...int) pkix.Extension {
	var list []asn1.ObjectIdentifier
	for _, p := range purposes {
		list = append(list, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, p})
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: critical, Value: der(list)}
}

// UseRSA has the authority sign with key, and certifies it.
func (a *Authority) UseRSA(key *rsa.PrivateKey) {
	t := *a.Cert
	t.ExtraExtensions = []pkix.Extension{KeyUsages(true, 8)}
	t.ExtKeyUsage, t.PublicKey = nil, nil
	a.key, a.Cert = key, certify(&t, a.Root, key.Public(), a.rootKey)
}

// Roots is the root in PEM.
func (a *Authority) Roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root.Raw})
}

// Object identifiers that a [Stamp] can name.
var (
	OIDSHA1    = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	OIDSHA256  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	OIDSHA512  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	OIDTSTInfo = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
	OIDData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSigned  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidECDSA   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// A Stamp says what a token holds. Zero fields are as in a sound token.
type Stamp struct {
	Digest []byte // SHA-256 of what is stamped
	Time   time.Time
	Nonce  *big.Int

	Hash     asn1.ObjectIdentifier // of the imprint
	Stated   string                // the time, as GeneralizedTime has it, instead of Time
	Seconds  int                   // accuracy
	Millis   int                   // accuracy
	Critical bool                  // an extension that nobody knows is critical

	Content   asn1.ObjectIdentifier // of the content itself
	Attribute asn1.ObjectIdentifier // of the content, says the signed attribute
	Signs     []byte                // content that the signature is over, instead of the token's
	Twice     bool                  // the digest attribute is there twice
	NoName    bool                  // the certificate is not named
	Names     *x509.Certificate     // certificate that is named, instead of the authority's
	NamedBy   asn1.ObjectIdentifier // hash that it is named by; its digest is SHA-256 all the same
	DigestBy  asn1.ObjectIdentifier // digest algorithm of the signer; the digest is SHA-256 all the same
	Signers   int                   // 0 means 1, -1 means none
	ByKey     bool                  // the signer is identified by its key
	Without   bool                  // certificates
	With      []*x509.Certificate   // certificates more
}

func der(v any, params ...string) []byte {
	p := ""
	if len(params) > 0 {
		p = params[0]
	}
	b, err := asn1.MarshalWithParams(v, p)
	if err != nil {
		panic(err)
	}
	return b
}

func raw(class, tag int, content ...[]byte) asn1.RawValue {
	v := asn1.RawValue{Class: class, Tag: tag, IsCompound: true}
	for _, c := range content {
		v.Bytes = append(v.Bytes, c...)
	}
	return v
}

func or(oid, usual asn1.ObjectIdentifier) asn1.ObjectIdentifier {
	if oid == nil {
		return usual
	}
	return oid
}

type (
	algorithm struct {
		OID  asn1.ObjectIdentifier
		Null asn1.RawValue `asn1:"optional"`
	}
	imprint struct {
		Hash   algorithm
		Digest []byte
	}
	accuracy struct {
		Seconds int `asn1:"optional"`
		Millis  int `asn1:"optional,tag:0"`
	}
	tstInfo struct {
		Version    int
		Policy     asn1.ObjectIdentifier
		Imprint    imprint
		Serial     *big.Int
		Time       asn1.RawValue
		Accuracy   accuracy         `asn1:"optional"`
		Nonce      *big.Int         `asn1:"optional"`
		Extensions []pkix.Extension `asn1:"optional,omitempty,tag:1"`
	}
	attr struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	signer struct {
		Version   int
		ID        asn1.RawValue
		Digest    algorithm
		Attrs     asn1.RawValue
		Algorithm algorithm
		Signature []byte
	}
)

// Stamp makes a token.
func (a *Authority) Stamp(s Stamp) []byte {
	stated := s.Stated
	if stated == "" {
		stated = s.Time.UTC().Format("20060102150405.999999999Z0700")
	}
	info := tstInfo{
		Version: 1, Policy: asn1.ObjectIdentifier{1, 2, 3, 4}, Imprint: imprint{algorithm{OID: or(s.Hash, OIDSHA256)}, s.Digest}, Serial: big.NewInt(7),
		Time: asn1.RawValue{Tag: asn1.TagGeneralizedTime, Bytes: []byte(stated)}, Accuracy: accuracy{s.Seconds, s.Millis}, Nonce: s.Nonce,
	}
	if s.Critical {
		info.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 5}, Critical: true, Value: []byte{5, 0}}}
	}
	content := der(info)
	one := a.sign(s, content)
	signers := [][]byte{one}
	switch s.Signers {
	case -1:
		signers = nil
	case 2:
		signers = append(signers, one)
	}
	certs := asn1.RawValue{}
	if !s.Without {
		certs = raw(2, 0, a.Cert.Raw)
		for _, c := range s.With {
			certs.Bytes = append(certs.Bytes, c.Raw...)
		}
	}
	type inner struct {
		Type    asn1.ObjectIdentifier
		Content []byte `asn1:"explicit,tag:0"`
	}
	parts := [][]byte{der(3), der([]algorithm{{OID: OIDSHA256}}, "set"), der(inner{or(s.Content, OIDTSTInfo), content})}
	if !s.Without {
		parts = append(parts, der(certs))
	}
	parts = append(parts, der(raw(0, asn1.TagSet, signers...)))
	signed := der(raw(0, asn1.TagSequence, parts...))
	return der(raw(0, asn1.TagSequence, der(oidSigned), der(raw(2, 0, signed))))
}

func (a *Authority) sign(s Stamp, content []byte) []byte {
	if s.Signs != nil {
		content = s.Signs
	}
	digest := sha256.Sum256(content)
	named := a.Cert
	if s.Names != nil {
		named = s.Names
	}
	id := sha256.Sum256(named.Raw)
	type certID struct {
		Hash   algorithm `asn1:"optional"`
		Digest []byte
	}
	one := certID{Digest: id[:]}
	if s.NamedBy != nil {
		one.Hash.OID = s.NamedBy
	}
	value := func(b []byte) asn1.RawValue { return raw(0, asn1.TagSet, b) }
	attrs := []attr{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}, value(der(or(s.Attribute, OIDTSTInfo)))},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}, value(der(digest[:]))},
	}
	if s.Twice {
		attrs = append(attrs, attrs[1])
	}
	if !s.NoName {
		attrs = append(attrs, attr{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47}, value(der(struct{ Certs []certID }{[]certID{one}}))})
	}
	set := der(attrs, "set")
	sum := sha256.Sum256(set)
	sig, err := a.key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	out := signer{Version: 1, Digest: algorithm{OID: or(s.DigestBy, OIDSHA256)}, Algorithm: algorithm{OID: oidECDSA}, Signature: sig}
	if _, ok := a.key.Public().(*rsa.PublicKey); ok {
		out.Algorithm.OID = oidRSA
	}
	out.ID = asn1.RawValue{FullBytes: der(struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}{asn1.RawValue{FullBytes: a.Cert.RawIssuer}, a.Cert.SerialNumber})}
	if s.ByKey {
		out.Version, out.ID = 3, asn1.RawValue{Class: 2, Tag: 0, Bytes: a.Cert.SubjectKeyId}
	}
	var inside asn1.RawValue
	if _, err := asn1.Unmarshal(set, &inside); err != nil {
		panic(err)
	}
	out.Attrs = raw(2, 0, inside.Bytes)
	return der(out)
}

// A TSA is a time-stamp authority's server, as RFC 3161 section 3.4 has it.
type TSA struct {
	*Authority
	mu    sync.Mutex
	asked int
	twist func(w http.ResponseWriter, answer []byte) bool
}

// NewTSA starts an authority.
func NewTSA(t testing.TB, name string) (*TSA, *httptest.Server) {
	a := &TSA{Authority: NewAuthority(name, nil)}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	return a, s
}

// Response wraps a token, or says that there is none.
func Response(status int, token []byte) []byte {
	return der(raw(0, asn1.TagSequence, der(raw(0, asn1.TagSequence, der(status))), token))
}

func (a *TSA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	body, _ := io.ReadAll(r.Body)
	var q struct {
		Version int
		Imprint struct {
			Hash   pkix.AlgorithmIdentifier
			Digest []byte
		}
		Policy asn1.ObjectIdentifier `asn1:"optional"`
		Nonce  *big.Int              `asn1:"optional"`
		Certs  bool                  `asn1:"optional"`
	}
	rest, err := asn1.Unmarshal(body, &q)
	if err != nil || len(rest) > 0 || q.Version != 1 || !q.Imprint.Hash.Algorithm.Equal(OIDSHA256) || r.Header.Get("Content-Type") != "application/timestamp-query" {
		_, _ = w.Write(Response(2, nil))
		return
	}
	answer := Response(0, a.Stamp(Stamp{Digest: q.Imprint.Digest, Time: time.Now(), Nonce: q.Nonce, Without: !q.Certs}))
	if a.twist != nil && a.twist(w, answer) {
		return
	}
	w.Header().Set("Content-Type", "application/timestamp-reply")
	_, _ = w.Write(answer)
}

// Asked returns how many requests came.
func (a *TSA) Asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// Set has twist answer instead, where it reports that it did; nil ends that.
func (a *TSA) Set(twist func(http.ResponseWriter, []byte) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.twist = twist
}
