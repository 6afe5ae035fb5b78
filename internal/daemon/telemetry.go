package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/pilox/vault/internal/console"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/sink"
	"github.com/pilox/vault/internal/telemetry"
)

// Telemetry says who is told how the daemon fares.
type Telemetry struct {
	Metrics MetricsListener `yaml:"metrics"`
	Traces  Traces          `yaml:"traces"`
}

// Traces says where spans go. The zero Traces is nowhere.
type Traces struct {
	URL     string  `yaml:"url"`     // of an OpenTelemetry collector: https, or http on loopback; "" means no traces
	Headers string  `yaml:"headers"` // file of mode 0600 with one "Name: value" a line, relative to vault.yaml
	CA      string  `yaml:"ca"`      // PEM file that the collector's certificate leads to, relative to vault.yaml
	Sample  float64 `yaml:"sample"`  // share of calls, up to 1; zero means 1
}

func (c *Traces) check() error {
	switch {
	case c.URL == "" && *c != (Traces{}):
		return errors.New("telemetry.traces: url is missing")
	case c.URL == "":
		return nil
	case !(c.Sample >= 0 && c.Sample <= 1): // so that NaN is refused
		return fmt.Errorf("telemetry.traces.sample %v: want 0 to 1", c.Sample)
	}
	if err := sink.CheckURL(c.URL); err != nil {
		return fmt.Errorf("telemetry.traces: %w", err)
	}
	return nil
}

// A MetricsListener serves metrics to Prometheus. The zero MetricsListener is none;
// pvault metrics works without it.
type MetricsListener struct {
	Address string `yaml:"address"` // loopback host:port; "" means no such listener
	Token   string `yaml:"token"`   // file of mode 0600 with the bearer token of the scraper, relative to vault.yaml
}

func (c *Telemetry) check() error {
	if err := c.Traces.check(); err != nil {
		return err
	}
	m := &c.Metrics
	if (m.Address == "") != (m.Token == "") {
		return errors.New("telemetry.metrics: address and token belong together: no route goes without authentication")
	}
	if m.Address == "" {
		return nil
	}
	return checkLoopback("telemetry.metrics.address", m.Address)
}

// openMetrics makes the counters, before the parts that count.
func (d *Daemon) openMetrics(context.Context) (err error) {
	d.metrics = telemetry.NewMetrics(d.state)
	if path := d.conf.Telemetry.Metrics.Token; path != "" {
		if d.scraper, err = readToken(path); err != nil {
			return fmt.Errorf("token: %w", err)
		}
	}
	return nil
}

// openTraces starts to follow calls, if the configuration says where to.
func (d *Daemon) openTraces(ctx context.Context) error {
	c := &d.conf.Telemetry.Traces
	if c.URL == "" {
		return nil
	}
	client, err := sink.NewClient(c.CA, c.Headers)
	if err != nil {
		return err
	}
	sample := c.Sample
	if sample == 0 {
		sample = 1
	}
	d.traces, err = telemetry.NewTraces(context.WithoutCancel(ctx), telemetry.TracesConfig{
		URL: sink.WithPath(c.URL, "/v1/traces"), Client: client, Sample: sample, Log: d.origin(), Version: Version, Logger: d.log,
	})
	if err != nil {
		return err
	}
	d.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesOnClose)
		defer cancel()
		if err := d.traces.Close(ctx); err != nil {
			d.log.WarnContext(ctx, "traces not delivered", "err", err)
		}
		return nil
	})
	return nil
}

// tracesOnClose is how long a stop waits for the last spans.
const tracesOnClose = time.Second

// A tracer follows calls for the gateway.
type tracer struct{ *telemetry.Traces }

// Stage says that the call of ctx enters a stage.
func (t tracer) Stage(ctx context.Context, s gateway.Stage) { t.Traces.Stage(ctx, string(s)) }

// state is what the metrics tell of the moment.
func (d *Daemon) state(context.Context) telemetry.State {
	s := telemetry.State{
		Version: Version, Events: d.ledger.Head().Size, Queue: d.ledger.Queue(), LedgerUp: d.ledger.Health() == nil,
		Pending: len(d.desk.Pending()), Servers: map[string]int{"ready": 0, "unpinned": 0, "broken": 0},
	}
	for _, a := range d.anchorStatus() {
		s.Anchors = append(s.Anchors, telemetry.Lag{Name: a.Target, Events: a.Lag, Failing: a.Error != ""})
	}
	for _, k := range d.sinkStatus() {
		s.Sinks = append(s.Sinks, telemetry.Lag{Name: k.Name, Events: k.Lag, Failing: k.Error != "", Dropped: k.Refused})
	}
	for _, server := range d.catalogue.Servers() {
		switch {
		case server.Broken != nil:
			s.Servers["broken"]++
		case !server.Pinned:
			s.Servers["unpinned"]++
		default:
			s.Servers["ready"]++
		}
	}
	if p := d.policy.Status(); !p.Revision.IsZero() {
		s.Rules = &telemetry.Rules{Evaluated: p.Evaluated, Shadowed: p.Shadowed, Mismatches: p.Mismatches, Age: p.Age, Failed: p.Err != nil}
	}
	return s
}

// Metrics writes the metrics in the text format of Prometheus.
func (b backend) Metrics(_ context.Context, w io.Writer) error { return b.d.metrics.Write(w) }

// Samples returns the metrics as numbers.
func (b backend) Samples(context.Context) (json.RawMessage, error) {
	list, err := b.d.metrics.Samples()
	if err != nil {
		return nil, err
	}
	return json.Marshal(list)
}

// Bounds of the scraper's token, in bytes. Below the first it can be guessed.
const (
	minToken = 32
	maxToken = 4096
)

// readToken reads the scraper's token.
func readToken(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be reached by others (mode %v): chmod 600 it", path, info.Mode())
	}
	if info.Size() > maxToken {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxToken)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken {
		return nil, fmt.Errorf("%s holds less than %d bytes: write a random token", path, minToken)
	}
	return []byte(token), nil
}

// listenMetrics opens the listener for Prometheus. There is one route, behind the
// token; whoever else asks gets the same answer for every path.
func (d *Daemon) listenMetrics(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.conf.Telemetry.Metrics.Address)
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	d.listeners.metrics = addr
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", d.metrics.Handler(d.log))
	d.serve(d.newServer(console.Guard(withToken(d.scraper, mux), addr, "localhost:"+port, "127.0.0.1:"+port)), l)
	return nil
}

// withToken serves whoever brings the token.
func withToken(token []byte, next http.Handler) http.Handler {
	want := sha256.Sum256(token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		sum := sha256.Sum256([]byte(got)) // of one length, so that time says nothing about it
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(sum[:], want[:]) != 1 {
			w.Header().Set("Www-Authenticate", `Bearer realm="pvault metrics"`)
			http.Error(w, "nothing here without authentication", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
