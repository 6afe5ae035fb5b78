// Package identity checks SPIFFE identities: the X.509-SVID of a TLS client and the
// JWT-SVID that a client shows for itself.
//
// It owns what counts as an identity of the trust domain: a trust bundle from a file.
// It issues nothing and decides nothing about what an identity may do. Start with
// [Load].
//
// It promises: TLS 1.3 only, without session resumption, so that no connection is
// older than a full handshake; an SVID counts only within its life, also on a
// connection that has outlived it; exactly one URI SAN, of this trust domain and
// with a path; a certificate that does not verify ends the handshake.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxID bounds a SPIFFE ID (SPIFFE-ID, section 2.3), maxJWT a JWT-SVID.
const (
	maxID  = 2048
	maxJWT = 16 << 10
)

// A Trust is what SVIDs of one trust domain are held against.
type Trust struct{ bundle *spiffebundle.Bundle }

// Load reads the trust bundle of a trust domain from a file in the SPIFFE bundle
// format (a JWK set with X.509 and JWT authorities).
func Load(domain, path string) (*Trust, error) {
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", domain, err)
	}
	b, err := spiffebundle.Load(td, path)
	if err != nil {
		return nil, fmt.Errorf("trust bundle: %w", err)
	}
	if len(b.X509Authorities()) == 0 && len(b.JWTAuthorities()) == 0 {
		return nil, fmt.Errorf("trust bundle %s has no authority", path)
	}
	return &Trust{bundle: b}, nil
}

// X509 verifies the certificates of a client and returns its SPIFFE ID.
func (t *Trust) X509(certs []*x509.Certificate, now time.Time) (string, error) {
	if len(certs) == 0 {
		return "", errors.New("no certificate")
	}
	id, _, err := x509svid.Verify(certs, t.bundle, x509svid.WithTime(now))
	if err != nil {
		return "", fmt.Errorf("verify X.509-SVID: %w", err)
	}
	return checked(id)
}

// JWT verifies a JWT-SVID for an audience and returns its SPIFFE ID and expiry.
func (t *Trust) JWT(token, audience string) (string, time.Time, error) {
	if len(token) > maxJWT {
		return "", time.Time{}, fmt.Errorf("JWT-SVID of %d bytes: at most %d", len(token), maxJWT)
	}
	svid, err := jwtsvid.ParseAndValidate(token, t.bundle, []string{audience})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("verify JWT-SVID: %w", err)
	}
	id, err := checked(svid.ID)
	return id, svid.Expiry, err
}

func checked(id spiffeid.ID) (string, error) {
	if id.Path() == "" || len(id.String()) > maxID {
		return "", errors.New("a SPIFFE ID that names no workload")
	}
	return id.String(), nil
}

// ServerTLS returns the configuration of a listener with this certificate. A client
// may show an SVID, and one that does not verify ends the handshake; a client without
// one is let in and has to prove itself in another way. A nil Trust lets nobody show
// anything.
func (t *Trust) ServerTLS(certificate, key string, now func() time.Time) (*tls.Config, *x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, nil, fmt.Errorf("server certificate: %w", err)
	}
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{pair},
		SessionTicketsDisabled: true,
	}
	if t != nil {
		c.ClientAuth = tls.RequestClientCert
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			_, err := t.X509(s.PeerCertificates, now())
			return err
		}
	}
	return c, pair.Leaf, nil
}

// Client returns the SPIFFE ID of the client of a connection made with [Trust.ServerTLS],
// "" if it showed none. An SVID that has expired since the handshake is an error. The
// signatures were checked then; only time has passed.
func (t *Trust) Client(s *tls.ConnectionState, now time.Time) (string, error) {
	if t == nil || s == nil || len(s.PeerCertificates) == 0 {
		return "", nil
	}
	leaf := s.PeerCertificates[0]
	if now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		return "", errors.New("the SVID of the connection has expired")
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return "", fmt.Errorf("read X.509-SVID: %w", err)
	}
	return checked(id)
}
