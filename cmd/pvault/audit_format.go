package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// An eventFilter chooses events; the zero one takes them all.
type eventFilter struct{ classes, phases []string }

func (f *eventFilter) takes(raw json.RawMessage) (bool, error) {
	if len(f.classes)+len(f.phases) == 0 {
		return true, nil
	}
	var e struct{ Leaf struct{ Class, Phase string } }
	if err := json.Unmarshal(raw, &e); err != nil {
		return false, fmt.Errorf("decode event: %w", err)
	}
	return (len(f.classes) == 0 || slices.Contains(f.classes, e.Leaf.Class)) &&
		(len(f.phases) == 0 || slices.Contains(f.phases, e.Leaf.Phase)), nil
}

// tailFormats are the forms of other systems. They hold the exact leaf, which has
// no sensitive field, so that whoever receives it can hold it against a bundle.
var tailFormats = map[string]func(io.Writer, json.RawMessage) error{
	"":            nil,
	"cloudevents": writeCloudEvent,
	"syslog":      writeSyslog,
}

// openEvent parses an event of the daemon, its leaf as strictly as a verifier does.
func openEvent(raw json.RawMessage) (*evidence.Leaf, json.RawMessage, vault.Digest, error) {
	var e struct {
		Leaf json.RawMessage
		Hash vault.Digest
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, nil, vault.Digest{}, fmt.Errorf("decode event: %w", err)
	}
	l, err := evidence.ParseLeaf(e.Leaf)
	if err != nil {
		return nil, nil, vault.Digest{}, fmt.Errorf("decode event: %w", err)
	}
	return l, e.Leaf, e.Hash, nil
}

// writeCloudEvent writes an event as a CloudEvent 1.0 in the JSON format. Source and
// id together are unique, so that a receiver can drop what it has twice.
func writeCloudEvent(w io.Writer, raw json.RawMessage) error {
	l, leaf, hash, err := openEvent(raw)
	if err != nil {
		return err
	}
	host, path, _ := strings.Cut(l.Log, "/")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // the leaf is exact bytes
	err = enc.Encode(struct {
		SpecVersion string          `json:"specversion"`
		ID          string          `json:"id"`
		Source      string          `json:"source"`
		Type        string          `json:"type"`
		Subject     string          `json:"subject,omitempty"`
		Time        time.Time       `json:"time"`
		ContentType string          `json:"datacontenttype"`
		LeafHash    string          `json:"leafhash"`
		Data        json.RawMessage `json:"data"`
	}{
		SpecVersion: "1.0", ID: fmt.Sprint(l.Index), Source: (&url.URL{Host: host, Path: "/" + path}).String(),
		Type: "dev.pilox.vault." + string(l.Class) + "." + string(l.Phase), Subject: string(l.Run), Time: l.Time,
		ContentType: "application/json", LeafHash: hash.String(), Data: leaf,
	})
	if err != nil {
		return fmt.Errorf("write event %d: %w", l.Index, err)
	}
	return nil
}

// Priorities of RFC 5424: facility 13, log audit, with severity warning and
// informational.
const (
	syslogRefused = 13*8 + 4
	syslogOther   = 13*8 + 6
)

// writeSyslog writes an event as one line of RFC 5424. The message is the leaf: in
// canonical JSON every control character below space is escaped, so none ends the
// line early.
func writeSyslog(w io.Writer, raw json.RawMessage) error {
	l, leaf, _, err := openEvent(raw)
	if err != nil {
		return err
	}
	priority := syslogOther
	if l.Verdict != vault.Allow {
		priority = syslogRefused
	}
	_, err = fmt.Fprintf(w, "<%d>1 %s %s pvault - %s.%s - %s\n", priority, l.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), syslogHost(l.Log), l.Class, l.Phase, leaf)
	return err
}

// syslogHost makes a HOSTNAME of a ledger's name: printable ASCII without spaces,
// up to 255 bytes.
func syslogHost(log string) string {
	b := []byte(log)
	for i, c := range b {
		if c <= ' ' || c > '~' {
			b[i] = '_'
		}
	}
	return string(b[:min(len(b), 255)])
}
