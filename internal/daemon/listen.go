package daemon

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/console"
)

// listeners is what the daemon is reached by.
type listeners struct {
	mu       sync.Mutex // guards servers, closed, and the start of requests
	servers  []*http.Server
	closed   bool
	requests sync.WaitGroup // being served

	wg      sync.WaitGroup // of the accepting goroutines
	http    string         // address of the loopback listener, "" for none
	tls     string         // address of the TLS listener, "" for none
	tiles   string         // address of the transparency log, "" for none or a socket
	metrics string         // address of the listener for metrics, "" for none
	console *console.Console
}

// Bounds of a stop. Requests get a moment to end by themselves; then their
// connections are cut, which cancels their calls. What has not returned after the
// second bound is left to recovery, which closes its intent as unknown.
const (
	graceOnClose = 2 * time.Second
	endOnClose   = 10 * time.Second
)

// close ends every listener and cuts the connections.
func (l *listeners) close() {
	l.mu.Lock()
	servers := l.servers
	l.servers, l.closed = nil, true
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), graceOnClose) //nolint:forbidigo // what it belongs to has ended
			defer cancel()
			if err := s.Shutdown(ctx); err != nil {
				_ = s.Close()
			}
		})
	}
	wg.Wait()
	l.wg.Wait()
}

// track counts the requests that next serves. Cutting a connection ends neither
// its handler nor the call that runs in it.
func (l *listeners) track(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		l.requests.Add(1)
		l.mu.Unlock()
		defer l.requests.Done()
		next.ServeHTTP(w, r)
	})
}

// wait returns when every request has been served, so that the outcome of its call
// is on record. It reports false if that takes too long.
func (l *listeners) wait() bool {
	done := make(chan struct{})
	go func() {
		l.requests.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(endOnClose):
		return false // the goroutine ends with the last request
	}
}

// Timeouts of every HTTP server. There is none for a whole request: calls wait for
// people and results stream.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 5 * time.Minute
	maxHeaderBytes    = 128 << 10 // a capability travels in a header and has up to 64 KiB
)

// newServer returns a server for h with the daemon's bounds.
func (d *Daemon) newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           d.listeners.track(h),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
}

// Listen opens the admin socket and the loopback listener.
func (d *Daemon) Listen(ctx context.Context) error {
	if err := d.openDoors(ctx); err != nil {
		return err
	}
	if err := d.listenTiles(ctx); err != nil {
		return fmt.Errorf("tiles.address: %w", err)
	}
	if err := d.listenAdmin(ctx); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if d.conf.Listen.TLS.Address != "" {
		if err := d.listenTLS(ctx); err != nil {
			return fmt.Errorf("listen on %s: %w", d.conf.Listen.TLS.Address, err)
		}
	}
	if d.conf.Telemetry.Metrics.Address != "" {
		if err := d.listenMetrics(ctx); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	if d.conf.Listen.HTTP == "off" {
		return nil
	}
	if err := d.listenHTTP(ctx); err != nil {
		return fmt.Errorf("listen on %s: %w", d.conf.Listen.HTTP, err)
	}
	return nil
}

// maxSocketPath is what a socket address holds on the systems we know.
const maxSocketPath = 103

// listenAdmin opens the Unix socket. Whoever can reach it is known by the kernel's
// word; the directory keeps other users out.
func (d *Daemon) listenAdmin(ctx context.Context) error {
	l, err := listenUnix(ctx, d.conf.Socket())
	if err != nil {
		return fmt.Errorf("%w: set listen.admin", err)
	}
	api := &admin.API{
		Backend: backend{d},
		PeerOf: func(r *http.Request) (admin.Peer, bool) {
			p, ok := console.PeerFrom(r.Context())
			return admin.Peer{UID: p.UID, PID: p.PID}, ok
		},
		MayUse: func(uid int) bool { return uid == os.Getuid() || uid == 0 },
		Log:    d.log,
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", api.Handler())
	mux.Handle("/mcp", loopbackHost(d.front))
	mux.HandleFunc("POST /session", d.openSession)
	if d.conf.Doors.AuthZEN {
		mux.Handle("/access/v1/", loopbackHost(d.doors.Handler()))
	}
	s := d.newServer(mux)
	s.ConnContext = console.ConnContext
	d.serve(s, l)
	return nil
}

// listenUnix opens a socket for the daemon's user alone. The store's lock says that
// no other daemon serves this data, so a socket that lies there is left over.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s is longer than a socket path can be (%d bytes)", path, maxSocketPath)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// loopbackHost gives requests over the Unix socket, which have no host, one that
// the front accepts.
func loopbackHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "vault" {
			r.Host = "localhost"
		}
		next.ServeHTTP(w, r)
	})
}

