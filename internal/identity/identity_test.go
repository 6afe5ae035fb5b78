package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A ca signs SVIDs of a trust domain.
type ca struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := &ca{t: t}
	c.cert, c.key = c.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: uris("spiffe://example.org"),
	})
	return c
}

func uris(ids ...string) (out []*url.URL) {
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			panic(err)
		}
		out = append(out, u)
	}
	return out
}

func (c *ca) sign(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	parent, signer := c.cert, c.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, key
}

// leaf is an SVID that edit may spoil.
func (c *ca) leaf(edit func(*x509.Certificate), ids ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: uris(ids...),
	}
	if edit != nil {
		edit(tmpl)
	}
	return c.sign(tmpl)
}

func (c *ca) bundle() string {
	c.t.Helper()
	b, err := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("example.org"), []*x509.Certificate{c.cert}).Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.t.TempDir(), "bundle.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// TestX509 lists the certificates that are no identity.
func TestX509(t *testing.T) {
	c, foreign := newCA(t), newCA(t)
	trust, err := Load("example.org", c.bundle())
	if err != nil {
		t.Fatal(err)
	}
	const id = "spiffe://example.org/agent/a"
	for _, tt := range []struct {
		name string
		ca   *ca
		edit func(*x509.Certificate)
		ids  []string
		ok   bool
	}{
		{"an SVID", c, nil, []string{id}, true},
		{"of another authority", foreign, nil, []string{id}, false},
		{"of another trust domain", c, nil, []string{"spiffe://example.com/agent/a"}, false},
		{"with two URIs", c, nil, []string{id, "spiffe://example.org/agent/b"}, false},
		{"without a URI", c, nil, nil, false},
		{"with another URI", c, nil, []string{"https://example.org/agent/a"}, false},
		{"without a path", c, nil, []string{"spiffe://example.org"}, false},
		{"expired", c, func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Second) }, []string{id}, false},
		{"not valid yet", c, func(x *x509.Certificate) { x.NotBefore = time.Now().Add(time.Minute) }, []string{id}, false},
		{"that may sign others", c, func(x *x509.Certificate) { x.IsCA, x.BasicConstraintsValid = true, true }, []string{id}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaf, _ := tt.ca.leaf(tt.edit, tt.ids...)
			got, err := trust.X509([]*x509.Certificate{leaf}, time.Now())
			if (err == nil) != tt.ok || tt.ok && got != id {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestServerTLS holds what a handshake lets in, and that an SVID stops counting on a
// connection that outlives it.
func TestServerTLS(t *testing.T) {
	c, foreign := newCA(t), newCA(t)
	trust, err := Load("example.org", c.bundle())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key := c.leaf(func(x *x509.Certificate) { x.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }, "spiffe://example.org/vault")
	writePEM(t, filepath.Join(dir, "c"), "CERTIFICATE", cert.Raw)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "k"), "PRIVATE KEY", der)
	conf, _, err := trust.ServerTLS(filepath.Join(dir, "c"), filepath.Join(dir, "k"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		ca    *ca
		most  uint16
		id    string
		fails bool
	}{
		{"a client with an SVID", c, tls.VersionTLS13, "spiffe://example.org/agent/a", false},
		{"a client without a certificate", nil, tls.VersionTLS13, "", false},
		{"a client with a foreign certificate", foreign, tls.VersionTLS13, "", true},
		{"a client that speaks TLS 1.2", c, tls.VersionTLS12, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := &tls.Config{InsecureSkipVerify: true, MaxVersion: tt.most}
			if tt.ca != nil {
				leaf, key := tt.ca.leaf(nil, "spiffe://example.org/agent/a")
				client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}, nil
				}
			}
			a, b := connected(t)
			go func() { _ = tls.Client(b, client).HandshakeContext(t.Context()) }()
			s := tls.Server(a, conf)
			if err := s.HandshakeContext(t.Context()); (err != nil) != tt.fails {
				t.Fatal(err)
			} else if err != nil {
				return
			}
			state := s.ConnectionState()
			id, err := trust.Client(&state, time.Now())
			if err != nil || id != tt.id {
				t.Errorf("%q, %v", id, err)
			}
			if id, err = trust.Client(&state, time.Now().Add(2*time.Minute)); tt.id != "" && (err == nil || id != "") {
				t.Errorf("after the SVID: %q, %v", id, err)
			}
		})
	}
}

// connected gives two ends of one Unix socket. Unlike net.Pipe it buffers: a side that
// sends an alert does not wait for one that is still sending its certificate.
func connected(t *testing.T) (a, b net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, b
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
