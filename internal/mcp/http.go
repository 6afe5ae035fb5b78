package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
)

// An httpEndpoint is where a server listens, and how to get there.
type httpEndpoint struct {
	cfg       HTTPConfig
	url       *url.URL
	transport http.RoundTripper
}

// DialHTTP returns a Dialer for a server that speaks Streamable HTTP. It refuses an
// address that the configuration does not allow.
func DialHTTP(cfg HTTPConfig) (Dialer, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return Dialer{}, fmt.Errorf("server URL %q: want https://host/path", cfg.URL)
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && cfg.AllowLoopback && isLoopback(u.Hostname()):
	default:
		return Dialer{}, fmt.Errorf("server URL %q: want https, or http to a loopback address where that is allowed", cfg.URL)
	}
	e := &httpEndpoint{cfg: cfg, url: u, transport: cfg.Transport}
	switch {
	case e.transport != nil:
	case u.Scheme == "http":
		e.transport = &loopback{addr: hostPort(u)}
	default:
		e.transport = &http.Transport{
			// A proxy from the environment would see every credential.
			Proxy:                  nil,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:    10 * time.Second,
			MaxIdleConnsPerHost:    256,
			MaxIdleConns:           256,
			IdleConnTimeout:        90 * time.Second,
			DisableCompression:     true, // a bounded read must bound what is read
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	return Dialer{dial: e.dial, many: true}, nil
}

// hostPort returns where a plain http URL connects to.
func hostPort(u *url.URL) string {
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "80")
	}
	return u.Host
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// An httpPeer is a connection to one server in one era. In the modern era it is no
// more than a version; in the other one a session.
type httpPeer struct {
	endpoint *httpEndpoint
	opts     peerOptions
	version  string
	session  string // Mcp-Session-Id, empty without
	greeting json.RawMessage
	ids      atomic.Uint64
	lost     atomic.Bool // the server no longer knows the session

	ctx  context.Context // of the listening stream
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards level
	level string     // last log level set in this session
}

// dial finds out which eras the server speaks and opens the one that is wanted, or the
// other one.
func (e *httpEndpoint) dial(ctx context.Context, _ Instance, want string, opts peerOptions) (peer, error) {
	order := []func(context.Context, string, peerOptions) (*httpPeer, error){e.discover, e.initialize}
	if want != "" && !modern(want) {
		slices.Reverse(order)
	}
	p, err := order[0](ctx, want, opts)
	if err == nil {
		return p, nil
	}
	if d, ok := errors.AsType[*vault.Denial](err); ok && d.Reason.Code != vault.CodeUpstreamFailed {
		return nil, err // unreachable, cancelled, or too large: the other era is no different
	}
	p, second := order[1](ctx, want, opts)
	if second != nil {
		return nil, down(fmt.Errorf("%w; and in the other era: %w", err, second))
	}
	return p, nil
}

// down is the denial for a server that cannot be reached.
func down(cause error) *vault.Denial {
	d := vault.NewDenial(vault.CodeServerDown, "", cause)
	d.Retry = vault.RetryAfter
	return d
}

// failed is the denial for an effect that may or may not have happened.
func failed(code vault.Code, cause error) *vault.Denial {
	d := vault.NewDenial(code, "", cause)
	d.Verdict, d.Executed = "error", vault.ExecutedUnknown
	return d
}

func (e *httpEndpoint) newPeer(version string, opts peerOptions) *httpPeer {
	p := &httpPeer{endpoint: e, opts: opts, version: version}
	p.ctx, p.stop = context.WithCancel(context.Background()) //nolint:forbidigo // the life of the connection, which close ends
	return p
}

// discover opens the era without sessions.
func (e *httpEndpoint) discover(ctx context.Context, _ string, opts peerOptions) (*httpPeer, error) {
	p := e.newPeer(Version20260728, opts)
	raw, err := p.call(ctx, methodDiscover, nil, requestMeta{}, refuseAll{})
	if err != nil {
		return nil, asFailed("server/discover", err)
	}
	if !slices.Contains(stringsOf(member(raw, "supportedVersions")), Version20260728) {
		return nil, failed(vault.CodeUpstreamFailed, errors.New("the server does not speak "+Version20260728))
	}
	p.greeting = raw
	return p, nil
}