// listenHTTP opens the loopback listener: MCP, sessions and the console. Every
// route checks Host and Origin and authenticates.
func (d *Daemon) listenHTTP(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.conf.Listen.HTTP)
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	hosts := []string{addr, "localhost:" + port, "127.0.0.1:" + port}
	d.listeners.http = addr
	d.listeners.console, err = console.New(console.Config{Approvals: deskView{d}, Events: eventView{d}, Hosts: hosts, Logger: d.log})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("/console/", d.listeners.console.Handler())
	d.agentRoutes(mux, d.front)
	d.serve(d.newServer(console.Guard(mux, hosts...)), l)
	return nil
}

// agentRoutes adds what agents reach over TCP, by loopback or TLS.
func (d *Daemon) agentRoutes(mux *http.ServeMux, front http.Handler) {
	mux.Handle("/mcp", d.proven(front))
	mux.HandleFunc("POST /session", d.openSession)
	if d.conf.Doors.AuthZEN {
		mux.Handle("/access/v1/", d.proven(d.doors.Handler()))
	}
	if d.exchange != nil {
		mux.HandleFunc("POST /token", d.exchangeToken)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", challenge)
		http.Error(w, "nothing here without authentication", http.StatusUnauthorized)
	})
}

// forget drops a server that was closed before the daemon is.
func (l *listeners) forget(s *http.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers = slices.DeleteFunc(l.servers, func(o *http.Server) bool { return o == s })
}

func (d *Daemon) serve(s *http.Server, l net.Listener) {
	d.listeners.mu.Lock()
	defer d.listeners.mu.Unlock()
	if d.listeners.closed {
		_ = l.Close() // nobody has used it
		return
	}
	d.listeners.servers = append(d.listeners.servers, s)
	d.listeners.wg.Go(func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("listener failed", "err", err)
		}
		d.listeners.mu.Lock()
		defer d.listeners.mu.Unlock()
		d.listeners.servers = slices.DeleteFunc(d.listeners.servers, func(o *http.Server) bool { return o == s })
	})
}

// maxSessionRequest bounds the message that opens a session: a chain and a share.
const maxSessionRequest = 80 << 10

// openSession answers a holder that wants to prove its calls by MAC. The body is
// what capability.Session.Open returns, base64url; it authenticates itself by the
// holder's signature.
func (d *Daemon) openSession(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSessionRequest))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	request := make([]byte, base64.RawURLEncoding.DecodedLen(len(body)))
	if _, err := base64.RawURLEncoding.Decode(request, body); err != nil {
		// The body is what authenticates, so all that is wrong with it is this status.
		d.gateway.CountStranger("session", vault.CodeCapabilityMalformed)
		http.Error(w, "want base64url", http.StatusUnauthorized)
		return
	}
	b, err := d.bindingOf(r)
	if err != nil {
		d.gateway.CountStranger("session", vault.CodeProof)
		http.Error(w, "the connection proves nothing any more", http.StatusUnauthorized)
		return
	}
	answer, err := d.verifier.OpenSession(r.Context(), request, b)
	if err != nil {
		denial := vault.DenialOf(err)
		d.gateway.CountStranger("session", denial.Reason.Code)
		http.Error(w, denial.Error(), http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if _, err := io.WriteString(w, base64.RawURLEncoding.EncodeToString(answer)); err != nil { //nolint:gosec // base64 as text
		d.log.DebugContext(r.Context(), "session answer not delivered", "err", err)
	}
}

// deskView shows the open questions on the console.
type deskView struct{ d *Daemon }

// Pending returns the questions that people can answer now.
func (v deskView) Pending(context.Context) ([]console.Approval, error) {
	var out []console.Approval
	for _, p := range v.d.desk.Pending() {
		out = append(out, v.d.consoleApproval(p))
	}
	return out, nil
}

// eventView shows the last events on the console.
type eventView struct{ d *Daemon }

// Recent returns up to limit events, newest first.
func (v eventView) Recent(ctx context.Context, limit int) ([]console.Event, error) {
	size := v.d.ledger.Head().Size
	from := uint64(0)
	if n := uint64(max(limit, 0)); size > n {
		from = size - n
	}
	var out []console.Event
	for rec, err := range v.d.ledger.Records(ctx, from, size, "", false) {
		if err != nil {
			return nil, err
		}
		out = append([]console.Event{{
			Index: rec.Index, Time: rec.Time, Class: string(rec.Class), Phase: string(rec.Phase), Verdict: rec.Verdict.String(),
			Reason: string(rec.Reason), Task: string(rec.Run), Call: rec.Call, Target: rec.Tool,
		}}, out...)
	}
	return out, nil
}
