// Package egress is the one way out for HTTP requests that an agent makes itself:
// calls of kind egress whose target is a host.
//
// It owns where a request may go once a capability has allowed host, method and
// path: names only, public addresses only, checked on the address that is dialled
// so that DNS cannot change between check and use; TLS with the host's own name;
// no redirects; no header that carries authority. It does not decide who may call
// what: that is the capability's word, and nothing is allowed without it. Start
// with [Client.Run].
package egress

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// A Config says how requests leave. The zero Config works.
type Config struct {
	// Resolve returns the addresses of a host. Nil means the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address that was checked. Nil means a plain dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Allow may object to a connection after its address was checked and before it is
	// opened. Nil objects to nothing.
	Allow func(ctx context.Context, f *vault.Facts, host string, to netip.AddrPort) error
	// Transport is the base for HTTP; its dialling, proxy and connection reuse are replaced.
	// Nil means a fresh one. Tests use it to trust their own certificates.
	Transport *http.Transport
	// MaxResponse bounds the bytes of a response, and of the result that says it in
	// JSON. Zero means 1 MiB.
	MaxResponse int64
	// Timeout bounds one request. Zero means 30 seconds.
	Timeout time.Duration
}

// A Client makes requests. It is safe for concurrent use.
type Client struct {
	c    Config
	http *http.Client
}

// maxHeader bounds the header of a response, of which two fields become part of
// the result. Servers and proxies keep theirs below 16 KiB.
const maxHeader = 64 << 10

// New returns a Client.
func New(c Config) *Client {
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if c.MaxResponse == 0 {
		c.MaxResponse = 1 << 20
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	t := c.Transport
	if t == nil {
		t = &http.Transport{ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}
	}
	t = t.Clone()
	t.Proxy = nil
	// A kept connection can die under a request, and the transport then sends a GET
	// again by itself. Nothing is sent twice here: each request has its connection,
	// and each connection its check of the address.
	t.DisableKeepAlives = true
	t.MaxResponseHeaderBytes = maxHeader
	cl := &Client{c: c}
	t.DialContext = cl.dial
	cl.http = &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return cl
}

// Close ends what connections still do.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// errAddress is why an address is not dialled.
var errAddress = errors.New("not a public address")

// A notSent is an error from before there was a connection, so nothing left.
type notSent struct{ error }

func (e notSent) Unwrap() error { return e.error }

// callKey is the context key of the facts of the call that a connection is for.
type callKey struct{}

// dial connects to the first public address of a host. Its errors are [notSent].
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.connect(ctx, network, address)
	if err != nil {
		return nil, notSent{err}
	}
	return conn, nil
}

// connect wants all addresses to be public: a name that also points inside is
// refused whole.
func (c *Client) connect(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := c.c.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", err)
	}
	for _, a := range addrs {
		if !vault.PublicAddr(a) {
			return nil, errAddress
		}
	}
	if len(addrs) == 0 {
		return nil, errors.New("resolve: no address")
	}
	if f, ok := ctx.Value(callKey{}).(*vault.Facts); ok && c.c.Allow != nil {
		to, err := netip.ParseAddrPort(net.JoinHostPort(addrs[0].Unmap().String(), port))
		if err != nil {
			return nil, err
		}
		if err := c.c.Allow(ctx, f, host, to); err != nil {
			return nil, err
		}
	}
	return c.c.Dial(ctx, network, net.JoinHostPort(addrs[0].Unmap().String(), port))
}

// response is the result object of an egress call.
type response struct {
	Status      int    `json:"status"`
	ContentType string `json:"content_type,omitempty"`
	Location    string `json:"location,omitempty"` // redirects are shown, not followed
	Body        string `json:"body"`
	Encoding    string `json:"encoding"` // utf-8 or base64
}

