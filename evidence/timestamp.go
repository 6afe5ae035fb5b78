package evidence

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Bounds of timestamps. A token has 1 to 8 KiB; what makes it long are certificates.
const (
	MaxTimestamp = 32 << 10 // bytes of a token
	MaxTSARoots  = 64 << 10 // bytes of a file with roots

	maxTSACerts = 16             // in a token, or in such a file
	maxAccuracy = 24 * time.Hour // a clock that is a day off is none
	minRSA      = 2048           // bits of a key in the chain
)

// TSARoots are the certificates that the verifier trusts to lead to time-stamp
// authorities.
type TSARoots struct {
	list []*x509.Certificate
	pool *x509.CertPool
}

// ParseTSARoots reads certificates in PEM: roots, or those of the authorities
// themselves. Anything else in the file is an error.
func ParseTSARoots(text []byte) (*TSARoots, error) {
	if len(text) > MaxTSARoots {
		return nil, fmt.Errorf("TSA roots: %d bytes, more than %d", len(text), MaxTSARoots)
	}
	r := &TSARoots{pool: x509.NewCertPool()}
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		var b *pem.Block
		junk := !bytes.HasPrefix(rest, []byte("-----BEGIN CERTIFICATE-----")) // which Decode would skip
		if b, rest = pem.Decode(rest); junk || b == nil || len(b.Headers) > 0 || len(r.list) == maxTSACerts {
			return nil, fmt.Errorf("TSA roots: want 1 to %d certificates in PEM and nothing else", maxTSACerts)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("TSA roots: certificate %d: %w", len(r.list)+1, err)
		}
		r.list = append(r.list, c)
		r.pool.AddCert(c)
		rest = bytes.TrimSpace(rest)
	}
	if len(r.list) == 0 {
		return nil, errors.New("TSA roots: no certificate")
	}
	return r, nil
}

// A Timestamp is what a token says that verifies.
type Timestamp struct {
	By       string        // common name of the authority's certificate
	Time     time.Time     // that the authority stated
	Accuracy time.Duration // of its clock, in its own words; zero: it says nothing
	Nonce    *big.Int      // of the request; nil: none
}

// Before is the second by which the stamped digest existed, at the latest.
func (t *Timestamp) Before() time.Time {
	at := t.Time.Add(t.Accuracy)
	if s := at.Truncate(time.Second); s.Before(at) {
		return s.Add(time.Second)
	}
	return at
}

// The parts of a token that count: CMS SignedData (RFC 5652 section 5) around a
// TSTInfo (RFC 3161 section 2.4.2), in DER.
type (
	tspContent struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	tspSigned struct {
		Version int
		Digests asn1.RawValue // not needed: the signer names its own
		Inner   struct {
			Type    asn1.ObjectIdentifier
			Content []byte `asn1:"explicit,tag:0"`
		}
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []tspSigner   `asn1:"set"`
	}
	tspSigner struct {
		Version   int
		ID        asn1.RawValue
		Digest    pkix.AlgorithmIdentifier
		Attrs     asn1.RawValue `asn1:"tag:0"`
		Algorithm pkix.AlgorithmIdentifier
		Signature []byte
		Unsigned  asn1.RawValue `asn1:"optional,tag:1"`
	}
	tspAttr struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
	tspCertIDs struct { // SigningCertificateV2, RFC 5035
		Certs []struct {
			Hash   pkix.AlgorithmIdentifier `asn1:"optional"` // absent: SHA-256
			Digest []byte
			Issuer asn1.RawValue `asn1:"optional"`
		}
		Policies asn1.RawValue `asn1:"optional"`
	}
	tspInfo struct {
		Version int
		Policy  asn1.ObjectIdentifier
		Imprint struct {
			Hash   pkix.AlgorithmIdentifier
			Digest []byte
		}
		Serial   *big.Int
		Time     asn1.RawValue
		Accuracy struct {
			Seconds int64 `asn1:"optional"`
			Milli   int64 `asn1:"optional,tag:0"`
			Micro   int64 `asn1:"optional,tag:1"`
		} `asn1:"optional"`
		Ordering   bool             `asn1:"optional"`
		Nonce      *big.Int         `asn1:"optional"`
		TSA        asn1.RawValue    `asn1:"optional,tag:0"`
		Extensions []pkix.Extension `asn1:"optional,tag:1"`
	}
)

var (
	oidSigned    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidTSTInfo   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}
	oidAttrType  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidAttrHash  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidAttrCerts = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 47}
	oidKeyUsages = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidRSA       = "1.2.840.113549.1.1.1"
)

