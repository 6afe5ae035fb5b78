package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"syscall"

	"github.com/pilox/vault"
)

// maxFrame bounds one line of a streamed answer.
const maxFrame = 16 << 20

// A Signer signs what an approver allows.
type Signer interface {
	// Sign returns the Ed25519 signature over message.
	Sign(message []byte) ([]byte, error)
}

// A Client talks to a daemon over its Unix socket.
type Client struct {
	// HTTP reaches the socket whatever the URL says. Use it for /mcp as well.
	HTTP   *http.Client
	socket string
}

// NewClient returns a client for the socket at path.
func NewClient(path string) *Client {
	d := new(net.Dialer)
	return &Client{socket: path, HTTP: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 32,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// do sends one request and returns the answer's body, which the caller closes.
func (c *Client) do(ctx context.Context, method, path string, in any, approver string, key Signer) (*http.Response, error) {
	body := []byte(nil)
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vault"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if key != nil {
		var challenge string
		if err := c.json(ctx, http.MethodPost, "/v1/challenge", nil, &challenge); err != nil {
			return nil, err
		}
		sig, err := key.Sign(signedBytes(challenge, method, req.URL.Path, body))
		if err != nil {
			return nil, fmt.Errorf("sign request: %w", err)
		}
		req.Header.Set(headerApprover, approver)
		req.Header.Set(headerChallenge, challenge)
		req.Header.Set(headerSignature, base64.StdEncoding.EncodeToString(sig))
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, &Error{Code: "not_running", Message: "no daemon at " + c.socket, Hint: "start it with pvault up"}
		}
		return nil, fmt.Errorf("reach the daemon: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var e struct{ Error *Error }
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if json.Unmarshal(b, &e) != nil || e.Error == nil {
		return nil, fmt.Errorf("the daemon answered %s", res.Status)
	}
	return nil, e.Error
}

func (c *Client) json(ctx context.Context, method, path string, in, out any) error {
	return c.signedJSON(ctx, method, path, in, out, "", nil)
}

func (c *Client) signedJSON(ctx context.Context, method, path string, in, out any, approver string, key Signer) error {
	res, err := c.do(ctx, method, path, in, approver, key)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxFrame)).Decode(out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// frames calls f for each frame of a streamed answer; an error frame ends it.
func (c *Client) frames(ctx context.Context, method, path string, in any, approver string, key Signer, f func(Frame) error) error {
	res, err := c.do(ctx, method, path, in, approver, key)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(make([]byte, 64<<10), maxFrame)
	for sc.Scan() {
		var fr Frame
		if err := json.Unmarshal(sc.Bytes(), &fr); err != nil {
			return fmt.Errorf("decode frame: %w", err)
		}
		if fr.Error != nil {
			return fr.Error
		}
		if err := f(fr); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("read frames: %w", err)
	}
	return nil
}

// Status asks the daemon what it is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.json(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// OpenTask opens or rejoins a task that an approver has minted before.
func (c *Client) OpenTask(ctx context.Context, r TaskRequest) (t Task, err error) {
	return t, c.json(ctx, http.MethodPost, "/v1/tasks/open", r, &t)
}

// MintTask opens a task from a new or changed file.
func (c *Client) MintTask(ctx context.Context, r TaskRequest, approver string, key Signer) (t Task, err error) {
	return t, c.signedJSON(ctx, http.MethodPost, "/v1/tasks/mint", r, &t, approver, key)
}

// Tasks lists the task instances.
func (c *Client) Tasks(ctx context.Context) (t []Task, err error) {
	return t, c.json(ctx, http.MethodGet, "/v1/tasks", nil, &t)
}

// CloseTask ends a task instance.
func (c *Client) CloseTask(ctx context.Context, id vault.TaskID) error {
	return c.json(ctx, http.MethodPost, "/v1/tasks/"+url.PathEscape(string(id))+"/close", nil, new(struct{}))
}

// Revoke stops a link, an agent, a task, or everything.
func (c *Client) Revoke(ctx context.Context, r RevokeRequest) (event uint64, err error) {
	return event, c.json(ctx, http.MethodPost, "/v1/revoke", r, &event)
}

// StatusList returns the signed status list of all root links.
func (c *Client) StatusList(ctx context.Context, uri string) (list string, err error) {
	return list, c.json(ctx, http.MethodGet, "/v1/status-list?uri="+url.QueryEscape(uri), nil, &list)
}

// Call makes one call.
func (c *Client) Call(ctx context.Context, r CallRequest) (a CallAnswer, err error) {
	return a, c.json(ctx, http.MethodPost, "/v1/call", r, &a)
}

// Run starts a program in a sandbox; out gets its output and exit code.
func (c *Client) Run(ctx context.Context, r RunRequest, out func(Frame) error) error {
	return c.frames(ctx, http.MethodPost, "/v1/run", r, "", nil, out)
}

// CallChannel makes one call from inside a sandbox over its channel at url. The
// channel is the authority: a token in r is not needed and not looked at.
func CallChannel(ctx context.Context, url string, r CallRequest) (a CallAnswer, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return a, fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/call", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, fmt.Errorf("reach the gateway: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return a, fmt.Errorf("the gateway answered %s", res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxFrame)).Decode(&a); err != nil {
		return a, fmt.Errorf("decode answer: %w", err)
	}
	return a, nil
}

// Approvals lists the questions that can be answered now.
func (c *Client) Approvals(ctx context.Context) (a []Approval, err error) {
	return a, c.json(ctx, http.MethodGet, "/v1/approvals", nil, &a)
}

// Answer hands in a signed answer.
func (c *Client) Answer(ctx context.Context, id string, answer []byte) error {
	return c.json(ctx, http.MethodPost, "/v1/approvals/"+url.PathEscape(id), answer, new(struct{}))
}

// Servers lists the registered servers.
func (c *Client) Servers(ctx context.Context) (s []Server, err error) {
	return s, c.json(ctx, http.MethodGet, "/v1/servers", nil, &s)
}

// AddServer installs and registers a server; progress gets a line per step.
func (c *Client) AddServer(ctx context.Context, r ServerRequest, approver string, key Signer, progress func(string)) (Server, error) {
	var got *Server
	err := c.frames(ctx, http.MethodPost, "/v1/servers", r, approver, key, func(f Frame) error {
		if f.Progress != "" {
			progress(f.Progress)
		}
		if f.Server != nil {
			got = f.Server
		}
		return nil
	})
	if err != nil {
		return Server{}, err
	}
	if got == nil {
		return Server{}, errors.New("the daemon went away before the server was registered")
	}
	return *got, nil
}

// ReviewServer shows what changed in a server. With a key it accepts all that it
// was shown.
func (c *Client) ReviewServer(ctx context.Context, name, approver string, key Signer) (s Server, err error) {
	if err := c.json(ctx, http.MethodGet, reviewPath(name), nil, &s); err != nil || key == nil {
		return s, err
	}
	return c.AcceptServer(ctx, name, s.Offers, approver, key)
}

// AcceptServer pins what [Client.ReviewServer] has shown.
func (c *Client) AcceptServer(ctx context.Context, name string, offers []Offer, approver string, key Signer) (s Server, err error) {
	r := AcceptRequest{Offers: slices.Clone(offers)}
	for i := range r.Offers {
		r.Offers[i].Text = "" // the digest says it
	}
	return s, c.signedJSON(ctx, http.MethodPost, reviewPath(name), r, &s, approver, key)
}

func reviewPath(name string) string { return "/v1/servers/" + url.PathEscape(name) + "/review" }

// RemoveServer unregisters a server.
func (c *Client) RemoveServer(ctx context.Context, name, approver string, key Signer) error {
	return c.signedJSON(ctx, http.MethodDelete, "/v1/servers/"+url.PathEscape(name), struct{}{}, new(struct{}), approver, key)
}

// Tail yields events from an index on, of one run if run is not empty.
func (c *Client) Tail(ctx context.Context, from uint64, run vault.TaskID, follow, disclose bool, out func(json.RawMessage) error) error {
	q := url.Values{"from": {strconv.FormatUint(from, 10)}}
	if run != "" {
		q.Set("run", string(run))
	}
	if follow {
		q.Set("follow", "")
	}
	if disclose {
		q.Set("disclose", "")
	}
	return c.frames(ctx, http.MethodGet, "/v1/events?"+q.Encode(), nil, "", nil, func(f Frame) error { return out(f.Event) })
}

// Decisions yields decisions in the form of OPA's decision log: event is empty where
// left says that it was dropped.
func (c *Client) Decisions(ctx context.Context, r DecisionsRequest, out func(event json.RawMessage, left string) error) error {
	return c.frames(ctx, http.MethodGet, "/v1/decisions?"+r.query().Encode(), nil, "", nil, func(f Frame) error { return out(f.Event, f.Left) })
}

// Prove returns the inclusion proof of one event as a tlog-proof.
func (c *Client) Prove(ctx context.Context, index uint64) ([]byte, error) {
	return c.raw(ctx, "/v1/events/"+strconv.FormatUint(index, 10)+"/proof")
}

// Metrics returns the metrics in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) { return c.raw(ctx, "/v1/metrics") }

// Samples returns the metrics as a list of names, labels and values.
func (c *Client) Samples(ctx context.Context) (list json.RawMessage, err error) {
	return list, c.json(ctx, http.MethodGet, "/v1/samples", nil, &list)
}

// Anchor asks everybody who vouches for the ledger now and says how far they are.
func (c *Client) Anchor(ctx context.Context) (a []Anchor, err error) {
	return a, c.json(ctx, http.MethodPost, "/v1/anchor", nil, &a)
}

// Export returns an evidence bundle.
func (c *Client) Export(ctx context.Context, r ExportRequest) ([]byte, error) {
	return c.raw(ctx, "/v1/export?"+r.query().Encode())
}

// Erase erases a field, or what was recorded for a principal.
func (c *Client) Erase(ctx context.Context, r EraseRequest, approver string, key Signer) (e Erasure, err error) {
	return e, c.signedJSON(ctx, http.MethodPost, "/v1/erase", r, &e, approver, key)
}

func (c *Client) raw(ctx context.Context, path string) ([]byte, error) {
	res, err := c.do(ctx, http.MethodGet, path, nil, "", nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return b, nil
}
