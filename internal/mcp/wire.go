package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"

	"github.com/pilox/vault"
)

var errMalformed = errors.New("malformed JSON-RPC message")

// A message is one JSON-RPC 2.0 message taken apart. Its fields are parts of the
// bytes it was scanned from; absent ones are nil.
type message struct {
	id     json.RawMessage // a string or an integer as written
	method string
	params json.RawMessage // an object
	result json.RawMessage // an object
	err    json.RawMessage // an object
}

// isCall reports whether m asks for an answer.
func (m *message) isCall() bool { return m.method != "" && m.id != nil }

// isResponse reports whether m answers a request.
func (m *message) isResponse() bool { return m.method == "" }

// scanMessage takes one message apart. It accepts any JSON (RFC 8259) in valid
// UTF-8 with at most maxDepth levels in which no object has a key twice: a message
// in which two readers can see two things is not passed on.
func scanMessage(b []byte) (message, error) {
	var m message
	if !utf8.Valid(b) {
		return m, errMalformed
	}
	s := scanner{b: b}
	version := false
	err := s.object(func(key, val []byte) error {
		switch string(key) {
		case "jsonrpc":
			version = string(val) == `"2.0"`
		case "id":
			if string(val) == "null" {
				return nil // errors about unreadable requests carry it
			}
			if !validID(val) {
				return errMalformed
			}
			m.id = val
		case "method":
			name, ok := plainString(val)
			if !ok || name == "" {
				return errMalformed
			}
			m.method = name
		case "params":
			m.params = val
		case "result":
			m.result = val
		case "error":
			m.err = val
		}
		return nil
	})
	if err != nil {
		return m, err
	}
	s.space()
	if s.i != len(b) || !version {
		return m, errMalformed
	}
	for _, part := range []json.RawMessage{m.params, m.result, m.err} {
		if part != nil && part[0] != '{' {
			return m, errMalformed
		}
	}
	if m.method != "" && (m.result != nil || m.err != nil) ||
		m.method == "" && (m.result == nil) == (m.err == nil) ||
		m.result != nil && m.id == nil {
		return m, errMalformed
	}
	return m, nil
}

// validID reports whether raw is a string of bounded length or an integer.
func validID(raw []byte) bool {
	const maxID = 256 // ids are echoed; no client needs more
	if len(raw) > maxID {
		return false
	}
	if raw[0] == '"' {
		return true
	}
	_, err := strconv.ParseInt(string(raw), 10, 64)
	return err == nil
}

// remoteError reads a JSON-RPC error object.
func remoteError(raw json.RawMessage) (*RemoteError, error) {
	e := &RemoteError{Raw: raw}
	hasCode, hasMessage := false, false
	s := scanner{b: raw}
	err := s.object(func(key, val []byte) (err error) {
		switch string(key) {
		case "code":
			e.Code, err = strconv.ParseInt(string(val), 10, 32)
			hasCode = err == nil
		case "message":
			hasMessage = val[0] == '"'
		}
		return err
	})
	if err != nil || !hasCode || !hasMessage {
		return nil, errMalformed
	}
	return e, nil
}

// members scans the members of a JSON object that was scanned before.
func members(raw []byte, fn func(key, val []byte) error) error {
	s := scanner{b: raw}
	return s.object(fn)
}

// member returns one member of an object that was scanned before, or nil.
func member(raw []byte, name string) (out json.RawMessage) {
	_ = members(raw, func(key, val []byte) error {
		if string(key) == name {
			out = val
		}
		return nil
	})
	return out
}

// plainString decodes a JSON string that was scanned before.
func plainString(raw []byte) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// appendQuoted appends s as a JSON string; bytes that are no UTF-8 become U+FFFD.
func appendQuoted(b []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = string(bytes.ToValidUTF8([]byte(s), []byte("\uFFFD")))
	}
	return vault.AppendQuoted(b, s)
}

// appendRequest appends a request, or a notification if id is empty.
func appendRequest(b []byte, id string, method string, params []byte) []byte {
	b = append(b, `{"jsonrpc":"2.0",`...)
	if id != "" {
		b = append(append(append(b, `"id":`...), id...), ',')
	}
	b = appendQuoted(append(b, `"method":`...), method)
	if params != nil {
		b = append(append(b, `,"params":`...), params...)
	}
	return append(b, '}')
}

// appendResult appends a response with a result object.
func appendResult(b []byte, id, result []byte) []byte {
	b = append(append(b, `{"jsonrpc":"2.0","id":`...), id...)
	return append(append(append(b, `,"result":`...), result...), '}')
}

// appendErrorObject appends a response with an error object.
func appendErrorObject(b []byte, id, object []byte) []byte {
	if id == nil {
		id = []byte("null")
	}
	b = append(append(b, `{"jsonrpc":"2.0","id":`...), id...)
	return append(append(append(b, `,"error":`...), object...), '}')
}

// errorObject returns an error object. data is any JSON value or nil.
func errorObject(code int, text string, data []byte) []byte {
	b := strconv.AppendInt(append([]byte(nil), `{"code":`...), int64(code), 10)
	b = appendQuoted(append(b, `,"message":`...), text)
	if data != nil {
		b = append(append(b, `,"data":`...), data...)
	}
	return append(b, '}')
}

// appendParams appends params with a _meta member added. params has none itself.
func appendParams(b, params, meta []byte) []byte {
	switch {
	case meta == nil && params == nil:
		return append(b, "{}"...)
	case meta == nil:
		return append(b, params...)
	}
	b = append(append(b, `{"_meta":`...), meta...)
	if len(params) > 2 {
		b = append(b, ',')
		return append(b, params[1:]...)
	}
	return append(b, '}')
}
