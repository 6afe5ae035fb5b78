package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/console"
	"github.com/pilox/vault/internal/identity"
)

// maxTLSConns bounds the connections of the TLS listener. Whoever reaches the port
// can open one; each costs some tens of KiB.
const maxTLSConns = 1024

// exporterLabel is that of the tls-exporter value (RFC 9266) that sessions on a TLS
// connection are bound to.
const (
	exporterLabel = "EXPORTER-Channel-Binding"
	exporterBytes = 32
)

// listenTLS opens the listener for agents on other hosts: MCP, sessions and the token
// exchange. There is no console on it, and no bearer: a token alone proves nothing
// here, whatever the configuration says about loopback.
func (d *Daemon) listenTLS(ctx context.Context) error {
	c := &d.conf.Listen.TLS
	if c.Clients != "" {
		var err error
		if d.trust, err = identity.Load(d.conf.Domain, c.Clients); err != nil {
			return err
		}
	}
	conf, leaf, err := d.trust.ServerTLS(c.Certificate, c.Key, time.Now)
	if err != nil {
		return err
	}
	conf.NextProtos = []string{"h2", "http/1.1"}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Address)
	if err != nil {
		return err
	}
	hosts, err := hostsOf(leaf, l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	d.listeners.tls = l.Addr().String()
	mux := http.NewServeMux()
	d.agentRoutes(mux, ownHost(d.front))
	d.serve(d.newServer(console.Guard(mux, hosts...)), tls.NewListener(netutil.LimitListener(l, maxTLSConns), conf))
	return nil
}

// hostsOf returns the Host values that a certificate speaks for on this address.
func hostsOf(leaf *x509.Certificate, addr string) ([]string, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(names[:len(names):len(names)], ip.String())
	}
	var hosts []string
	for _, n := range names {
		hosts = append(hosts, net.JoinHostPort(n, port))
		if port == "443" {
			hosts = append(hosts, n)
		}
	}
	if len(hosts) == 0 {
		return nil, errors.New("the certificate has no DNS name and no address")
	}
	return hosts, nil
}

// ownHost hands a request, whose Host was held against the certificate's names, to
// the front, which knows the loopback names only.
func ownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host = "localhost"
		next.ServeHTTP(w, r)
	})
}

// tlsBinding says what a TLS connection proves: the SVID of the client, if it showed
// one that is still good, and which connection it is.
func (d *Daemon) tlsBinding(r *http.Request) (vault.Binding, error) {
	id, err := d.trust.Client(r.TLS, time.Now())
	if err != nil {
		return vault.Binding{}, err
	}
	exporter, err := r.TLS.ExportKeyingMaterial(exporterLabel, nil, exporterBytes)
	if err != nil {
		return vault.Binding{}, fmt.Errorf("tls-exporter: %w", err)
	}
	return vault.Binding{SPIFFE: id, Exporter: exporter, Remote: !fromLoopback(r)}, nil
}
