// Package sink ships the events of the ledger outside: to a file, an HTTP
// receiver, an OpenTelemetry collector or a syslog server.
//
// It owns the forms of other systems, the requests, their pace, and how far each
// receiver is, which it keeps in a directory. It does not own the events (a
// [Source] has them) or their place. Start with [Open].
//
// It promises: nothing waits for it; each event is delivered at least once and in
// order, with what identifies it, so that a receiver can drop what it has twice; a
// receiver that is down loses nothing and costs one batch of memory; the exact leaf
// leaves and no sensitive field but those that the configuration names; no redirect
// is followed and every answer is bounded.
package sink

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A Source is the ledger, as far as sinks need it. It is safe for concurrent use.
type Source interface {
	// Size returns how many events are on disk, and a channel that is closed when
	// there are more.
	Size() (n uint64, grown <-chan struct{})
	// Events yields those in [from, to), with what is kept of their fields if open is
	// set.
	Events(ctx context.Context, from, to uint64, open bool) iter.Seq2[Event, error]
}

// An Event is one record of the ledger.
type Event struct {
	Leaf   *evidence.Leaf
	Raw    []byte // the exact leaf
	Hash   vault.Digest
	Fields []evidence.Opened // empty if not asked for, or erased
}

// A Kind says what a sink talks to. The zero Kind is invalid.
type Kind string

// The kinds.
const (
	File   Kind = "file"   // lines appended to a file
	HTTP   Kind = "http"   // CloudEvents or lines, posted
	OTLP   Kind = "otlp"   // OpenTelemetry logs over HTTP, protobuf
	Syslog Kind = "syslog" // RFC 5424 over TCP or TLS, counted as in RFC 6587
)

// Config describes one sink.
type Config struct {
	// Name names the sink in lists, metrics and the file of its cursor:
	// [a-z0-9-], up to 32 bytes. Required.
	Name string
	// Kind is what it talks to. Required.
	Kind Kind
	// URL is where kinds http and otlp post: https, or http on loopback.
	URL string
	// File is the path that kind file appends to, absolute.
	File string
	// Address is where kind syslog connects: tls://host:port, or tcp://host:port on
	// loopback.
	Address string
	// Format is the form of an event. Empty: the first of the kind's [Formats].
	Format Format
	// Classes are the classes that leave. Empty: all.
	Classes []vault.Class
	// Headers is a file of mode 0600 with one "Name: value" a line, for kinds http
	// and otlp. It is read for every batch, so that what it holds can be replaced.
	// Empty: none.
	Headers string
	// CA is a file with the certificates (PEM) that the receiver's must lead to.
	// Empty: those of the host.
	CA string
	// Fields are the sensitive fields that leave as they are. Those of them that name
	// somebody leave as pseudonyms if they are not listed; [NoFields] alone keeps
	// these too.
	Fields []string
}

// NoFields in [Config.Fields] means that not even pseudonyms leave.
const NoFields = "none"

// Options is what all sinks of a daemon share.
type Options struct {
	// Dir keeps the cursors. Required.
	Dir string
	// Log is the origin of the ledger. A cursor of another one refuses. Required.
	Log string
	// Key makes pseudonyms. Required.
	Key evidence.Salt
	// Version is what the daemon calls itself.
	Version string
	// Linger is how long the first event of a batch waits for more. Zero: 250 ms.
	Linger time.Duration
	// Logger gets what an operator must know. Nil: nothing.
	Logger *slog.Logger
}

// Bounds. What a sink holds in memory is one batch and its encoding.
const (
	maxSinks   = 16       // of a daemon
	maxBatch   = 512      // events
	maxBytes   = 1 << 20  // of leaves and fields in a batch; one event may be larger
	maxScan    = 4096     // events looked at for one batch, which a filter can all drop
	maxAnswer  = 64 << 10 // bytes of an answer
	maxError   = 300      // bytes of an error that are shown
	sendTime   = 20 * time.Second
	firstPause = time.Second // after a failure; it doubles
	lastPause  = time.Minute
)

// errTooLarge means that the receiver takes no batch of this size.
var errTooLarge = errors.New("the receiver says that the batch is too large")

// A target is the other end of a sink. send returns nil when the batch is kept
// there; after an error all of it may be kept, a part or nothing. An error that is
// errTooLarge asks for a smaller batch. Calls come one at a time.
type target interface {
	send(ctx context.Context, batch []View) error
}

