package guard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// A literal is one string of a JSON text, without its quotes.
type literal struct {
	raw     []byte
	key     bool // the name of an object member
	escaped bool // has a backslash
	masked  bool // has an escape for a character that needs none: \u or \/
	high    bool // has a byte outside ASCII
}

var (
	errDepth = errors.New("nested too deeply")
	errText  = errors.New("not a JSON text")
)

// rewrite calls edit for every string literal of a JSON text, keys included, and
// returns the text with those replaced that edit returned true for. Everything
// else stays byte by byte; without a change it returns raw itself. It checks as
// much of the syntax as it relies on (strings, nesting), not all of it.
func rewrite(raw []byte, maxDepth int, edit func(literal) (string, bool, error)) ([]byte, error) {
	var out []byte
	kept := 0 // raw[:kept] is in out
	depth := 0
	for i := 0; i < len(raw); {
		switch raw[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return nil, errDepth
			}
		case '}', ']':
			if depth--; depth < 0 {
				return nil, errText
			}
		case '"':
			lit, end, err := literalAt(raw, i)
			if err != nil {
				return nil, err
			}
			s, changed, err := edit(lit)
			if err != nil {
				return nil, err
			}
			if changed {
				out = append(out, raw[kept:i]...)
				out = vault.AppendQuoted(out, strings.ToValidUTF8(s, "�"))
				kept = end
			}
			i = end
			continue
		}
		i++
	}
	if depth != 0 {
		return nil, errText
	}
	if kept == 0 {
		return raw, nil
	}
	return append(out, raw[kept:]...), nil
}

// literalAt reads the string that starts with the quote at i and returns where
// it ends.
func literalAt(raw []byte, i int) (lit literal, end int, err error) {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	start := i + 1
	for i = start; i < len(raw); {
		if i+8 <= len(raw) {
			// Eight bytes that are neither quote, backslash nor high: the
			// classic zero-byte test on x^quote and x^backslash.
			x := binary.LittleEndian.Uint64(raw[i:])
			q, b := x^ones*'"', x^ones*'\\'
			if (x|(q-ones)&^q|(b-ones)&^b)&highs == 0 {
				i += 8
				continue
			}
		}
		switch c := raw[i]; {
		case c == '"':
			lit.raw = raw[start:i]
			i++
			lit.key = isKey(raw[i:])
			return lit, i, nil
		case c == '\\':
			lit.escaped = true
			if i++; i < len(raw) && (raw[i] == 'u' || raw[i] == '/') {
				lit.masked = true
			}
		case c >= utf8.RuneSelf:
			lit.high = true
		}
		i++
	}
	return lit, 0, errText
}

// isKey reports whether a colon follows.
func isKey(after []byte) bool {
	for _, c := range after {
		switch c {
		case ' ', '\t', '\n', '\r':
		case ':':
			return true
		default:
			return false
		}
	}
	return false
}

// decode returns the string that a literal stands for. A broken escape stays as
// it is and a lone surrogate becomes U+FFFD: the scanners look at what a lenient
// reader might see.
func (l literal) decode() string {
	if !l.escaped {
		return string(l.raw)
	}
	out := make([]byte, 0, len(l.raw))
	for s := l.raw; len(s) > 0; {
		plain := bytes.IndexByte(s, '\\')
		if plain < 0 || plain == len(s)-1 {
			return string(append(out, s...))
		}
		out, s = append(out, s[:plain]...), s[plain:]
		if i := strings.IndexByte(`"\/bfnrt`, s[1]); i >= 0 {
			out = append(out, "\"\\/\b\f\n\r\t"[i])
			s = s[2:]
			continue
		}
		r, ok := hex4(s)
		if !ok {
			out = append(out, s[0])
			s = s[1:]
			continue
		}
		s = s[6:]
		if utf16.IsSurrogate(r) {
			low, ok := hex4(s)
			if pair := utf16.DecodeRune(r, low); ok && pair != utf8.RuneError {
				r, s = pair, s[6:]
			}
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}

// hex4 reads \uXXXX.
func hex4(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range s[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
