package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/sandbox"
	"github.com/pilox/vault/internal/sandbox/process"
)

// Run starts a program in a jail whose one way out is a channel to the gateway.
//
// The daemon holds the channel and binds a link of the capability to it, so the
// program needs no token and no other process can use what it is given.
func (b backend) Run(ctx context.Context, peer admin.Peer, r admin.RunRequest, out func(admin.Frame) error) error {
	d := b.d
	chain, err := capability.ParseText(r.Token)
	if err != nil {
		return vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	probe := &vault.Call{Credential: vault.Credential{Chain: chain.Bytes(), Binding: vault.Binding{Peer: true, PeerUID: peer.UID}}}
	grant, err := d.verifier.Authenticate(ctx, probe)
	if err != nil {
		return err
	}
	ch := channel{id: "run-" + vault.NewCallID()[2:]}
	if err := d.hookDelegate(ctx, &grant, &capability.Holder{Channel: ch.id}, "run a program in a sandbox"); err != nil {
		return err
	}
	depth := 0
	bound, err := capability.Attenuate(chain, capability.Link{Holder: &capability.Holder{Channel: ch.id}, Depth: &depth}, d.issuer)
	if err != nil {
		return fmt.Errorf("bind the capability to the sandbox: %w", err)
	}
	ch.chain = bound.Bytes()

	spec, err := d.runSpec(r, &grant)
	if err != nil {
		return err
	}
	l := newProxyListener()
	spec.Proxy = l.hand
	mux := http.NewServeMux()
	mux.Handle("/mcp", d.front)
	mux.HandleFunc("POST /v1/call", d.channelCall)
	s := d.newServer(mux)
	s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return context.WithValue(ctx, channelKey{}, ch) }
	d.serve(s, l)
	defer func() {
		_ = s.Close()
		d.listeners.forget(s)
	}()

	if err := d.recordRun(ctx, &grant, r, vault.PhaseOpened, ch.id); err != nil {
		return err
	}
	p, err := d.jail.Start(ctx, spec)
	if err != nil {
		return errors.Join(err, d.recordRun(ctx, &grant, r, vault.PhaseClosed, ch.id+": did not start"))
	}
	defer func() { _ = p.Close() }() // by then it has ended or must
	defer cancelWith(d.verifier.Revoked(&grant), p)()
	_ = p.Stdin.Close() // a program under pvault run has no terminal
	var pipes sync.WaitGroup
	for _, pipe := range []struct {
		r    io.Reader
		make func([]byte) admin.Frame
	}{
		{p.Stdout, func(b []byte) admin.Frame { return admin.Frame{Stdout: b} }},
		{p.Stderr, func(b []byte) admin.Frame { return admin.Frame{Stderr: b} }},
	} {
		pipes.Go(func() { copyFrames(pipe.r, func(b []byte) error { return out(pipe.make(b)) }, p.Kill) })
	}
	exit := p.Wait()
	pipes.Wait()
	if err := d.recordRun(ctx, &grant, r, vault.PhaseClosed, fmt.Sprintf("%s: %s, code %d %s", ch.id, exit.Reason, exit.Code, exit.Signal)); err != nil {
		return err
	}
	code := exit.Code
	if exit.Reason != process.Exited && code <= 0 {
		code = 1
	}
	return out(admin.Frame{Exit: &code})
}

// runSpec says what the program may see: itself, and what was asked for and is not
// the daemon's own.
func (d *Daemon) runSpec(r admin.RunRequest, grant *vault.Grant) (sandbox.Spec, error) {
	if len(r.Argv) == 0 {
		return sandbox.Spec{}, invalid(errors.New("no program"))
	}
	program, err := exec.LookPath(r.Argv[0])
	if err != nil {
		return sandbox.Spec{}, invalid(err)
	}
	if _, err := d.foreign(program, false); err != nil {
		return sandbox.Spec{}, err
	}
	spec := sandbox.Spec{
		Argv:     append([]string{program}, r.Argv[1:]...),
		Env:      map[string]string{"PVAULT_URL": "http://" + sandbox.ProxyAddr},
		MinGrade: max(d.minGrade(), grant.MinGrade),
		Limits:   sandbox.Limits{Memory: d.conf.Limits.Memory, Pids: d.conf.Limits.Processes},
	}
	return spec, d.show(&spec, r.ReadOnly, r.ReadWrite)
}

// show adds to spec what the guest may read and write of this host, under the
// names that were asked for.
func (d *Daemon) show(spec *sandbox.Spec, read, write []string) error {
	for _, p := range read {
		host, err := d.foreign(p, false)
		if err != nil {
			return err
		}
		spec.ReadOnly = append(spec.ReadOnly, sandbox.Mount{Host: host, Guest: filepath.Clean(p)})
	}
	for _, p := range write {
		host, err := d.foreign(p, true)
		if err != nil {
			return err
		}
		spec.ReadWrite = append(spec.ReadWrite, sandbox.Mount{Host: host, Guest: filepath.Clean(p)})
	}
	return nil
}

