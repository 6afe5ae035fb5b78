package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// A Process is a running server program. Its methods are safe for concurrent use.
type Process interface {
	Stdin() io.WriteCloser
	Stdout() io.Reader
	// Stderr may be nil.
	Stderr() io.Reader
	// Wait returns when the program and all it started are gone. It is called once,
	// after Stdout and Stderr ended.
	Wait() error
	// Kill ends the program and all it started; Stdout and Stderr then end. It may
	// be called again, and after Wait.
	Kill() error
}

// StdioConfig says how to run a server as a process that speaks MCP over its
// standard streams.
type StdioConfig struct {
	// Spawn starts the program for one instance. ctx bounds the start alone; the
	// process outlives it. It must not be nil.
	Spawn func(ctx context.Context, inst Instance) (Process, error)
	// StartTimeout bounds spawning and the handshake. Zero means 30 s: an
	// interpreter with a large tree of modules on a cold disk takes ten.
	StartTimeout time.Duration
	// ProbeTimeout bounds the wait for an answer to server/discover. A server of the
	// era with sessions may not answer it at all. Zero means 5 s.
	ProbeTimeout time.Duration
	// WriteTimeout bounds one write to a process that does not read its input; then
	// it is killed. Zero means 30 s.
	WriteTimeout time.Duration
	// CloseTimeout is how long a process may take to end by itself once its input
	// is closed. Zero means 2 s.
	CloseTimeout time.Duration
	// MaxStarts bounds starts of one instance within a minute. Zero means 6: the
	// first and five restarts.
	MaxStarts int
	// MaxCalls bounds calls in flight per process. Zero means 256.
	MaxCalls int
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

func (c StdioConfig) withDefaults() StdioConfig {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.StartTimeout, 30*time.Second)
	def(&c.ProbeTimeout, 5*time.Second)
	def(&c.WriteTimeout, 30*time.Second)
	def(&c.CloseTimeout, 2*time.Second)
	if c.MaxStarts == 0 {
		c.MaxStarts = 6
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = 256
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// DialStdio returns a Dialer that runs a program per [Instance], shared by all
// calls and sessions of that instance. A process that ended is started again by
// the next call, at most MaxStarts times a minute and with growing pauses.
func DialStdio(cfg StdioConfig) Dialer {
	cfg = cfg.withDefaults()
	starts := &startLimiter{max: cfg.MaxStarts, now: cfg.Now, byInst: make(map[Instance][]time.Time)}
	return Dialer{dial: func(ctx context.Context, inst Instance, want string, opts peerOptions) (peer, error) {
		p := &stdioPeer{cfg: cfg, inst: inst, opts: opts, starts: starts, want: want}
		if _, err := p.live(ctx); err != nil {
			_ = p.close() // nothing of it is left to report
			return nil, err
		}
		return p, nil
	}}
}

// A stdioPeer keeps one process of an instance running.
type stdioPeer struct {
	cfg    StdioConfig
	inst   Instance
	opts   peerOptions
	starts *startLimiter

	wg sync.WaitGroup // start and its clean-up

	mu       sync.Mutex
	want     string     // version to prefer; after a start the one that was spoken
	conn     *stdioConn // nil, or the last one started, dead or alive
	starting *starting  // nil if no start is under way
	started  bool       // a process ran before
	closed   bool
}

// A starting is one start that several calls may wait for.
type starting struct {
	done   chan struct{}
	cancel context.CancelFunc
	conn   *stdioConn // after done
	err    error      // after done
}

func (p *stdioPeer) era() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return p.want
	}
	return p.conn.era()
}

func (p *stdioPeer) hello() json.RawMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return nil
	}
	return p.conn.helloResult
}

func (p *stdioPeer) call(ctx context.Context, method string, params json.RawMessage, meta requestMeta, in inbound) (json.RawMessage, error) {
	c, err := p.live(ctx)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, method, params, meta, in)
}

func (p *stdioPeer) close() error {
	p.mu.Lock()
	p.closed = true
	c := p.conn
	if p.starting != nil {
		p.starting.cancel()
	}
	p.mu.Unlock()
	p.wg.Wait()
	if c != nil {
		c.close()
	}
	return nil
}

// live returns a connection to a running process and starts one if there is none.
// Every error is a *vault.Denial: nothing was sent.
func (p *stdioPeer) live(ctx context.Context) (*stdioConn, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, notSent(vault.CodeServerDown, errors.New("stdio server: closed"))
	}
	if p.conn != nil && !p.conn.dead() {
		c := p.conn
		p.mu.Unlock()
		return c, nil
	}
	s := p.starting
	if s == nil {
		// The start belongs to all who wait for it, so it must not end with the
		// first caller.
		run, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.StartTimeout)
		s = &starting{done: make(chan struct{}), cancel: cancel}
		p.starting = s
		old, want := p.conn, p.want
		p.wg.Go(func() {
			defer cancel()
			p.start(run, s, old, want)
		})
	}
	p.mu.Unlock()
	select {
	case <-s.done:
		return s.conn, s.err
	case <-ctx.Done():
		return nil, interrupted(ctx, vault.ExecutedNo, "wait for the server to start")
	}
}

