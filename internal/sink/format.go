package sink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A Format is the form of an event. Each is one line of JSON.
type Format string

// The formats. In all of them the exact leaf can be had back, to be held against a
// bundle.
const (
	Leaf        Format = "leaf"        // the leaf and nothing else
	JSON        Format = "json"        // {leaf, hash, fields}, as pvault audit tail --json
	CloudEvents Format = "cloudevents" // CloudEvents 1.0; data is the leaf
	OCSF        Format = "ocsf"        // OCSF 1.8; raw_data is the leaf
)

// Formats lists what each kind writes, the default first.
var Formats = map[Kind][]Format{
	File:   {JSON, OCSF, CloudEvents, Leaf},
	HTTP:   {CloudEvents, OCSF, JSON, Leaf},
	OTLP:   {JSON},
	Syslog: {Leaf, JSON, OCSF},
}

// Append appends v in form f, without a line end.
func (f Format) Append(b []byte, v *View) ([]byte, error) {
	var e any
	switch f {
	case Leaf:
		return append(b, v.Raw...), nil
	case JSON:
		e = record(v)
	case CloudEvents:
		e = cloudEvent(v)
	case OCSF:
		e = ocsf(v)
	default:
		return b, fmt.Errorf("format %q", f)
	}
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false) // the leaf is exact bytes
	if err := enc.Encode(e); err != nil {
		return b, fmt.Errorf("encode event %d: %w", v.Leaf.Index, err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// Parse reads an event in form [JSON], its leaf as strictly as a verifier does. Its
// fields stay behind.
func Parse(raw []byte) (View, error) {
	var e struct {
		Leaf json.RawMessage
		Hash vault.Digest
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return View{}, fmt.Errorf("decode event: %w", err)
	}
	l, err := evidence.ParseLeaf(e.Leaf)
	if err != nil {
		return View{}, fmt.Errorf("decode event: %w", err)
	}
	return View{Leaf: l, Raw: e.Leaf, Hash: e.Hash}, nil
}

func record(v *View) any {
	fields := map[string]string{}
	for _, f := range v.Fields {
		fields[f.Name] = f.Value
	}
	return struct {
		Leaf   json.RawMessage   `json:"leaf"`
		Hash   vault.Digest      `json:"hash"`
		Fields map[string]string `json:"fields,omitempty"`
	}{v.Raw, v.Hash, fields}
}

// eventType names what sort of event a leaf is.
func eventType(l *evidence.Leaf) string { return string(l.Class) + "." + string(l.Phase) }

// source is the ledger's origin as a URL reference.
func source(l *evidence.Leaf) string {
	host, path, _ := strings.Cut(l.Log, "/")
	return (&url.URL{Host: host, Path: "/" + path}).String()
}

// cloudEvent is an event in the JSON format of CloudEvents 1.0. Source and id
// together are unique, so that a receiver can drop what it has twice. Fields are
// extension attributes.
func cloudEvent(v *View) any {
	l := v.Leaf
	e := map[string]any{
		"specversion": "1.0", "id": fmt.Sprint(l.Index), "source": source(l), "type": "dev.pilox.vault." + eventType(l), "time": l.Time.UTC().Format(time.RFC3339Nano),
		"datacontenttype": "application/json", "leafhash": v.Hash.String(), "data": json.RawMessage(v.Raw),
	}
	if l.Run != "" {
		e["subject"] = string(l.Run)
	}
	for _, f := range v.Fields {
		e[f.Name] = f.Value
	}
	return e
}

// Priorities of RFC 5424: facility 13, log audit, with severity warning and
// informational.
const (
	syslogRefused = 13*8 + 4
	syslogOther   = 13*8 + 6
)

// AppendSyslog appends v as one message of RFC 5424 whose text is v in form f. In
// JSON every control character below space is escaped, so none ends it early.
func AppendSyslog(b []byte, v *View, f Format) ([]byte, error) {
	priority := syslogOther
	if v.Leaf.Verdict != vault.Allow {
		priority = syslogRefused
	}
	b = fmt.Appendf(b, "<%d>1 %s %s pvault - %s - ", priority, v.Leaf.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), syslogHost(v.Leaf.Log), eventType(v.Leaf))
	return f.Append(b, v)
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
