package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
)

// Bounds on one connection.
const (
	// inboxMessages bounds notifications of one call that its client has not taken
	// yet; further ones are dropped and counted. Their bytes are bounded by the
	// bound on one message.
	inboxMessages = 256
	// maxServerRequests bounds requests of the server that wait for an answer.
	maxServerRequests = 16
	// replyQueue bounds answers and cancellations on their way to the server. A
	// server that does not read loses them.
	replyQueue = 64
	// maxUnasked bounds the messages between two answers that were waited for. All
	// calls in flight share a process, so it is several times what one may send.
	maxUnasked = 4 * maxFrames
)

var (
	errConnClosed = errors.New("connection closed")
	errFlood      = errors.New("the server sends messages without end")
)

// A stdioConn is one process and the calls in flight to it. Its goroutines are a
// reader, a writer, a reader of standard error and one that waits for the end;
// close joins them.
type stdioConn struct {
	proc         Process
	opts         peerOptions
	log          *slog.Logger
	stray        func(method string, params json.RawMessage)
	max          int
	maxCalls     int
	writeTimeout time.Duration
	closeTimeout time.Duration
	probeTimeout time.Duration
	stderr       stderrRing

	helloResult json.RawMessage // set by handshake, before the connection is shared

	out     chan []byte // unbuffered: what was not taken was not sent
	replies chan []byte
	closing chan struct{} // closed by close
	dying   chan struct{} // closed when no answer can come any more
	ended   chan struct{} // closed when the process is gone and cause is final
	wg      sync.WaitGroup
	once    sync.Once

	lateAnswers atomic.Int64 // answers to calls that are over, or that never were

	mu       sync.Mutex
	version  string // protocol spoken; empty until the handshake knows
	cause    error  // why it is dying; the first one counts
	next     int64
	calls    map[int64]*stdioCall
	requests int // of the server, being answered
}

// A stdioCall is one request that waits for its answer.
type stdioCall struct {
	id     int64
	method string
	ctx    context.Context // ends when the call is over; for requests of the server
	in     inbound
	reply  chan message   // one slot
	wake   chan struct{}  // one slot: the inbox has something
	wg     sync.WaitGroup // requests of the server

	mu      sync.Mutex
	inbox   []message
	bytes   int
	dropped int
}

func newStdioConn(proc Process, cfg StdioConfig, opts peerOptions) *stdioConn {
	c := &stdioConn{
		proc: proc, opts: opts, log: opts.log, stray: opts.stray, max: opts.maxMessage, maxCalls: cfg.MaxCalls,
		writeTimeout: cfg.WriteTimeout, closeTimeout: cfg.CloseTimeout, probeTimeout: cfg.ProbeTimeout,
		out: make(chan []byte), replies: make(chan []byte, replyQueue),
		closing: make(chan struct{}), dying: make(chan struct{}), ended: make(chan struct{}),
		calls: make(map[int64]*stdioCall),
	}
	if c.max <= 0 {
		c.max = DefaultMaxResult
	}
	if c.stray == nil {
		c.stray = func(string, json.RawMessage) {}
	}
	var streams sync.WaitGroup
	streams.Go(func() { c.fail(c.read()) })
	if r := proc.Stderr(); r != nil {
		streams.Go(func() {
			c.stderr.read(r, func(line string) { c.log.Debug("stdio server wrote to stderr", "line", line) })
		})
	}
	c.wg.Go(c.write)
	c.wg.Go(func() {
		<-c.dying
		_ = proc.Kill() // it may be gone already
		streams.Wait()
		err := proc.Wait()
		c.mu.Lock()
		if err != nil {
			c.cause = fmt.Errorf("%w; exit: %w", c.cause, err)
		}
		c.mu.Unlock()
		close(c.ended)
	})
	return c
}

func (c *stdioConn) era() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

func (c *stdioConn) setEra(v string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version = v
}

// dead reports whether the connection takes no more calls.
func (c *stdioConn) dead() bool {
	select {
	case <-c.dying:
		return true
	default:
		return false
	}
}

// fail ends the connection for a reason. Later reasons are consequences.
func (c *stdioConn) fail(err error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = err
		close(c.dying)
	}
	c.mu.Unlock()
}

// close asks the process to end by closing its input, kills it if it does not, and
// waits for everything this connection started.
func (c *stdioConn) close() {
	c.once.Do(func() {
		close(c.closing)
		t := time.AfterFunc(c.closeTimeout, func() { c.fail(errConnClosed) })
		defer t.Stop()
		<-c.dying
	})
	c.wg.Wait()
}

// reason returns the cause of the end as a denial. Standard error is part of what
// the operator sees, never of what the agent does.
func (c *stdioConn) reason(executed vault.Executed) *vault.Denial {
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	code := vault.CodeUpstreamFailed
	switch {
	case errors.Is(cause, errLineTooLong), errors.Is(cause, errFlood):
		code = vault.CodeUpstreamTooLarge
	case errors.Is(cause, errMalformed):
		code = vault.CodeUpstreamGarbage
	}
	d := notSent(code, fmt.Errorf("stdio server: %w%s", cause, c.stderr.tail()))
	d.Executed = executed
	return d
}

