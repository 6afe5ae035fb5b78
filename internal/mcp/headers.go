package mcp

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault"
)

// The headers of Streamable HTTP in canonical form.
const (
	headerVersion = "Mcp-Protocol-Version"
	headerSession = "Mcp-Session-Id"
	headerLastID  = "Last-Event-Id"
	headerMethod  = "Mcp-Method"
	headerName    = "Mcp-Name"
	headerParam   = "Mcp-Param-"
)

// A binding says that an argument of a tool is repeated in a header, after the
// schema keyword x-mcp-header (2026-07-28, SEP-2243).
type binding struct {
	path   []string
	header string // without Mcp-Param-
}

// bindingsOf reads the x-mcp-header annotations of an input schema.
func bindingsOf(schema json.RawMessage) ([]binding, error) {
	if schema == nil || schema[0] != '{' {
		return nil, nil
	}
	var out []binding
	err := collectBindings(schema, nil, &out)
	slices.SortFunc(out, func(a, b binding) int { return strings.Compare(strings.ToLower(a.header), strings.ToLower(b.header)) })
	for i := range out {
		if i > 0 && strings.EqualFold(out[i].header, out[i-1].header) {
			return nil, fmt.Errorf("x-mcp-header %s stands twice", out[i].header)
		}
	}
	return out, err
}

func collectBindings(schema []byte, path []string, out *[]binding) error {
	props := member(schema, "properties")
	if props == nil || props[0] != '{' {
		return nil
	}
	return members(props, func(key, prop []byte) error {
		if prop[0] != '{' {
			return nil
		}
		at := append(slices.Clone(path), string(key))
		if raw := member(prop, "x-mcp-header"); raw != nil {
			name, ok := plainString(raw)
			if !ok || !validToken(name) {
				return errors.New("x-mcp-header is no header name")
			}
			switch kind, _ := plainString(member(prop, "type")); kind {
			case "string", "integer", "boolean":
			default:
				return fmt.Errorf("x-mcp-header %s on an argument that is no string, integer or boolean", name)
			}
			*out = append(*out, binding{at, name})
		}
		return collectBindings(prop, at, out)
	})
}

// validToken reports whether s is a token of RFC 9110 section 5.6.2 of bounded length.
func validToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

// value returns the header value of the bound argument before encoding. ok is false when
// the argument is absent or null; bad when it is nothing a header can carry.
func (b *binding) value(args vault.Value) (s string, ok, bad bool) {
	v := args
	for _, p := range b.path {
		v = v.Get(p)
	}
	switch v.Kind() {
	case vault.Absent, vault.Null:
		return "", false, false
	case vault.String:
		s, _ = v.Str()
		return s, true, len(s) > maxHeaderValue
	case vault.Bool:
		return v.Raw(), true, false
	case vault.Number:
		_, isInt := v.Int()
		return v.Raw(), true, !isInt
	default:
		return "", false, true
	}
}

// checkParamHeaders holds the Mcp-Param headers of a request against its arguments.
func checkParamHeaders(h http.Header, bindings []binding, args vault.Value) error {
	for i := range bindings {
		b := &bindings[i]
		name := http.CanonicalHeaderKey(headerParam + b.header)
		values := h[name]
		want, ok, bad := b.value(args)
		switch {
		case len(values) > 1:
			return fmt.Errorf("header %s stands twice", name)
		case bad:
			return fmt.Errorf("argument for header %s is no string, integer or boolean", name)
		case !ok && len(values) != 0:
			return fmt.Errorf("header %s without its argument", name)
		case !ok:
			continue
		case len(values) == 0:
			return fmt.Errorf("header %s is missing", name)
		}
		got, valid := decodeHeader(values[0])
		if !valid {
			return fmt.Errorf("header %s is no valid base64", name)
		}
		if got != want {
			return fmt.Errorf("header %s differs from the body", name)
		}
	}
	return nil
}

const (
	base64Prefix = "=?base64?"
	base64Suffix = "?="
)

// decodeHeader undoes encodeHeader.
func decodeHeader(s string) (string, bool) {
	if !strings.HasPrefix(s, base64Prefix) || !strings.HasSuffix(s, base64Suffix) || len(s) < len(base64Prefix)+len(base64Suffix) {
		return s, true
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s[len(base64Prefix) : len(s)-len(base64Suffix)])
	return string(b), err == nil
}

