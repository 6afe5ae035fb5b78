package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// ShimConfig says what a shim connects.
type ShimConfig struct {
	// In and Out are the client's side: newline-delimited JSON-RPC, as a client
	// that starts servers as processes speaks it. Nothing but protocol goes to Out.
	In  io.Reader
	Out io.Writer
	// Client reaches the daemon. It must not be nil, must not follow redirects to
	// other hosts, and has no timeout of its own: calls wait for people.
	Client *http.Client
	// URL is the daemon's MCP endpoint.
	URL string
	// Header is added to every request: what authenticates the task.
	Header http.Header
	// MaxMessage bounds one message in either direction in bytes. Zero means
	// [DefaultMaxResult].
	MaxMessage int
	// MaxRequests bounds requests in flight; further ones get an error. Zero means 64.
	MaxRequests int
	// Linger is how long requests in flight may go on when In has ended: a script
	// closes it right after its last line. Zero means 2 s.
	Linger time.Duration
	// Log is for what went wrong. Nil discards. It must not write to Out.
	Log *slog.Logger
}

// RunShim makes a local process look like an MCP server and carries its messages to
// the daemon, in both eras, until In ends, Out breaks or ctx ends. It ends the
// session it opened. The end of In is no error. When ctx ends, a Read of In may be
// left waiting.
//
// What the daemon does not answer is answered here with a JSON-RPC error; a request
// is never sent twice.
func RunShim(ctx context.Context, cfg ShimConfig) error {
	if cfg.MaxMessage == 0 {
		cfg.MaxMessage = DefaultMaxResult
	}
	if cfg.MaxRequests == 0 {
		cfg.MaxRequests = 64
	}
	if cfg.Linger == 0 {
		cfg.Linger = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancelCause(ctx)
	s := &shim{cfg: cfg, stop: stop, requests: make(map[string]context.CancelFunc), bindings: make(map[string][]binding)}
	err := s.run(ctx)
	s.endSession(ctx)
	stop(nil)
	s.wg.Wait()
	return err
}

// errInEnded is why everything stops when the client is gone.
var errInEnded = errors.New("the client closed its side")

// A shim is one run of RunShim.
type shim struct {
	cfg  ShimConfig
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // requests and the listening stream

	outMu sync.Mutex // one message at a time on Out

	mu       sync.Mutex
	requests map[string]context.CancelFunc // in flight, by id as written
	idle     chan struct{}                 // closed when requests is empty; nil while nobody waits
	session  string                        // of the era with sessions
	version  string                        // negotiated with the session
	unlisten context.CancelFunc            // ends the listening stream
	modern   bool                          // the client spoke the era without sessions
	bindings map[string][]binding          // Mcp-Param headers by tool
}

// run takes messages from In until one of the sides ends.
func (s *shim) run(ctx context.Context) error {
	lines := make(chan []byte)
	ended := make(chan error, 1)
	go func() { // not joined: a Read of standard input cannot be interrupted
		r := bufio.NewReaderSize(s.cfg.In, 32<<10)
		for {
			line, err := readLine(r, s.cfg.MaxMessage)
			if err != nil {
				ended <- err
				return
			}
			select {
			case lines <- line:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case line := <-lines:
			s.take(ctx, line)
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-ended:
			switch {
			case errors.Is(err, errLineTooLong):
				s.fail(nil, codeInvalidRequest, fmt.Sprintf("a message is larger than %d bytes", s.cfg.MaxMessage), nil)
				return fmt.Errorf("read from the client: %w", err)
			case errors.Is(err, io.EOF):
				s.linger(ctx)
				return nil
			}
			return fmt.Errorf("read from the client: %w", err)
		}
	}
}

// linger waits for requests in flight.
func (s *shim) linger(ctx context.Context) {
	idle := make(chan struct{})
	s.mu.Lock()
	if len(s.requests) == 0 {
		close(idle)
	} else {
		s.idle = idle
	}
	s.mu.Unlock()
	t := time.NewTimer(s.cfg.Linger)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		s.stop(errInEnded)
	case <-ctx.Done():
	}
}

// take handles one message of the client. Requests run beside each other; what
// opens a session, notifications and responses keep their order.
func (s *shim) take(ctx context.Context, line []byte) {
	m, err := scanMessage(line)
	if err != nil {
		s.fail(nil, codeParse, "not a JSON-RPC message", nil)
		return
	}
	switch {
	case m.isCall():
		s.request(ctx, m, line)
	case m.method == noteCancelled && s.cancelled(m):
		// In the era without sessions closing the stream is how one cancels.
	default:
		s.oneWay(ctx, m, line)
	}
}

// request starts one request of the client.
func (s *shim) request(ctx context.Context, m message, line []byte) {
	id := string(m.id)
	reqCtx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	_, twice := s.requests[id]
	busy := len(s.requests) >= s.cfg.MaxRequests
	if !twice && !busy {
		s.requests[id] = cancel
	}
	s.mu.Unlock()
	if twice || busy {
		cancel()
		if twice {
			s.fail(m.id, codeInvalidRequest, "this id is in flight already", nil)
		} else {
			s.refuse(m.id, vault.CodeBusy, fmt.Sprintf("%d requests are in flight already", s.cfg.MaxRequests), "", vault.ExecutedNo)
		}
		return
	}
	do := func() {
		defer func() {
			cancel()
			s.mu.Lock()
			delete(s.requests, id)
			if len(s.requests) == 0 && s.idle != nil {
				close(s.idle)
				s.idle = nil
			}
			s.mu.Unlock()
		}()
		s.exchange(reqCtx, m, line)
	}
	if m.method == methodInitialize {
		s.endSession(ctx) // one client has one session
		do()              // all that follows needs it
		return
	}
	s.wg.Go(do)
}

// cancelled ends a request of the era without sessions and reports whether it was one.
func (s *shim) cancelled(m message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != "" {
		return false // the daemon cancels
	}
	if cancel := s.requests[string(member(orEmpty(m.params), "requestId"))]; cancel != nil {
		cancel()
	}
	return true
}

// exchange sends one request and passes on what comes back.
func (s *shim) exchange(ctx context.Context, m message, line []byte) {
	resp, err := s.post(ctx, m, line)
	if err != nil {
		if ctx.Err() == nil {
			s.lost(m.id, err)
		}
		return // cancelled: nobody waits for an answer
	}
	defer resp.Body.Close()
	answered := false
	answer := func(raw []byte) error {
		got, err := scanMessage(raw)
		if err != nil {
			return fmt.Errorf("from the daemon: %w", err)
		}
		if got.isResponse() {
			if answered {
				return errors.New("from the daemon: a second answer")
			}
			answered = true
			if got.id == nil { // about a body that it could not read
				raw = appendErrorObject(nil, m.id, got.err)
			}
			s.learn(m, resp, got)
		}
		return s.write(raw)
	}
	switch mediaType(resp.Header.Get("Content-Type")) {
	case "text/event-stream":
		err = relayEvents(resp.Body, s.cfg.MaxMessage, nil, answer)
	case "application/json":
		var body []byte
		if body, err = readAll(resp.Body, s.cfg.MaxMessage); err == nil {
			err = answer(body)
		}
	}
	switch {
	case answered || ctx.Err() != nil:
	case resp.StatusCode == http.StatusNotFound && s.hasSession():
		s.fail(m.id, codeInvalidRequest, "the session has ended; start the server again", nil)
	case resp.StatusCode >= 400:
		s.fail(m.id, codeInternal, fmt.Sprintf("the daemon refuses the request: %s", resp.Status), nil)
	default:
		if err == nil {
			err = errors.New("the stream ended without an answer")
		}
		s.lost(m.id, err)
	}
}

// learn keeps what later requests need of an answer: the session, and which
// arguments of which tool have to be repeated in headers.
func (s *shim) learn(m message, resp *http.Response, got message) {
	switch {
	case got.result == nil:
	case m.method == methodInitialize:
		version, _ := plainString(member(got.result, "protocolVersion"))
		s.mu.Lock()
		s.session, s.version = resp.Header.Get(headerSession), version
		s.mu.Unlock()
	case m.method == methodToolsList:
		s.learnTools(got.result)
	}
}

// maxBindings bounds the tools whose header bindings are kept.
const maxBindings = 10_000

func (s *shim) learnTools(result json.RawMessage) {
	tools := member(result, "tools")
	if tools == nil || tools[0] != '[' {
		return
	}
	var list []json.RawMessage
	if json.Unmarshal(tools, &list) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tool := range list {
		if tool = bytes.TrimSpace(tool); len(tool) == 0 || tool[0] != '{' {
			continue
		}
		name, _ := plainString(member(tool, "name"))
		b, err := bindingsOf(member(tool, "inputSchema"))
		delete(s.bindings, name)
		if err == nil && len(b) > 0 && len(s.bindings) < maxBindings {
			s.bindings[name] = b
		}
	}
}

// oneWay sends a notification or a response; nobody waits for an answer to it.
func (s *shim) oneWay(ctx context.Context, m message, line []byte) {
	ctx, cancel := context.WithTimeout(ctx, oneWayTimeout)
	defer cancel()
	resp, err := s.post(ctx, m, line)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "a message of the client did not reach the daemon", "method", m.method, "cause", err)
		return
	}
	defer resp.Body.Close()
	_, _ = readAll(resp.Body, maxErrorBody) // so that the connection can be used again
	if resp.StatusCode >= 400 {
		s.cfg.Log.WarnContext(ctx, "the daemon refused a message of the client", "method", m.method, "status", resp.StatusCode)
		return
	}
	if m.method == noteInitialized {
		s.listen(context.WithoutCancel(ctx))
	}
}