// asFailed makes an error of a handshake a denial that lets the other era be tried.
func asFailed(what string, err error) error {
	if e, ok := errors.AsType[*RemoteError](err); ok {
		return failed(vault.CodeUpstreamFailed, fmt.Errorf("%s: %w", what, e))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// stringsOf reads a JSON array of strings, leniently.
func stringsOf(raw json.RawMessage) (out []string) {
	if json.Unmarshal(raw, &out) != nil {
		return nil
	}
	return out
}

// initialize opens a session.
func (e *httpEndpoint) initialize(ctx context.Context, want string, opts peerOptions) (*httpPeer, error) {
	if !isLegacy(want) {
		want = Version20251125
	}
	p := e.newPeer("", opts)
	params := []byte(`{"protocolVersion":"` + want + `","capabilities":` + string(opts.capabilities()) + `,"clientInfo":` + string(opts.clientInfo()) + `}`)
	raw, err := p.call(ctx, methodInitialize, params, requestMeta{}, refuseAll{})
	if err != nil {
		return nil, asFailed("initialize", err)
	}
	version, _ := plainString(member(raw, "protocolVersion"))
	if !isLegacy(version) {
		return nil, failed(vault.CodeUpstreamFailed, fmt.Errorf("initialize: the server wants protocol version %q", version))
	}
	p.version, p.greeting = version, raw
	if err := p.notify(ctx, noteInitialized, nil); err != nil {
		_ = p.close() // the handshake already failed
		return nil, err
	}
	if opts.stray != nil {
		p.wg.Go(p.listen)
	}
	return p, nil
}

func (p *httpPeer) era() string            { return p.version }
func (p *httpPeer) hello() json.RawMessage { return p.greeting }
func (p *httpPeer) broken() bool           { return p.lost.Load() }

// close ends the session and waits for the listening stream.
func (p *httpPeer) close() error {
	p.stop()
	p.wg.Wait()
	if p.session == "" || p.lost.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) //nolint:forbidigo // the session is ended whoever hung up
	defer cancel()
	resp, err := p.do(ctx, http.MethodDelete, nil, nil)
	if err != nil {
		return fmt.Errorf("end session: %w", err)
	}
	drain(resp)
	return nil
}

// do sends one HTTP request. Redirects are not followed and no cookie is kept.
// The body goes back to the pool when the transport is done with it, which may be after
// the answer.
func (p *httpPeer) do(ctx context.Context, method string, body *buffer, h http.Header) (*http.Response, error) {
	if h == nil {
		h = make(http.Header, 8)
	}
	if p.version != "" {
		h[headerVersion] = []string{p.version}
	}
	if p.session != "" {
		h[headerSession] = []string{p.session}
	}
	h["User-Agent"] = userAgent
	if p.endpoint.cfg.Authorize != nil {
		if err := p.endpoint.cfg.Authorize(ctx, h); err != nil {
			return nil, down(fmt.Errorf("authorize: %w", err))
		}
	}
	req := &http.Request{
		Method: method, URL: p.endpoint.url, Host: p.endpoint.url.Host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if body != nil {
		req.Body = &bodyReader{Reader: *bytes.NewReader(body.b), buf: body}
		req.ContentLength = int64(len(body.b))
	}
	resp, err := p.endpoint.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, transportError(ctx, err)
	}
	return resp, nil
}

// A bodyReader is a request body. Without GetBody the transport cannot send it twice.
type bodyReader struct {
	bytes.Reader
	buf  *buffer
	once sync.Once
}

// Close is called once nothing reads the body any more.
func (r *bodyReader) Close() error {
	r.once.Do(func() { bodies.put(r.buf) })
	return nil
}

// transportError classifies a failure to send or to get an answer.
func transportError(ctx context.Context, err error) error {
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		return d
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return down(err)
	}
	if ctx.Err() != nil {
		return failed(vault.CodeCancelled, context.Cause(ctx))
	}
	return failed(vault.CodeUpstreamFailed, err)
}

var (
	userAgent  = []string{"pvault"}
	acceptBoth = []string{"application/json, text/event-stream"}
	acceptSSE  = []string{"text/event-stream"}
)

// drain reads a little of what is left, so that the connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // best effort
	_ = resp.Body.Close()                          // nothing was written to it
}

