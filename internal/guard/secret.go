package guard

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
)

// minSecret is the least length of a secret, and of a form of one, that is
// looked for. It is also the window of the search.
const minSecret = 8

// A secrets finds known values in content: as they are, reversed, in hex, in
// base64 at any of the three alignments, and percent-encoded. It never changes.
//
// The search is Wu and Manber's (A fast algorithm for multi-pattern searching,
// 1994): a table over pairs of bytes says how far the window may move, so that
// most bytes of clean content are never looked at.
type secrets struct {
	list   []string // as given, to notice a change
	quoted bool     // some form has a character that JSON must escape
	shift  *[1 << 16]uint8
	byHead map[[minSecret]byte][]string // forms by their first bytes, longest first
}

func newSecrets(list []string) *secrets {
	s := &secrets{list: slices.Clone(list)}
	for _, v := range list {
		if len(v) < minSecret {
			continue
		}
		for _, form := range forms(v) {
			s.add(form)
		}
	}
	for _, l := range s.byHead {
		slices.SortFunc(l, func(a, b string) int { return len(b) - len(a) })
	}
	return s
}

func (s *secrets) add(form string) {
	if len(form) < minSecret {
		return
	}
	if s.shift == nil {
		s.shift = new([1 << 16]uint8)
		for i := range s.shift {
			s.shift[i] = minSecret - 1
		}
		s.byHead = map[[minSecret]byte][]string{}
	}
	for j := range minSecret - 1 {
		at := &s.shift[binary.LittleEndian.Uint16([]byte(form[j:j+2]))]
		*at = min(*at, uint8(minSecret-2-j))
	}
	s.quoted = s.quoted || strings.ContainsFunc(form, func(r rune) bool { return r < 0x20 || r == '"' || r == '\\' })
	head := [minSecret]byte([]byte(form[:minSecret]))
	if !slices.Contains(s.byHead[head], form) {
		s.byHead[head] = append(s.byHead[head], form)
	}
}

// forms returns what a value looks like after the usual encodings.
func forms(v string) []string {
	h := hex.EncodeToString([]byte(v))
	out := []string{v, h, strings.ToUpper(h), url.QueryEscape(v), url.PathEscape(v), reverse(v)}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for pad := range 3 {
			// Inside a longer encoding the first and last characters also hold
			// bits of the neighbours: leave them out.
			e := enc.EncodeToString(append(make([]byte, pad), v...))
			from := []int{0, 2, 3}[pad]
			to := (pad + len(v)) * 8 / 6
			out = append(out, e[from:to])
		}
	}
	return out
}

func reverse(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// in reports whether text holds a secret.
func (s *secrets) in(text string) bool {
	_, _, ok := find(s, text, 0)
	return ok
}

// inBytes is in for bytes, without copying them.
func (s *secrets) inBytes(text []byte) bool {
	_, _, ok := find(s, text, 0)
	return ok
}

// find returns the first form at or after from.
func find[T string | []byte](s *secrets, text T, from int) (start, end int, ok bool) {
	if s.shift == nil {
		return 0, 0, false
	}
	for i := from + minSecret - 1; i < len(text); {
		if n := s.shift[uint16(text[i-1])|uint16(text[i])<<8]; n > 0 {
			i += int(n)
			continue
		}
		at := i - minSecret + 1
		for _, form := range s.byHead[[minSecret]byte([]byte(text[at:i+1]))] {
			if len(text)-at >= len(form) && string(text[at:at+len(form)]) == form {
				return at, at + len(form), true
			}
		}
		i++
	}
	return 0, 0, false
}

// redact replaces every secret in text and returns how many there were.
func (s *secrets) redact(text string) (string, int) {
	start, end, ok := find(s, text, 0)
	if !ok {
		return text, 0
	}
	var b strings.Builder
	n, kept := 0, 0
	for ; ok; start, end, ok = find(s, text, end) {
		b.WriteString(text[kept:start])
		b.WriteString(redacted)
		kept = end
		n++
	}
	b.WriteString(text[kept:])
	return b.String(), n
}
