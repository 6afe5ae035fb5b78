package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// redacted stands where a value was taken out.
const redacted = "[redacted]"

// index parses an array index of a JSON Pointer; -1 if there is no such element.
func index(token string, length int) int {
	n, err := strconv.Atoi(token)
	if err != nil || n < 0 || n >= length {
		return -1
	}
	return n
}

// redact replaces the value at a JSON Pointer of a result. A path that does not
// exist is no error: then there is nothing to hide.
func redact(raw []byte, pointer string) ([]byte, error) {
	if !strings.HasPrefix(pointer, "/") {
		return nil, errors.New("not a JSON Pointer")
	}
	var doc any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("decode result: %w", err)
	}
	at := doc
	tokens := strings.Split(pointer[1:], "/")
	for i, token := range tokens {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		last := i == len(tokens)-1
		switch v := at.(type) {
		case map[string]any:
			next, ok := v[token]
			if !ok {
				return raw, nil
			}
			if last {
				v[token] = redacted
			}
			at = next
		case []any:
			n := index(token, len(v))
			if n < 0 {
				return raw, nil
			}
			if last {
				v[n] = redacted
			}
			at = v[n]
		default:
			return raw, nil
		}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}