// A Status says how far a sink is.
type Status struct {
	Name  string    `json:"name"`
	Kind  Kind      `json:"kind"`
	Next  uint64    `json:"next"`            // index of the first event that is not delivered
	At    time.Time `json:"at,omitzero"`     // when it last delivered something
	Error string    `json:"error,omitempty"` // of the last attempt, if that failed
	// Refused counts events that an OpenTelemetry collector took the batch of and
	// said that it dropped.
	Refused uint64 `json:"refused,omitempty"`
}

// Sinks are the sinks of a daemon.
type Sinks struct{ list []*sink }

type sink struct {
	Config
	Options
	source Source
	target target
	fields fields
	cursor cursor
	limit  int // events in a batch, less than maxBatch where the receiver wants it

	mu     sync.Mutex // guards status
	status Status
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Check reports what is wrong with c, touching nothing outside.
func (c *Config) Check() error {
	if !nameForm.MatchString(c.Name) {
		return fmt.Errorf("name %q: want 1 to 32 of a-z, 0-9 and -", c.Name)
	}
	formats, ok := Formats[c.Kind]
	if !ok {
		return fmt.Errorf("kind %q: want file, http, otlp or syslog", c.Kind)
	}
	if c.Format != "" && !slices.Contains(formats, c.Format) {
		return fmt.Errorf("format %q: kind %s writes %v", c.Format, c.Kind, formats)
	}
	net := c.Kind == HTTP || c.Kind == OTLP
	for _, key := range []struct {
		name, value string
		want, may   bool
	}{
		{"url", c.URL, net, net},
		{"file", c.File, c.Kind == File, c.Kind == File},
		{"address", c.Address, c.Kind == Syslog, c.Kind == Syslog},
		{"headers", c.Headers, false, net},
		{"ca", c.CA, false, c.Kind != File},
	} {
		switch {
		case key.want && key.value == "":
			return fmt.Errorf("%s is missing: kind %s needs it", key.name, c.Kind)
		case !key.may && key.value != "":
			return fmt.Errorf("%s: kind %s has no use for it", key.name, c.Kind)
		}
	}
	for _, class := range c.Classes {
		if vault.FieldsOf(class) == nil {
			return fmt.Errorf("classes: no class %q", class)
		}
	}
	if err := checkFields(c.Fields); err != nil {
		return err
	}
	if len(c.Fields) > 0 && c.Fields[0] != NoFields && c.format() == Leaf {
		return errors.New("fields: format leaf is the leaf alone, and fields stand beside it; take format json or ocsf")
	}
	switch c.Kind {
	case HTTP, OTLP:
		return CheckURL(c.URL)
	case Syslog:
		_, _, err := parseAddress(c.Address)
		return err
	case File:
		if !filepath.IsAbs(c.File) {
			return fmt.Errorf("file %q: want an absolute path", c.File)
		}
	}
	return nil
}

func (c *Config) format() Format {
	if c.Format != "" {
		return c.Format
	}
	return Formats[c.Kind][0]
}

// CheckAll reports what is wrong with a list of sinks.
func CheckAll(list []Config) error {
	if len(list) > maxSinks {
		return fmt.Errorf("%d sinks, more than %d", len(list), maxSinks)
	}
	seen := map[string]bool{}
	for i := range list {
		if err := list[i].Check(); err != nil {
			return fmt.Errorf("sinks[%d]: %w", i, err)
		}
		for _, name := range []string{"name " + list[i].Name, "file " + list[i].File} {
			if seen[name] && name != "file " {
				return fmt.Errorf("sinks[%d]: %s is taken by another sink", i, name)
			}
			seen[name] = true
		}
	}
	return nil
}

// Open reads how far each sink is. It connects to nobody: a receiver that is down
// is no reason not to start.
func Open(source Source, list []Config, o Options) (*Sinks, error) {
	if err := CheckAll(list); err != nil {
		return nil, err
	}
	if o.Linger == 0 {
		o.Linger = 250 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("sinks: %w", err)
	}
	all := &Sinks{}
	for _, c := range list {
		s := &sink{Config: c, Options: o, source: source, limit: maxBatch}
		var err error
		if s.cursor, err = openCursor(filepath.Join(o.Dir, c.Name+".cursor"), o.Log); err != nil {
			return nil, fmt.Errorf("sink %s: %w", c.Name, err)
		}
		if size, _ := source.Size(); s.cursor.next > size {
			return nil, fmt.Errorf("sink %s: %s says that %d events were delivered, and the ledger has %d", c.Name, s.cursor.path, s.cursor.next, size)
		}
		if s.target, err = s.open(); err != nil {
			return nil, fmt.Errorf("sink %s: %w", c.Name, err)
		}
		s.fields = newFields(c.Fields, c.format(), &o.Key)
		s.status = Status{Name: c.Name, Kind: c.Kind, Next: s.cursor.next}
		all.list = append(all.list, s)
	}
	return all, nil
}

func (s *sink) open() (target, error) {
	switch s.Kind {
	case File:
		return &fileTarget{path: s.File, format: s.format()}, nil
	case HTTP, OTLP:
		client, err := NewClient(s.CA, s.Headers)
		if err != nil {
			return nil, err
		}
		p := &post{client: client, url: s.URL}
		if s.Kind == OTLP {
			p.url = WithPath(p.url, "/v1/logs")
			return &otlpTarget{post: p, log: s.Log, version: s.Version, refused: s.refuse}, nil
		}
		return &httpTarget{post: p, format: s.format()}, nil
	case Syslog:
		return newSyslog(s.Address, s.CA, s.format())
	}
	return nil, fmt.Errorf("kind %q", s.Kind)
}

// Run ships events until ctx is done.
func (s *Sinks) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, one := range s.list {
		wg.Go(func() { one.run(ctx) })
	}
	wg.Wait()
}

