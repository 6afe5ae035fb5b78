package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/authz"
	"github.com/pilox/vault/internal/egress"
)

// openDoors makes the doors for other gateways and opens the one for Envoy.
func (d *Daemon) openDoors(ctx context.Context) error {
	conf := d.conf.Doors
	d.doors = authz.New(authz.Config{
		Authenticate: func(r *http.Request) (vault.Credential, error) {
			caller, err := d.authenticate(r)
			return caller.Credential, err
		},
		Server: func(name string) (vault.ServerID, bool) {
			s, err := d.catalogue.Server(name)
			return s.ID, err == nil
		},
		Decide: func(ctx context.Context, call *vault.Call) (vault.Result, error) {
			var check func(context.Context, *vault.Call) error
			if call.Kind == vault.KindEgress {
				check = egress.Check
			}
			return d.gateway.Decide(ctx, call, check)
		},
		Refuse: d.refuseEarly,
		Agent: func(ctx context.Context, cred vault.Credential) vault.AgentID {
			g, err := d.verifier.Attend(ctx, &vault.Call{Credential: cred})
			if err != nil {
				return ""
			}
			return g.Agent
		},
		TrustPrincipal: conf.TrustPrincipal, Bearer: d.conf.Listen.Bearer, Log: d.log,
	})
	if conf.ExtAuthz == "" {
		return nil
	}
	l, err := listenDoor(ctx, conf.ExtAuthz)
	if err != nil {
		return fmt.Errorf("doors.ext_authz: %w", err)
	}
	// gRPC over the daemon's own HTTP server: its bounds, its counting of requests and
	// its way of stopping hold here too.
	s := d.newServer(d.doors.GRPC())
	s.Protocols = new(http.Protocols)
	s.Protocols.SetUnencryptedHTTP2(true)
	d.serve(s, l)
	return nil
}

// listenDoor opens a Unix socket for the daemon's user alone, or a loopback port.
func listenDoor(ctx context.Context, address string) (net.Listener, error) {
	if filepath.IsAbs(address) {
		return listenUnix(ctx, address)
	}
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%q: want a loopback host:port or the absolute path of a socket", address)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}