// foreign returns where path really is, unless a sandbox would see something of
// Vault's own there, also by way of a link or a directory above it: its data, the
// socket on which it takes its guests' uid for the operator's, what its sinks write
// and the credentials they use, or, to write, the policy that decides about them.
func (d *Daemon) foreign(path string, write bool) (string, error) {
	if !filepath.IsAbs(path) {
		return "", invalid(fmt.Errorf("%s: want an absolute path", path))
	}
	host, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", invalid(err)
	}
	own := []string{d.conf.Data, d.conf.Socket(), d.conf.Listen.TLS.Key, d.conf.Telemetry.Metrics.Token, d.conf.Telemetry.Traces.Headers}
	for _, s := range d.conf.Sinks {
		own = append(own, s.Headers)
	}
	if write {
		for _, k := range d.conf.Policy.Keys {
			own = append(own, k.File)
		}
		for _, f := range d.conf.files() {
			if !strings.Contains(*f, "://") {
				own = append(own, *f)
			}
		}
	}
	seen := func(o string) error {
		return invalid(fmt.Errorf("%s would show %s, which is Vault's own, to a sandbox: keep them in different directories", path, o))
	}
	for _, o := range own {
		real, err := resolve(o)
		switch {
		case err != nil:
			return "", fmt.Errorf("look at %s: %w", o, err)
		case real != "" && (within(host, real) || within(real, host)):
			return "", seen(o)
		}
	}
	if write { // the name of a bundle may be a link, which must not be made to lead elsewhere
		for _, b := range d.conf.Policy.Bundles {
			for _, p := range []string{b.Dir, b.File} {
				if p == "" {
					continue
				}
				dir, err := resolve(filepath.Dir(p))
				if err != nil {
					return "", fmt.Errorf("look at %s: %w", p, err)
				}
				if dir != "" && within(dir, host) {
					return "", seen(p)
				}
			}
		}
	}
	for _, s := range d.conf.Sinks {
		if s.File == "" {
			continue
		}
		dir, err := resolve(filepath.Dir(s.File))
		if err != nil {
			return "", fmt.Errorf("look at %s: %w", s.File, err)
		}
		// What was moved aside there is a sink's too; directories beside it are not.
		info, err := os.Stat(host)
		if err != nil {
			return "", invalid(err)
		}
		parent := filepath.Dir(host)
		if dir != "" && (within(dir, host) || !info.IsDir() && within(dir, parent) && within(parent, dir)) {
			return "", seen(s.File)
		}
	}
	return host, nil
}

// resolve returns where path really is, empty for none and for what is not there:
// it cannot be seen.
func resolve(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return real, err
}

// recordRun records that a program starts or ended.
func (d *Daemon) recordRun(ctx context.Context, grant *vault.Grant, r admin.RunRequest, phase vault.Phase, note string) error {
	args, err := json.Marshal(map[string]any{"argv": r.Argv, "read": r.ReadOnly, "write": r.ReadWrite})
	if err != nil {
		return fmt.Errorf("encode run: %w", err)
	}
	e := &vault.Event{
		Run: grant.Task, Class: vault.ClassCall, Kind: vault.KindExec, Phase: vault.PhaseNoted, Verdict: vault.Allow,
		Proof: grant.Proof, Grade: d.jail.Grade(), SameUID: grant.SameUID,
		Fields: []vault.Field{
			{Name: "args", Value: args},
			{Name: "caller", Value: []byte(grant.Agent)},
			{Name: "note", Value: []byte(string(phase) + " " + note)},
		},
	}
	return d.commitLate(context.WithoutCancel(ctx), e)
}

// cancelWith kills p when what it runs under is revoked. The function it returns
// ends the watch.
func cancelWith(revoked <-chan struct{}, p *process.Process) func() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-revoked:
			p.Kill()
		case <-stop:
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// copyFrames passes output on. A reader that is gone ends the program, which would
// otherwise block on a full pipe for ever.
func copyFrames(r io.Reader, out func([]byte) error, gone func()) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if out(buf[:n]) != nil {
				gone()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// channelCall is one call from inside a sandbox, for programs that do not speak
// MCP. The channel is the authority; a token in the request is not looked at.
func (d *Daemon) channelCall(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(channelKey{}).(channel)
	if !ok {
		http.Error(w, "no channel", http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, vault.MaxArgsBytes+64<<10))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	var in admin.CallRequest
	if err := json.Unmarshal(body, &in); err != nil {
		http.Error(w, "want a call", http.StatusBadRequest)
		return
	}
	answer, err := d.call(r.Context(), in, vault.Credential{Chain: c.chain, Binding: vault.Binding{Channel: c.id}})
	if err != nil {
		answer = admin.CallAnswer{Denial: vault.DenialOf(err)}
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(raw); err != nil {
		d.log.DebugContext(r.Context(), "answer not delivered", "err", err)
	}
}

// A proxyListener is a net.Listener whose connections a sandbox hands over.
type proxyListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newProxyListener() *proxyListener {
	return &proxyListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// hand passes one connection to the server and returns when it is closed, because
// the sandbox closes it on return.
func (l *proxyListener) hand(ctx context.Context, conn net.Conn) {
	c := &handedConn{Conn: conn, done: make(chan struct{})}
	select {
	case l.conns <- c:
	case <-l.closed:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// Accept returns the next connection.
func (l *proxyListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends the listener.
func (l *proxyListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns an address for logs.
func (l *proxyListener) Addr() net.Addr { return &net.UnixAddr{Name: "sandbox", Net: "unix"} }

// A handedConn says when the server is done with it.
type handedConn struct {
	net.Conn

	done chan struct{}
	once sync.Once
}

// Close closes the connection.
func (c *handedConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// within reports whether path is dir or below it, by what the two really are.
// Neither has links in it.
func within(path, dir string) bool {
	for p := path; ; {
		a, err1 := os.Stat(p)
		b, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(a, b) {
			return true
		}
		parent := filepath.Dir(p)
		if parent == p {
			return false
		}
		p = parent
	}
}