// tspHashes are the hashes that count: SHA-256 or better (RFC 5754).
var tspHashes = map[string]crypto.Hash{
	"2.16.840.1.101.3.4.2.1": crypto.SHA256,
	"2.16.840.1.101.3.4.2.2": crypto.SHA384,
	"2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

// tspAlgorithms are the signatures that count; plain RSA takes the signer's hash.
var tspAlgorithms = map[string]x509.SignatureAlgorithm{
	oidRSA + crypto.SHA256.String(): x509.SHA256WithRSA,
	oidRSA + crypto.SHA384.String(): x509.SHA384WithRSA,
	oidRSA + crypto.SHA512.String(): x509.SHA512WithRSA,
	"1.2.840.113549.1.1.11":         x509.SHA256WithRSA,
	"1.2.840.113549.1.1.12":         x509.SHA384WithRSA,
	"1.2.840.113549.1.1.13":         x509.SHA512WithRSA,
	"1.2.840.10045.4.3.2":           x509.ECDSAWithSHA256,
	"1.2.840.10045.4.3.3":           x509.ECDSAWithSHA384,
	"1.2.840.10045.4.3.4":           x509.ECDSAWithSHA512,
	"1.3.101.112":                   x509.PureEd25519,
}

// VerifyTimestamp reports what token, a TimeStampToken (RFC 3161) in DER, says about
// the digest of cp. It must be signed by one authority whose certificate it names by
// SHA-256 or better (RFC 5816), is for timestamping alone (critical, RFC 3161 section
// 2.3), is no CA's, and was valid at the token's time up to a certificate of roots. Whether it was
// revoked since is not asked.
func VerifyTimestamp(token []byte, cp Checkpoint, roots *TSARoots) (Timestamp, error) {
	t, err := verifyTimestamp(token, cp, roots)
	if err != nil {
		return Timestamp{}, fmt.Errorf("timestamp: %w", err)
	}
	return t, nil
}

func verifyTimestamp(token []byte, cp Checkpoint, roots *TSARoots) (Timestamp, error) {
	if len(token) > MaxTimestamp {
		return Timestamp{}, fmt.Errorf("%d bytes, more than %d", len(token), MaxTimestamp)
	}
	var outer tspContent
	if err := whole(token, &outer, ""); err != nil {
		return Timestamp{}, err
	}
	if !outer.Type.Equal(oidSigned) {
		return Timestamp{}, errors.New("not signed data")
	}
	var signed tspSigned
	if err := whole(outer.Content.Bytes, &signed, ""); err != nil {
		return Timestamp{}, err
	}
	if !signed.Inner.Type.Equal(oidTSTInfo) || len(signed.Signers) != 1 {
		return Timestamp{}, errors.New("want a TSTInfo with one signer")
	}
	certs, err := x509.ParseCertificates(signed.Certificates.Bytes)
	if err != nil {
		return Timestamp{}, err
	}
	if len(certs) > maxTSACerts {
		return Timestamp{}, fmt.Errorf("%d certificates, more than %d", len(certs), maxTSACerts)
	}
	signer, err := signed.Signers[0].check(signed.Inner.Content, slices.Concat(certs, roots.list))
	if err != nil {
		return Timestamp{}, err
	}
	t, err := stated(signed.Inner.Content, cp)
	if err != nil {
		return Timestamp{}, err
	}
	t.By = plainName(signer.Subject.CommonName)
	return t, roots.trust(signer, certs, t.Time)
}

// whole parses DER that is nothing but v.
func whole(der []byte, v any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, v, params)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes after the end")
	}
	return err
}

// check verifies the signature over content and returns the certificate it is by.
func (s *tspSigner) check(content []byte, certs []*x509.Certificate) (*x509.Certificate, error) {
	hash, ok := tspHashes[s.Digest.Algorithm.String()]
	if !ok {
		return nil, fmt.Errorf("digest algorithm %v", s.Digest.Algorithm)
	}
	alg, ok := tspAlgorithms[s.Algorithm.Algorithm.String()]
	if !ok {
		if alg, ok = tspAlgorithms[s.Algorithm.Algorithm.String()+hash.String()]; !ok {
			return nil, fmt.Errorf("signature algorithm %v", s.Algorithm.Algorithm)
		}
	}
	// What is signed are the attributes as a SET, not under their tag in here.
	set := bytes.Clone(s.Attrs.FullBytes)
	set[0] = asn1.TagSet | 0x20
	var attrs []tspAttr
	if err := whole(set, &attrs, "set"); err != nil {
		return nil, err
	}
	var kind asn1.ObjectIdentifier
	var digest []byte
	var ids tspCertIDs
	for _, a := range []struct {
		name string
		oid  asn1.ObjectIdentifier
		to   any
	}{{"content type", oidAttrType, &kind}, {"digest", oidAttrHash, &digest}, {"name of its certificate by SHA-256 or better", oidAttrCerts, &ids}} {
		if err := attribute(attrs, a.oid, a.to); err != nil {
			return nil, fmt.Errorf("signed %s: %w", a.name, err)
		}
	}
	h := hash.New()
	h.Write(content)
	if !kind.Equal(oidTSTInfo) || !bytes.Equal(digest, h.Sum(nil)) {
		return nil, errors.New("another content than the signed one")
	}
	if len(ids.Certs) == 0 {
		return nil, errors.New("it does not name its certificate")
	}
	first := ids.Certs[0]
	named := crypto.SHA256
	if len(first.Hash.Algorithm) > 0 {
		if named, ok = tspHashes[first.Hash.Algorithm.String()]; !ok {
			return nil, fmt.Errorf("certificate named by %v", first.Hash.Algorithm)
		}
	}
	for _, c := range certs {
		h := named.New()
		h.Write(c.Raw)
		if bytes.Equal(first.Digest, h.Sum(nil)) && s.is(c) {
			return c, c.CheckSignature(alg, set, s.Signature)
		}
	}
	return nil, errors.New("its certificate is not there")
}