// write carries messages to the process, one at a time.
func (c *stdioConn) write() {
	in := c.proc.Stdin()
	defer in.Close()
	for {
		var b []byte
		select {
		case b = <-c.out:
		case b = <-c.replies:
		case <-c.closing:
			return
		case <-c.dying:
			return
		}
		// A write to a full pipe blocks until the process reads or dies.
		t := time.AfterFunc(c.writeTimeout, func() { c.fail(errors.New("the server does not read its input")) })
		_, err := in.Write(append(b, '\n'))
		t.Stop()
		if err != nil {
			// A process that ended says more in its last words than a broken pipe
			// does, so the reader may come first with the cause.
			t := time.AfterFunc(c.closeTimeout, func() { c.fail(fmt.Errorf("write to the server: %w", err)) })
			<-c.dying
			t.Stop()
			return
		}
	}
}

// send hands b to the writer. An error means that nothing of it was sent.
func (c *stdioConn) send(ctx context.Context, b []byte) error {
	select {
	case c.out <- b:
		return nil
	case <-c.dying:
		<-c.ended
		return c.reason(vault.ExecutedNo)
	case <-c.closing:
		return notSent(vault.CodeServerDown, errConnClosed)
	case <-ctx.Done():
		return interrupted(ctx, vault.ExecutedNo, "send to the server")
	}
}

// reply hands b to the writer if there is room and drops it otherwise: the reader
// must never wait for a process that does not read.
func (c *stdioConn) reply(b []byte) {
	select {
	case c.replies <- b:
	default:
		c.log.Debug("stdio server does not read; an answer to it was dropped")
	}
}

// call sends one request and waits for its answer.
func (c *stdioConn) call(ctx context.Context, method string, params json.RawMessage, meta requestMeta, in inbound) (json.RawMessage, error) {
	callCtx, cancel := context.WithCancel(ctx)
	s := &stdioCall{method: method, ctx: callCtx, in: in, reply: make(chan message, 1), wake: make(chan struct{}, 1)}
	if err := c.register(s); err != nil {
		cancel()
		return nil, err
	}
	defer func() {
		c.forget(s)
		cancel()
		s.wg.Wait() // in is not called after we return
	}()
	id := strconv.FormatInt(s.id, 10)
	// The progress token is the request's own id, so progress finds its call
	// whatever tokens clients use.
	b := appendRequest(nil, id, method, appendParams(nil, params, c.opts.appendMeta(nil, c.era(), id, meta)))
	if err := c.send(ctx, b); err != nil {
		return nil, err
	}
	for {
		select {
		case m := <-s.reply:
			if err := s.deliver(ctx); err != nil {
				return nil, err
			}
			return c.answer(s, m)
		case <-s.wake:
			if err := s.deliver(ctx); err != nil {
				c.cancel(s, "the client is gone")
				return nil, err
			}
		case <-ctx.Done():
			c.cancel(s, "cancelled")
			return nil, interrupted(ctx, vault.ExecutedUnknown, "wait for the server")
		case <-c.ended:
			select {
			case m := <-s.reply: // it answered before it ended
				if err := s.deliver(ctx); err != nil {
					return nil, err
				}
				return c.answer(s, m)
			default:
				return nil, c.reason(vault.ExecutedUnknown)
			}
		}
	}
}

// answer takes a response apart.
func (c *stdioConn) answer(s *stdioCall, m message) (json.RawMessage, error) {
	s.mu.Lock()
	dropped := s.dropped
	s.mu.Unlock()
	if dropped > 0 {
		c.log.Warn("notifications of a stdio server were dropped: it sends more than its client takes", "method", s.method, "dropped", dropped)
	}
	if m.err == nil {
		return m.result, nil
	}
	remote, err := remoteError(m.err)
	if err != nil {
		return nil, maybeSent(vault.CodeUpstreamGarbage, fmt.Errorf("error object: %w", err))
	}
	return nil, remote
}

// cancel tells the server that nobody waits any more. The handshake is not
// cancelled (specification, cancellation): its process is ended instead.
func (c *stdioConn) cancel(s *stdioCall, why string) {
	if s.method == methodInitialize {
		return
	}
	b := strconv.AppendInt([]byte(`{"requestId":`), s.id, 10)
	b = append(appendQuoted(append(b, `,"reason":`...), why), '}')
	c.reply(appendRequest(nil, "", noteCancelled, b))
}

func (c *stdioConn) register(s *stdioCall) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		d := notSent(vault.CodeUpstreamFailed, fmt.Errorf("stdio server: %w", c.cause))
		d.Retry = vault.RetryAfter
		return d
	}
	if len(c.calls) >= c.maxCalls {
		d := notSent(vault.CodeBusy, fmt.Errorf("stdio server: %d calls in flight", c.maxCalls))
		d.Retry = vault.RetryAfter
		return d
	}
	c.next++
	s.id = c.next
	c.calls[s.id] = s
	return nil
}

func (c *stdioConn) forget(s *stdioCall) {
	c.mu.Lock()
	delete(c.calls, s.id)
	c.mu.Unlock()
}
