package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/sink"
)

// A Sink is a receiver outside that events are shipped to.
type Sink struct {
	Name    string   `yaml:"name"`    // a-z, 0-9 and -; names it in lists, metrics and the file of its cursor
	Kind    string   `yaml:"kind"`    // file, http, otlp, syslog
	URL     string   `yaml:"url"`     // http, otlp: https, or http on loopback
	File    string   `yaml:"file"`    // file: path, relative to vault.yaml
	Address string   `yaml:"address"` // syslog: tls://host:port, or tcp://host:port on loopback
	Format  string   `yaml:"format"`  // json, ocsf, cloudevents or leaf; "" means the kind's own
	Classes []string `yaml:"classes"` // of events; empty means all
	Headers string   `yaml:"headers"` // http, otlp: file of mode 0600 with one "Name: value" a line, relative to vault.yaml
	CA      string   `yaml:"ca"`      // PEM file that the receiver's certificate leads to, relative to vault.yaml; "" means the host's
	Fields  []string `yaml:"fields"`  // sensitive fields that leave in the clear; none: not even pseudonyms
}

// sinks are the sinks as their package knows them.
func (c *Config) sinks() []sink.Config {
	var out []sink.Config
	for _, s := range c.Sinks {
		n := sink.Config{
			Name: s.Name, Kind: sink.Kind(s.Kind), URL: s.URL, File: s.File, Address: s.Address, Format: sink.Format(s.Format),
			Headers: s.Headers, CA: s.CA, Fields: s.Fields,
		}
		for _, class := range s.Classes {
			n.Classes = append(n.Classes, vault.Class(class))
		}
		out = append(out, n)
	}
	return out
}

func (c *Config) checkSinks() error {
	if err := sink.CheckAll(c.sinks()); err != nil {
		return err
	}
	for i, s := range c.Sinks {
		if s.File == "" {
			continue
		}
		// Lexically too: neither may be there yet.
		if rel, err := filepath.Rel(c.Data, s.File); err == nil && filepath.IsLocal(rel) || within(s.File, c.Data) {
			return fmt.Errorf("sinks[%d]: file %s is in the data directory, which is Vault's own: put it elsewhere", i, s.File)
		}
	}
	return nil
}

// pseudonymKey names the key of the pseudonyms that leave. Like @daemon it is no run.
const pseudonymKey = "@pseudonym"

func (d *Daemon) openSinks(context.Context) error {
	if len(d.conf.Sinks) == 0 {
		return nil
	}
	b, err := d.keys.DataKey(pseudonymKey)
	if err != nil {
		return err
	}
	d.sinks, err = sink.Open(sinkSource{d.ledger}, d.conf.sinks(), sink.Options{
		Dir: d.path(sinksDir), Log: d.origin(), Key: evidence.Salt(b), Version: Version, Logger: d.log,
	})
	return err
}

// A sinkSource shows the ledger to sinks.
type sinkSource struct{ ledger *ledger.Ledger }

// Size returns how many events are on disk, and a channel that is closed when there
// are more.
func (s sinkSource) Size() (uint64, <-chan struct{}) {
	head, grown := s.ledger.Watch()
	return head.Size, grown
}

// Events yields those in [from, to).
func (s sinkSource) Events(ctx context.Context, from, to uint64, open bool) iter.Seq2[sink.Event, error] {
	return func(yield func(sink.Event, error) bool) {
		for r, err := range s.ledger.Records(ctx, from, to, "", open) {
			var e sink.Event
			if err == nil {
				e = sink.Event{Leaf: &r.Leaf, Hash: r.Hash, Fields: r.Fields}
				e.Raw, err = r.Append(nil)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (d *Daemon) sinkStatus() []admin.Sink {
	if d.sinks == nil {
		return nil
	}
	head := d.ledger.Head().Size
	var out []admin.Sink
	for _, s := range d.sinks.Status() {
		out = append(out, admin.Sink{Name: s.Name, Kind: string(s.Kind), Next: s.Next, Lag: head - min(s.Next, head), At: s.At, Error: s.Error, Refused: s.Refused})
	}
	return out
}

// leaving says which sensitive fields a sink sends in the clear; empty for none.
func (s *Sink) leaving() []string {
	if slices.Contains(s.Fields, sink.NoFields) {
		return nil
	}
	return s.Fields
}

// sinkWarnings says which sensitive fields leave.
func (c *Config) sinkWarnings() (w []string) {
	for _, s := range c.Sinks {
		if f := s.leaving(); len(f) > 0 {
			w = append(w, fmt.Sprintf("sink %s ships sensitive fields in the clear, where they cannot be erased: %s", s.Name, strings.Join(f, ", ")))
		}
	}
	return w
}

// EventForms are the forms of other systems that [FormatEvent] writes.
var EventForms = []string{"cloudevents", "ocsf", "syslog"}

// FormatEvent puts an event, as the daemon's API gives it, into one of [EventForms],
// without its sensitive fields.
func FormatEvent(form string, event json.RawMessage) ([]byte, error) {
	v, err := sink.Parse(event)
	if err != nil {
		return nil, err
	}
	if form == "syslog" {
		return sink.AppendSyslog(nil, &v, sink.Leaf)
	}
	return sink.Format(form).Append(nil, &v)
}
