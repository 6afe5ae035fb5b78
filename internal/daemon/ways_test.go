package daemon_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

const (
	svidOfAgent = "spiffe://vault.internal/agent/default/clerk/1"
	svidOfOther = "spiffe://vault.internal/agent/default/clerk/2"
)

// An authority signs X.509-SVIDs of the trust domain vault.internal.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	c := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	}, "spiffe://vault.internal")
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// sign signs a certificate for id.
func (a *authority) sign(c *x509.Certificate, id string) tls.Certificate {
	a.t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.URIs, c.NotBefore = big.NewInt(time.Now().UnixNano()), []*url.URL{u}, time.Now().Add(-time.Minute)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// svid is the identity of a workload for the next life.
func (a *authority) svid(id string, life time.Duration) *tls.Certificate {
	a.t.Helper()
	c := a.sign(&x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(life),
	}, id)
	return &c
}

// listen adds a TLS listener whose clients may show an SVID of a.
func (a *authority) listen(c *daemon.Config) {
	a.t.Helper()
	dir := a.t.TempDir()
	server := a.svid("spiffe://vault.internal/vault", time.Hour)
	der, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	clients, err := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("vault.internal"), []*x509.Certificate{a.cert}).Marshal()
	if err != nil {
		a.t.Fatal(err)
	}
	c.Listen.TLS = daemon.ListenTLS{
		Address: "127.0.0.1:0", Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), Clients: filepath.Join(dir, "clients.json"),
	}
	for path, b := range map[string][]byte{
		c.Listen.TLS.Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]}),
		c.Listen.TLS.Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		c.Listen.TLS.Clients:     clients,
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// A way leads to a daemon: one listener of it, and what the client shows there.
type way struct {
	url      string
	client   *http.Client
	exporter []byte // tls-exporter of the one connection, with TLS
}

func (r *rig) overLoopback() way { return way{url: "http://" + r.addr, client: http.DefaultClient} }

func (r *rig) overUnix() way { return way{url: "http://vault", client: r.admin.HTTP} }

// overTLS opens a connection on which the client shows cert, if there is one.
func (r *rig) overTLS(t *testing.T, ca *authority, cert *tls.Certificate) way {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	addr := r.status().TLS
	conn, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	state := conn.(*tls.Conn).ConnectionState()
	exporter, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	once := make(chan net.Conn, 1)
	once <- conn
	transport := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-once:
			return c, nil
		default:
			return nil, errors.New("the connection is gone")
		}
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return way{"https://" + addr, &http.Client{Transport: transport}, exporter}
}

// overUnixAs opens a connection to the socket as another user. Who connects is what
// the kernel says of the thread that does.
func (r *rig) overUnixAs(t *testing.T, uid int) way {
	t.Helper()
	if os.Geteuid() != 0 {
		vaulttest.Missing(t, "root", "only root can be another user")
	}
	dial := func() (net.Conn, error) {
		runtime.LockOSThread() // the goroutine ends with the thread if it cannot change back
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			return nil, e
		}
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", r.conf.Socket())
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); e != 0 {
			return nil, e
		}
		runtime.UnlockOSThread()
		return conn, err
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled)
	connect := func() dialled {
		go func() { conn, err := dial(); done <- dialled{conn, err} }()
		return <-done
	}
	if d := connect(); !errors.Is(d.err, os.ErrPermission) {
		t.Errorf("another user reaches the socket: %v", d.err)
	}
	// Let it through the file modes: the uid alone has to be enough to refuse it.
	for path := r.conf.Socket(); len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err == nil {
			err = os.Chmod(path, 0o777)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(path, info.Mode().Perm()) })
	}
	d := connect()
	if d.err != nil {
		t.Fatal(d.err)
	}
	t.Cleanup(func() { _ = d.conn.Close() })
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return d.conn, nil }}
	return way{url: "http://vault", client: &http.Client{Transport: transport}}
}

// send makes one call of the tool act and returns what came back.
func (w way) send(t *testing.T, header http.Header, id, args string) (string, error) {
	t.Helper()
	const meta = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}`
	message := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"act","arguments":` + args + `,"_meta":{` + meta + `,"dev.pilox.vault/call_id":"` + id + `"}}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/mcp", strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
		"MCP-Protocol-Version": "2026-07-28", "MCP-Method": "tools/call", "MCP-Name": "act",
	} {
		req.Header.Set(k, v)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// session opens a session of key for token, or returns why not.
func (w way) session(t *testing.T, gateway string, key crypto.Signer, token string) (session, error) {
	t.Helper()
	chain, err := capability.ParseText(token)
	if err != nil {
		t.Fatal(err)
	}
	s := &capability.Session{Chain: chain, Key: key, Exporter: w.exporter}
	if err := s.Gateway.UnmarshalText([]byte(gateway)); err != nil {
		t.Fatal(err)
	}
	request, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.client.Post(w.url+"/session", "text/plain", strings.NewReader(base64.RawURLEncoding.EncodeToString(request)))
	if err != nil {
		return session{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return session{}, err
	}
	answer, err := base64.RawURLEncoding.DecodeString(string(body))
	if err != nil {
		return session{}, errors.New(string(body))
	}
	return session{s}, s.Finish(answer)
}

// signed returns the headers that prove one call by a signature in the session.
func (s session) signed(t *testing.T, server, id, args string) http.Header {
	t.Helper()
	digest, err := vault.ParseDigest(server)
	if err != nil {
		t.Fatal(err)
	}
	call := &vault.Call{ID: id, Kind: vault.KindTool, Target: vault.Target{Server: vault.ServerID(digest), Name: "act"}, Args: vault.MustArgs(args)}
	if err := s.SignCall(call); err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString
	return http.Header{
		"Authorization":   {"Bearer " + s.Chain.Text()},
		"Vault-Session":   {text(call.Credential.Session)},
		"Vault-Seq":       {strconv.FormatUint(call.Credential.Seq, 10)},
		"Vault-Signature": {text(call.Credential.Signature)},
		"Vault-Nonce":     {text(call.Credential.Nonce)},
	}
}

func bearerHeader(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}

func without(h http.Header, names ...string) http.Header {
	h = h.Clone()
	for _, n := range names {
		h.Del(n)
	}
	return h
}

// copiedKeys gives a daemon the signing keys of from.
func copiedKeys(t *testing.T, from *rig) func(*daemon.Config) {
	t.Helper()
	return func(c *daemon.Config) {
		if err := os.CopyFS(filepath.Join(c.Data, "keys"), os.DirFS(filepath.Join(from.conf.Data, "keys"))); err != nil {
			t.Fatal(err)
		}
		if err := filepath.WalkDir(c.Data, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return os.Chmod(path, 0o600)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// issuer returns the key that signs roots, for chains that nobody could have made.
func (r *rig) issuer(t *testing.T) capability.Signer {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.conf.Data, "keys", "tenant-root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return capability.Signer{Key: key.(crypto.Signer), KID: "local-1"}
}
