package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Bounds on an outside decision point.
const (
	maxAnswer    = 64 << 10 // bytes of one answer; a decision with its reasons is far smaller
	maxQuestion  = 1 << 20  // bytes of one request: the input document
	breakerFails = 5        // failures in a row after which it is not asked for a while
	breakerPause = 5 * time.Second
)

var (
	errBreaker  = errors.New("the decision point failed several times in a row and is not asked for a moment")
	errPDPURL   = errors.New("url: want https, or http on a loopback address")
	errNoAnswer = errors.New("the answer has no decision")
)

// newClient returns the client of HTTP hooks. It follows no redirect: where the
// operator's decisions come from is the operator's word alone.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// An httpEngine asks a decision point by the AuthZEN Authorization API 1.0, access
// evaluation. The subject is the agent, the action the kind of call or the hook
// point, the resource the target, and the context the whole input document. A
// decision of true allows and false denies; a decision document of version 1 in
// context.vault can be stricter.
type httpEngine struct {
	url      string
	client   *http.Client
	deadline time.Duration

	mu    sync.Mutex // guards the breaker
	fails int
	until time.Time
}

func newHTTPEngine(raw string, client *http.Client, deadline time.Duration) (*httpEngine, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, errPDPURL
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return nil, errPDPURL
	}
	return &httpEngine{url: raw, client: client, deadline: deadline}, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func (e *httpEngine) eval(ctx context.Context, in *input) (ast.Value, error) {
	if !e.closed(time.Now()) {
		return nil, errBreaker
	}
	v, err := e.ask(ctx, in)
	// A caller that hangs up says nothing of the decision point.
	if ctx.Err() == nil {
		e.note(err == nil, time.Now())
	}
	return v, err
}

func (e *httpEngine) ask(ctx context.Context, in *input) (ast.Value, error) {
	body, err := question(in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-ID", in.f.Call.ID)
	res, err := e.client.Do(req)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return nil, errDeadline
		}
		return nil, fmt.Errorf("ask the decision point: %w", err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case len(raw) > maxAnswer:
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the decision point answers %s", res.Status)
	}
	return answer(raw)
}

// question is the request of an access evaluation.
func question(in *input) ([]byte, error) {
	doc, err := in.whole()
	if err != nil {
		return nil, err
	}
	type entity struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	}
	f := in.f
	action, resource := in.at, entity{in.at, string(f.Grant.Task)}
	if f.Call.Kind != "" {
		server := f.Call.Server
		if server != "" {
			server += "."
		}
		action, resource = string(f.Call.Kind), entity{string(f.Call.Kind), server + f.Call.Target.Name}
	}
	body, err := json.Marshal(map[string]any{
		"subject":  entity{"agent", string(f.Grant.Agent)},
		"action":   map[string]string{"name": action},
		"resource": resource,
		"context":  map[string]any{"vault": doc},
	})
	if err == nil && len(body) > maxQuestion {
		err = fmt.Errorf("the input is larger than %d bytes", maxQuestion)
	}
	return body, err
}

// answer reads the response of an access evaluation.
func answer(raw []byte) (ast.Value, error) {
	v, err := ast.ValueFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("the answer is no JSON: %w", err)
	}
	o, ok := v.(ast.Object)
	if !ok {
		return nil, errNoAnswer
	}
	decision := o.Get(ast.StringTerm("decision"))
	if decision == nil {
		return nil, errNoAnswer
	}
	allow, ok := decision.Value.(ast.Boolean)
	if !ok {
		return nil, errNoAnswer
	}
	if !allow {
		return ast.Boolean(false), nil
	}
	// What is in the context can make it stricter; parseDecision refuses what it
	// does not know.
	if context := o.Get(ast.StringTerm("context")); context != nil {
		if c, ok := context.Value.(ast.Object); ok {
			if own := c.Get(ast.StringTerm("vault")); own != nil {
				return own.Value, nil
			}
		}
	}
	return ast.Boolean(true), nil
}

// closed reports whether the breaker lets a question through.
func (e *httpEngine) closed(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fails < breakerFails || !now.Before(e.until)
}

// note counts failures in a row.
func (e *httpEngine) note(ok bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ok {
		e.fails = 0
		return
	}
	if e.fails++; e.fails >= breakerFails {
		e.until = now.Add(breakerPause)
	}
}