// Status says how far each sink is.
func (s *Sinks) Status() []Status {
	var out []Status
	for _, one := range s.list {
		one.mu.Lock()
		out = append(out, one.status)
		one.mu.Unlock()
	}
	return out
}

func (s *sink) run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		size, grown := s.source.Size()
		if s.cursor.next >= size {
			select {
			case <-grown:
			case <-ctx.Done():
			}
			continue
		}
		if size-s.cursor.next < maxBatch && !wait(ctx, s.Linger) {
			break
		}
		err := s.ship(ctx)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errTooLarge) && s.limit > 1:
			s.limit /= 2
		case err != nil:
			s.fail(ctx, err)
			wait(ctx, pause)
			pause = min(2*pause, lastPause)
		default:
			pause = firstPause
			s.limit = min(2*s.limit, maxBatch)
		}
	}
	if err := s.cursor.save(); err != nil {
		s.Logger.WarnContext(ctx, "cursor of a sink not saved; some events will be sent again", "sink", s.Name, "err", err)
	}
}

// wait returns false if ctx was done first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ship delivers the next batch and moves the cursor behind it. The order is what
// makes it at least once: delivered first, then noted.
func (s *sink) ship(ctx context.Context) error {
	batch, next, err := s.read(ctx)
	if err != nil {
		return err
	}
	if len(batch) > 0 {
		ctx, cancel := context.WithTimeout(ctx, sendTime)
		defer cancel()
		if err := s.target.send(ctx, batch); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.status.Next, s.status.Error = next, ""
	if len(batch) > 0 {
		s.status.At = time.Now().UTC()
	}
	s.mu.Unlock()
	// What the filter dropped is cheap to look at again, so it waits for the next
	// write.
	s.cursor.next = next
	if len(batch) == 0 && s.cursor.behind() < maxScan {
		return nil
	}
	return s.cursor.save()
}

// read returns the next batch, and the index after the last event that was looked at.
func (s *sink) read(ctx context.Context) (batch []View, next uint64, err error) {
	size, _ := s.source.Size()
	next = s.cursor.next
	bytes := 0
	for e, err := range s.source.Events(ctx, next, min(size, next+maxScan), s.fields.any()) {
		if err != nil {
			return nil, 0, fmt.Errorf("read event %d: %w", next, err)
		}
		if e.Leaf.Index != next {
			return nil, 0, fmt.Errorf("read event %d: the ledger gave %d", next, e.Leaf.Index)
		}
		if len(s.Classes) == 0 || slices.Contains(s.Classes, e.Leaf.Class) {
			v := s.fields.view(&e)
			if bytes += v.size(); len(batch) > 0 && bytes > maxBytes {
				break
			}
			batch = append(batch, v)
		}
		if next++; len(batch) >= s.limit {
			break
		}
	}
	return batch, next, nil
}

// fail notes an error and logs it once, not at every attempt.
func (s *sink) fail(ctx context.Context, err error) {
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError] + "…"
	}
	s.mu.Lock()
	was := s.status.Error
	s.status.Error = text
	s.mu.Unlock()
	if was != text {
		s.Logger.WarnContext(ctx, "events not delivered; they wait in the ledger", "sink", s.Name, "err", err)
	}
}

// refuse counts events that the receiver took and dropped.
func (s *sink) refuse(ctx context.Context, n uint64, why string) {
	s.mu.Lock()
	s.status.Refused += n
	s.mu.Unlock()
	s.Logger.WarnContext(ctx, "the receiver dropped events", "sink", s.Name, "events", n, "why", why)
}