// call sends a request and reads its answer, as JSON or from a stream.
func (p *httpPeer) call(ctx context.Context, method string, params json.RawMessage, meta requestMeta, in inbound) (json.RawMessage, error) {
	if !modern(p.version) && meta.logLevel != "" && method != methodSetLevel {
		if err := p.setLevel(ctx, meta.logLevel); err != nil {
			return nil, err
		}
	}
	id := strconv.FormatUint(p.ids.Add(1), 10)
	h := make(http.Header, 12)
	h["Content-Type"] = jsonType
	h["Accept"] = acceptBoth
	if modern(p.version) {
		h[headerMethod] = []string{method}
		if nameParam(method) != "" {
			h[headerName] = []string{encodeHeader(meta.name)}
		}
		for _, ph := range meta.headers {
			h[http.CanonicalHeaderKey(headerParam+ph.name)] = []string{encodeHeader(ph.value)}
		}
	}
	out := bodies.get()
	scratch := bodies.get()
	scratch.b = p.opts.appendMeta(scratch.b, p.version, id, meta)
	var full []byte
	if len(scratch.b) > 0 || params != nil {
		full = appendParams(nil, params, nilIfEmpty(scratch.b))
	}
	out.b = appendRequest(out.b, id, method, full)
	bodies.put(scratch)
	resp, err := p.do(ctx, http.MethodPost, out, h)
	if err != nil {
		p.tellCancelled(ctx, method, id)
		return nil, err
	}
	defer drainOrClose(ctx, resp)
	if method == methodInitialize {
		if s := resp.Header.Get(headerSession); s != "" && len(s) <= 256 && printable([]byte(s)) {
			p.session = s
		}
	}
	raw, err := p.answer(ctx, id, resp, in)
	if err != nil {
		p.tellCancelled(ctx, method, id)
		return nil, err
	}
	return raw, nil
}

func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// drainOrClose lets the connection be used again after a complete answer.
func drainOrClose(ctx context.Context, resp *http.Response) {
	if ctx.Err() != nil {
		_ = resp.Body.Close() // nothing was written to it
		return
	}
	drain(resp)
}

// tellCancelled tells a server of the era with sessions that nobody waits any more. In
// the other era closing the stream says it.
func (p *httpPeer) tellCancelled(ctx context.Context, method, id string) {
	if ctx.Err() == nil || modern(p.version) || method == methodInitialize {
		return
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := p.notify(late, noteCancelled, []byte(`{"requestId":`+id+`}`)); err != nil {
		p.opts.log.DebugContext(ctx, "mcp upstream not told of a cancellation", "cause", err)
	}
}

// setLevel sets the log level of the session if it is another one than before.
func (p *httpPeer) setLevel(ctx context.Context, level string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.level == level || member(member(p.greeting, "capabilities"), "logging") == nil {
		return nil
	}
	params := append(vault.AppendQuoted([]byte(`{"level":`), level), '}')
	_, err := p.call(ctx, methodSetLevel, params, requestMeta{}, refuseAll{})
	if _, refused := errors.AsType[*RemoteError](err); err != nil && !refused {
		return err
	}
	p.level = level
	return nil
}

// notify sends a notification.
func (p *httpPeer) notify(ctx context.Context, method string, params json.RawMessage) error {
	return p.post(ctx, method, appendRequest(nil, "", method, params))
}

// post sends a message that gets no answer.
func (p *httpPeer) post(ctx context.Context, method string, msg []byte) error {
	h := make(http.Header, 8)
	h["Content-Type"] = jsonType
	h["Accept"] = acceptBoth
	if modern(p.version) && method != "" {
		h[headerMethod] = []string{method}
	}
	resp, err := p.do(ctx, http.MethodPost, &buffer{msg}, h)
	if err != nil {
		return err
	}
	drain(resp)
	if resp.StatusCode/100 != 2 {
		return failed(vault.CodeUpstreamFailed, fmt.Errorf("status %d for a notification", resp.StatusCode))
	}
	return nil
}

// listen reads what the server sends outside of calls until the peer is closed.
func (p *httpPeer) listen() {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		resp, err := p.do(p.ctx, http.MethodGet, nil, http.Header{"Accept": acceptSSE})
		if err == nil {
			if resp.StatusCode != http.StatusOK || mediaType(resp.Header.Get("Content-Type")) != "text/event-stream" {
				drain(resp)
				return // the server has no such stream
			}
			frames := 0
			_, _, err = p.readEvents(p.ctx, "", newEventReader(resp.Body, p.opts.maxMessage), strays{p}, &frames)
			_ = resp.Body.Close() // nothing was written to it
		}
		p.opts.log.Debug("mcp upstream listening stream ended", "cause", err)
		select {
		case <-time.After(wait):
		case <-p.ctx.Done():
			return
		}
	}
}

// strays takes what arrives on a listening stream.
type strays struct{ p *httpPeer }

func (s strays) notify(_ context.Context, method string, params json.RawMessage) error {
	s.p.opts.stray(method, params)
	return nil
}

func (strays) request(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errNotDuringCall
}

var errNotDuringCall = errors.New("a server may ask only during a call")

// refuseAll is the inbound of the edge's own requests.
type refuseAll struct{}

func (refuseAll) notify(context.Context, string, json.RawMessage) error { return nil }

func (refuseAll) request(context.Context, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errNotDuringCall
}