// Run makes the request of an admitted call. Its arguments are method, path and
// optionally body and content_type.
func (c *Client) Run(ctx context.Context, f *vault.Facts, _ vault.Stream) (vault.Result, error) {
	req, err := request(ctx, f.Call)
	if err != nil {
		return vault.Result{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, callKey{}, f), c.c.Timeout)
	defer cancel()
	res, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		code, executed := vault.CodeUpstreamFailed, vault.ExecutedUnknown
		if _, ok := errors.AsType[notSent](err); ok {
			executed = vault.ExecutedNo
		}
		if d, ok := errors.AsType[*vault.Denial](err); ok { // nothing was opened
			return vault.Result{}, d
		}
		switch {
		case errors.Is(err, errAddress):
			code = vault.CodeEgressAddress
		case errors.Is(err, context.DeadlineExceeded):
			code = vault.CodeUpstreamTimeout
		}
		return vault.Result{}, failure(code, executed, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, c.c.MaxResponse+1))
	if err != nil {
		return vault.Result{}, failure(vault.CodeUpstreamFailed, vault.ExecutedYes, err)
	}
	if int64(len(body)) > c.c.MaxResponse {
		return vault.Result{}, failure(vault.CodeUpstreamTooLarge, vault.ExecutedYes, nil)
	}
	out := response{Status: res.StatusCode, ContentType: res.Header.Get("Content-Type"), Location: res.Header.Get("Location"), Encoding: "utf-8", Body: string(body)}
	if !utf8.Valid(body) {
		out.Encoding, out.Body = "base64", base64.StdEncoding.EncodeToString(body)
	}
	var raw bytes.Buffer
	enc := json.NewEncoder(&raw)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		return vault.Result{}, failure(vault.CodeInternal, vault.ExecutedYes, err)
	}
	if int64(raw.Len()) > c.c.MaxResponse { // escapes and base64 make it larger
		return vault.Result{}, failure(vault.CodeUpstreamTooLarge, vault.ExecutedYes, nil)
	}
	return vault.Result{Raw: bytes.TrimSpace(raw.Bytes()), IsError: res.StatusCode >= 400}, nil
}

func failure(code vault.Code, executed vault.Executed, cause error) *vault.Denial {
	d := vault.NewDenial(code, "", cause)
	d.Verdict, d.Executed = "error", executed
	return d
}

// Check reports a *vault.Denial unless a call of kind egress is one request that
// every server reads alike, for whoever sends it in our place.
func Check(ctx context.Context, call *vault.Call) error {
	_, err := request(ctx, call)
	return err
}

// request builds the HTTP request from canonical arguments. Nothing the agent
// says becomes a header but the content type.
func request(ctx context.Context, call *vault.Call) (*http.Request, error) {
	bad := func(path string, err error) error {
		return vault.NewDenial(vault.CodeArgsSchema, path, err)
	}
	host, port, err := vault.ParseHost(call.Target.Name)
	if err != nil {
		return nil, bad("", err)
	}
	method, ok := call.Args.At("/method").Str()
	carries := false // whether a body has a meaning (RFC 9110, section 9.3)
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		carries = true
	case http.MethodGet, http.MethodHead, http.MethodDelete:
	default:
		ok = false
	}
	if !ok {
		return nil, bad("/method", nil)
	}
	path, ok := call.Args.At("/path").Str()
	if !ok || !plainPath(path) {
		return nil, bad("/path", nil)
	}
	// Servers and proxies disagree on where a request with an unexpected body ends.
	body, _ := call.Args.At("/body").Str()
	if body != "" && !carries {
		return nil, bad("/body", nil)
	}
	if port != "443" {
		host = net.JoinHostPort(host, port)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, bad("/path", err)
	}
	req.Header.Set("User-Agent", "pvault")
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		contentType, ok := call.Args.At("/content_type").Str()
		if !ok {
			contentType = "application/json"
		}
		if strings.ContainsAny(contentType, "\r\n") || len(contentType) > 200 {
			return nil, bad("/content_type", nil)
		}
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

// maxPath bounds path and query. Servers take 8 KiB of request line, the least that
// RFC 9112, section 3, recommends.
const maxPath = 8000

// plainPath reports whether every server reads p as the same path, the one that
// was decided on: absolute, printable ASCII, no empty, "." or ".." segment in any
// encoding or with parameters, nothing that is another path when decoded twice. A
// query may follow; what no URL holds (RFC 3986, appendix A) is out there too.
func plainPath(p string) bool {
	if len(p) > maxPath || !strings.HasPrefix(p, "/") {
		return false
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f || strings.IndexByte("#\\\"<>^`{|}", p[i]) >= 0 {
			return false
		}
	}
	p, _, _ = strings.Cut(p, "?")
	for _, code := range []string{"%00", "%25", "%2e", "%2f", "%5c"} {
		if strings.Contains(strings.ToLower(p), code) {
			return false
		}
	}
	plain, err := url.PathUnescape(p)
	if err != nil {
		return false
	}
	segments := strings.Split(plain[1:], "/")
	for i, s := range segments {
		switch s, _, _ = strings.Cut(s, ";"); s {
		case ".", "..":
			return false
		case "":
			if i < len(segments)-1 {
				return false
			}
		}
	}
	return true
}