// encodeHeader makes any string fit to be a header value (SEP-2243): what is not
// printable ASCII, or would be changed or misread on the way, goes as base64.
func encodeHeader(s string) string {
	plain := s == "" || s[0] != ' ' && s[0] != '\t' && s[len(s)-1] != ' ' && s[len(s)-1] != '\t'
	for i := range len(s) {
		plain = plain && s[i] >= 0x20 && s[i] <= 0x7e
	}
	if plain && !(strings.HasPrefix(s, base64Prefix) && strings.HasSuffix(s, base64Suffix)) {
		return s
	}
	return base64Prefix + base64.StdEncoding.EncodeToString([]byte(s)) + base64Suffix
}

// nameParam returns the parameter that Mcp-Name repeats for a method, or "".
func nameParam(method string) string {
	switch method {
	case methodToolsCall, methodPromptsGet:
		return "name"
	case methodResourcesRead:
		return "uri"
	}
	return ""
}

// one returns the only value of a header; an absent one is "". A header that stands twice
// is an error, since two readers could take different ones.
func one(h http.Header, canonical string) (string, error) {
	v := h[canonical]
	switch len(v) {
	case 0:
		return "", nil
	case 1:
		return strings.Trim(v[0], " \t"), nil
	}
	return "", fmt.Errorf("header %s stands twice", canonical)
}

// checkMethodHeaders holds Mcp-Method and Mcp-Name against the body.
func checkMethodHeaders(h http.Header, method string, params vault.Value) error {
	got, err := one(h, headerMethod)
	switch {
	case err != nil:
		return err
	case got == "":
		return errors.New("header Mcp-Method is missing")
	case got != method:
		return errors.New("header Mcp-Method differs from the body")
	}
	field := nameParam(method)
	if field == "" {
		return nil
	}
	want, _ := params.Get(field).Str()
	got, err = one(h, headerName)
	if err != nil {
		return err
	}
	if got == "" {
		return errors.New("header Mcp-Name is missing")
	}
	if decoded, ok := decodeHeader(got); !ok || decoded != want {
		return errors.New("header Mcp-Name differs from the body")
	}
	return nil
}

// accepts reports whether the client takes JSON, and whether it takes SSE, and which of
// them it names first.
func accepts(values []string) (json, stream, streamFirst bool) {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			base, _, _ := strings.Cut(part, ";")
			switch strings.ToLower(strings.TrimSpace(base)) {
			case "application/json", "application/*":
				json = true
			case "text/event-stream", "text/*":
				stream = true
			case "*/*":
				json, stream = true, true
			}
			streamFirst = streamFirst || stream && !json
		}
	}
	return json, stream, streamFirst
}

func mediaType(v string) string {
	base, _, _ := strings.Cut(v, ";")
	return strings.ToLower(strings.TrimSpace(base))
}

// credential copies the proof that stands in headers. Binding is not among it: that
// is what the transport proves.
func credential(h http.Header, c *vault.Credential) error {
	for _, p := range [...]struct {
		name  string
		field *[]byte
	}{
		{"Vault-Session", &c.Session}, {"Vault-Mac", &c.MAC}, {"Vault-Nonce", &c.Nonce}, {"Vault-Signature", &c.Signature},
	} {
		name, field := p.name, p.field
		raw, err := one(h, name)
		if err != nil {
			return err
		}
		if raw == "" {
			continue
		}
		if *field, err = base64.RawURLEncoding.Strict().DecodeString(raw); err != nil || len(*field) > 128 {
			return fmt.Errorf("header %s is no base64url of at most 128 bytes", name)
		}
	}
	raw, err := one(h, "Vault-Seq")
	if err != nil || raw == "" {
		return err
	}
	if c.Seq, err = strconv.ParseUint(raw, 10, 64); err != nil {
		return errors.New("header Vault-Seq is no number")
	}
	return nil
}

// allowedHost reports whether a Host header names this listener: an allowed host,
// or with none configured the loopback interface. A web page that rebinds its own
// name to our address still sends its own name.
func allowedHost(host string, allowed []string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if len(allowed) > 0 {
		return slices.Contains(allowed, strings.ToLower(host)) || slices.Contains(allowed, name)
	}
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// allowedOrigin reports whether an Origin header, if there is one, is of this
// listener. Programs send none; browsers always do on POST.
func allowedOrigin(h http.Header, allowed []string) bool {
	values := h["Origin"]
	if len(values) == 0 {
		return true
	}
	if len(values) > 1 {
		return false
	}
	u, err := url.Parse(values[0])
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return false
	}
	return allowedHost(u.Host, allowed)
}