// is reports whether the signer is identified as c.
func (s *tspSigner) is(c *x509.Certificate) bool {
	if s.ID.Class == asn1.ClassContextSpecific && s.ID.Tag == 0 {
		return len(c.SubjectKeyId) > 0 && bytes.Equal(s.ID.Bytes, c.SubjectKeyId)
	}
	var id struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	return whole(s.ID.FullBytes, &id, "") == nil && bytes.Equal(id.Issuer.FullBytes, c.RawIssuer) && id.Serial.Cmp(c.SerialNumber) == 0
}

// attribute parses the one value of the one attribute of a type.
func attribute(attrs []tspAttr, oid asn1.ObjectIdentifier, to any) error {
	var at []asn1.RawValue
	for _, a := range attrs {
		if a.Type.Equal(oid) {
			at = append(at, a.Values...)
		}
	}
	if len(at) != 1 {
		return fmt.Errorf("%d values, want 1", len(at))
	}
	return whole(at[0].FullBytes, to, "")
}

// stated reads a TSTInfo about the digest of cp.
func stated(content []byte, cp Checkpoint) (Timestamp, error) {
	var info tspInfo
	if err := whole(content, &info, ""); err != nil {
		return Timestamp{}, err
	}
	digest := cp.Digest()
	if info.Version != 1 || tspHashes[info.Imprint.Hash.Algorithm.String()] != crypto.SHA256 || !bytes.Equal(info.Imprint.Digest, digest[:]) {
		return Timestamp{}, errors.New("not of this checkpoint")
	}
	if slices.ContainsFunc(info.Extensions, func(e pkix.Extension) bool { return e.Critical }) {
		return Timestamp{}, errors.New("a critical extension that is not known")
	}
	// DER, and RFC 3161: in UTC, to the fraction without a zero at its end.
	var at time.Time
	if err := whole(info.Time.FullBytes, &at, "generalized"); err != nil || info.Time.Tag != asn1.TagGeneralizedTime || !bytes.HasSuffix(info.Time.Bytes, []byte("Z")) || at.Unix() < 0 {
		return Timestamp{}, errors.New("no time in UTC since 1970")
	}
	a := &info.Accuracy
	if a.Seconds < 0 || a.Seconds > int64(maxAccuracy/time.Second) || a.Milli < 0 || a.Milli > 999 || a.Micro < 0 || a.Micro > 999 {
		return Timestamp{}, errors.New("no accuracy of a clock")
	}
	accuracy := time.Duration(a.Seconds)*time.Second + time.Duration(a.Milli)*time.Millisecond + time.Duration(a.Micro)*time.Microsecond
	return Timestamp{Time: at.UTC(), Accuracy: accuracy, Nonce: info.Nonce}, nil
}

// trust reports whether c was an authority's certificate at the time at, up to one
// of the roots.
func (r *TSARoots) trust(c *x509.Certificate, others []*x509.Certificate, at time.Time) error {
	critical := slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidKeyUsages) && e.Critical })
	if !critical || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}) || len(c.UnknownExtKeyUsage) > 0 {
		return errors.New("its certificate is not for timestamping alone, critically")
	}
	if c.IsCA {
		return errors.New("its certificate is a CA's")
	}
	if c.KeyUsage != 0 && c.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return errors.New("its certificate is not for signing")
	}
	between := x509.NewCertPool()
	for _, o := range others {
		between.AddCert(o)
	}
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: r.pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	})
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("its certificate does not lead to a root given; one that the token does not bring has to be given too: %w", err)
	}
	if err != nil {
		return err
	}
	for _, c := range chains[0] {
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSA {
			return fmt.Errorf("an RSA key of %d bits in its chain", key.N.BitLen())
		}
	}
	return nil
}

// plainName is what others call themselves as far as that is plain text.
func plainName(name string) string {
	const maxName = 64
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" .-_", r) {
			return r
		}
		return '?'
	}, name)
	if name == "" {
		return "without a name"
	}
	return name[:min(len(name), maxName)]
}
