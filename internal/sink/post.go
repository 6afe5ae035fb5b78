package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// maxHeaders bounds the file with headers, maxCA the one with certificates.
const (
	maxHeaders = 16 << 10
	maxCA      = 1 << 20
)

// NewClient returns a client for a receiver that the operator named. It follows no
// redirect, trusts the certificates in the file ca, or those of the host if that is
// empty, and adds the headers that stand in the file headers, if that is not, to
// each request. It refuses what [CheckURL] does.
func NewClient(ca, headers string) (*http.Client, error) {
	conf, err := tlsConfig(ca)
	if err != nil {
		return nil, err
	}
	t := &transport{headers: headers, next: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    10 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    1,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}}
	if _, err := t.header(); err != nil {
		return nil, err
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// tlsConfig trusts the certificates in a file, or those of the host without one.
func tlsConfig(ca string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca == "" {
		return conf, nil
	}
	b, err := readBounded(ca, maxCA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("ca: no certificate in %s", ca)
	}
	return conf, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, nil
}

// CheckURL accepts https, and http on loopback.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("url: not a URL") // the cause would quote what may hold a password
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return errors.New("url: want https without user, query or fragment, or http on loopback; a credential stands in the file that headers names")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// WithPath adds a path to a URL without one, as OTEL_EXPORTER_OTLP_ENDPOINT is read.
func WithPath(s, path string) string {
	u, err := url.Parse(s)
	if err != nil || u.Path != "" && u.Path != "/" {
		return s
	}
	u.Path = path
	return u.String()
}

// A transport adds headers to requests.
type transport struct {
	headers string // file; "" for none
	next    *http.Transport
}

// CloseIdleConnections closes what is open and not in use.
func (t *transport) CloseIdleConnections() { t.next.CloseIdleConnections() }

// RoundTrip sends a request with the headers of the file as it is now.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := CheckURL(req.URL.String()); err != nil {
		return nil, err
	}
	h, err := t.header()
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	for name, values := range h {
		req.Header[name] = values
	}
	return t.next.RoundTrip(req)
}

// header reads the file with headers. Whoever can read it can write to the
// receiver in our name, so nobody else may.
func (t *transport) header() (http.Header, error) {
	if t.headers == "" {
		return nil, nil
	}
	info, err := os.Stat(t.headers)
	if err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("headers: %s can be reached by others (mode %v): chmod 600 it", t.headers, info.Mode())
	}
	b, err := readBounded(t.headers, maxHeaders)
	if err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	h, err := parseHeaders(b)
	if err != nil {
		return nil, fmt.Errorf("headers: %s: %w", t.headers, err)
	}
	return h, nil
}

// ours are headers that say what we send and to whom.
var ours = []string{"Connection", "Content-Encoding", "Content-Length", "Content-Type", "Host", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// parseHeaders reads one "Name: value" a line. An error names the line and never
// what stands in it.
func parseHeaders(b []byte) (http.Header, error) {
	h := http.Header{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || value == "" || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("line %d: want a header, Name: value", n)
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if slices.Contains(ours, name) {
			return nil, fmt.Errorf("line %d: %s is not yours to say", n, name)
		}
		h.Add(name, value)
	}
	if lines.Err() != nil {
		return nil, errors.New("a line is too long")
	}
	return h, nil
}

// A post sends bodies to one URL.
type post struct {
	client *http.Client
	url    string
}

// send posts a body and returns the answer, if the receiver took it.
func (p *post) send(ctx context.Context, kind string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("User-Agent", "pvault")
	res, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	case res.StatusCode == http.StatusRequestEntityTooLarge:
		return nil, errTooLarge
	case res.StatusCode < 200 || res.StatusCode > 299:
		return nil, fmt.Errorf("the receiver answers %d", res.StatusCode) // its words may quote a token or a field
	}
	return answer, nil
}

// An httpTarget posts events to a receiver: CloudEvents as a batch, the other forms one
// to a line.
type httpTarget struct {
	post   *post
	format Format
}

func (t *httpTarget) send(ctx context.Context, batch []View) error {
	kind, begin, sep, end := "application/x-ndjson", "", "\n", "\n"
	if t.format == CloudEvents {
		kind, begin, sep, end = "application/cloudevents-batch+json", "[", ",", "]"
	}
	b := []byte(begin)
	var err error
	for i := range batch {
		if i > 0 {
			b = append(b, sep...)
		}
		if b, err = t.format.Append(b, &batch[i]); err != nil {
			return err
		}
	}
	_, err = t.post.send(ctx, kind, append(b, end...))
	return err
}