const (
	// oneWayTimeout bounds what the daemon takes in without doing anything: other
	// messages wait behind it.
	oneWayTimeout = 30 * time.Second
	// maxErrorBody bounds what is read of an answer that nobody waits for.
	maxErrorBody = 64 << 10
)

func (s *shim) hasSession() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session != ""
}

// write puts one message on Out. Newlines between the tokens of a message would end
// it early; inside strings JSON has none.
func (s *shim) write(raw []byte) error {
	line := append(make([]byte, 0, len(raw)+1), raw...)
	for i, c := range line {
		if c == '\n' || c == '\r' {
			line[i] = ' '
		}
	}
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if _, err := s.cfg.Out.Write(append(line, '\n')); err != nil {
		err = fmt.Errorf("write to the client: %w", err)
		s.stop(err)
		return err
	}
	return nil
}

// fail answers a request with an error. id nil is for what could not be read.
func (s *shim) fail(id json.RawMessage, code int, text string, data []byte) {
	_ = s.write(appendErrorObject(nil, id, errorObject(code, text, data))) // write has stopped everything
}

// refuse answers a request with a denial.
func (s *shim) refuse(id json.RawMessage, code vault.Code, text, how string, executed vault.Executed) {
	d := vault.NewDenial(code, "", nil)
	d.Verdict, d.Executed = "error", executed
	if executed == vault.ExecutedNo {
		d.Retry = vault.RetryAfter
	}
	if how != "" {
		d.HowToAsk = how
		text += ": " + how
	}
	s.fail(id, codeRefused, text, denialJSON(d))
}

// lost answers a request that the daemon did not answer.
func (s *shim) lost(id json.RawMessage, err error) {
	s.cfg.Log.Warn("the daemon did not answer", "cause", err)
	if notConnected(err) {
		s.refuse(id, vault.CodeServerDown, "the Vault daemon is not running", "start it with pvault up", vault.ExecutedNo)
		return
	}
	s.refuse(id, vault.CodeCallUnknown, "the connection to the Vault daemon was lost before the answer", "", vault.ExecutedUnknown)
}