func (p *stdioPeer) start(ctx context.Context, s *starting, old *stdioConn, want string) {
	if old != nil {
		old.close() // it is dead; this joins its goroutines
	}
	s.conn, s.err = p.connect(ctx, want)
	p.mu.Lock()
	p.starting = nil
	again := p.started
	if s.err == nil {
		p.conn, p.want, p.started = s.conn, s.conn.era(), true
		if p.closed {
			p.mu.Unlock()
			s.conn.close()
			s.conn, s.err = nil, notSent(vault.CodeServerDown, errors.New("stdio server: closed"))
			close(s.done)
			return
		}
	}
	p.mu.Unlock()
	close(s.done)
	if s.err == nil && again && p.opts.stray != nil {
		// Another process of the same program may offer other things than the one
		// that died.
		for _, method := range []string{noteToolsChanged, notePromptsChanged, noteResourcesChanged} {
			p.opts.stray(method, nil)
		}
	}
}

// connect spawns a process and shakes hands. If the process does not survive a
// question of the era it does not know, a second one is asked in the other era.
func (p *stdioPeer) connect(ctx context.Context, want string) (*stdioConn, error) {
	c, err := p.spawn(ctx)
	if err != nil {
		return nil, err
	}
	again, err := c.handshake(ctx, want)
	if again {
		p.opts.log.InfoContext(ctx, "stdio server ended on server/discover, starting it for initialize", "server", p.inst.Server)
		c.close()
		if c, err = p.spawn(ctx); err != nil {
			return nil, err
		}
		err = c.initialize(ctx, "")
	}
	if err != nil {
		c.fail(err)
		c.close()
		code := vault.CodeServerDown
		if brokeProtocol(err) || errors.Is(err, errMalformed) {
			code = vault.CodeUpstreamGarbage
		}
		d := notSent(code, fmt.Errorf("start stdio server: %w%s", err, c.stderr.tail()))
		d.Retry = vault.RetryAfter
		p.opts.log.WarnContext(ctx, "stdio server did not start", "server", p.inst.Server, "cause", d.Err)
		return nil, d
	}
	return c, nil
}

func (p *stdioPeer) spawn(ctx context.Context) (*stdioConn, error) {
	pause, ok := p.starts.next(p.inst)
	if !ok {
		d := notSent(vault.CodeServerDown, fmt.Errorf("stdio server: %d starts within a minute", p.cfg.MaxStarts))
		d.Retry = vault.RetryAfter
		return nil, d
	}
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, interrupted(ctx, vault.ExecutedNo, "wait to restart the server")
		}
	}
	proc, err := p.cfg.Spawn(ctx, p.inst)
	if err != nil {
		if d, ok := errors.AsType[*vault.Denial](err); ok {
			return nil, d // the sandbox says more exactly what is missing
		}
		d := notSent(vault.CodeServerDown, fmt.Errorf("spawn stdio server: %w", err))
		d.Retry = vault.RetryAfter
		return nil, d
	}
	return newStdioConn(proc, p.cfg, p.opts), nil
}

// notSent is a denial of a call that never reached a server.
func notSent(code vault.Code, cause error) *vault.Denial {
	d := vault.NewDenial(code, "", cause)
	d.Verdict = "error"
	return d
}

// maybeSent is a denial of a call whose effect can have happened.
func maybeSent(code vault.Code, cause error) *vault.Denial {
	d := notSent(code, cause)
	d.Executed = vault.ExecutedUnknown
	return d
}

// interrupted is the denial for a context that ended.
func interrupted(ctx context.Context, executed vault.Executed, doing string) *vault.Denial {
	code := vault.CodeCancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = vault.CodeUpstreamTimeout
	}
	d := notSent(code, fmt.Errorf("%s: %w", doing, context.Cause(ctx)))
	d.Executed = executed
	return d
}

// A startLimiter spaces the starts of each instance. It outlives peers, so that
// dialling anew is no way around it.
type startLimiter struct {
	max int
	now func() time.Time

	mu     sync.Mutex
	byInst map[Instance][]time.Time // starts within the last minute, oldest first
}

// next records a start and returns how long to wait before it: nothing, nothing,
// then 100 ms, doubling. A single crash costs its user no time.
func (l *startLimiter) next(inst Instance) (pause time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for k, times := range l.byInst {
		for len(times) > 0 && now.Sub(times[0]) >= time.Minute {
			times = times[1:]
		}
		if l.byInst[k] = times; len(times) == 0 {
			delete(l.byInst, k) // tasks come and go; nothing is kept of those that went
		}
	}
	times := l.byInst[inst]
	if len(times) >= l.max {
		return 0, false
	}
	l.byInst[inst] = append(times, now)
	if n := len(times); n >= 2 {
		pause = min(100*time.Millisecond<<min(n-2, 10), 5*time.Second)
	}
	return pause, true
}
