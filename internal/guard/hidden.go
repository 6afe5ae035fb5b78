package guard

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Characters that carry content nobody sees: the tag block spells ASCII, runs of
// zero-width characters and of variation selectors spell bits, direction
// controls show text in another order than it is read. Each has honest uses in
// emoji and in scripts, and those are let through.

// looseZeroWidth is how many zero-width characters without a reason one string
// may hold. Web pages leave a few behind; a message needs more.
const looseZeroWidth = 8

// hides reports whether s has a character of a class that can hide something,
// for good or bad. It decodes only behind bytes that such a character starts with.
func hides[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case 0xE1, 0xE2, 0xE3, 0xEF, 0xF3:
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if classOf(r) != visible {
				return true
			}
			i += n - 1
		}
	}
	return false
}

type class uint8

const (
	visible class = iota
	tag
	direction // embedding, override, isolate
	zeroWidth
	selector
)

func classOf(r rune) class {
	switch {
	case r < 0xAD:
		return visible
	case r >= 0xE0000 && r <= 0xE007F:
		return tag
	case r >= 0x202A && r <= 0x202E, r >= 0x2066 && r <= 0x2069:
		return direction
	case r >= 0xFE00 && r <= 0xFE0F, r >= 0xE0100 && r <= 0xE01EF:
		return selector
	}
	switch r {
	case 0x200B, 0x200C, 0x200D, 0x2060, 0x2061, 0x2062, 0x2063, 0x2064, 0xFEFF, 0x180E, 0x115F, 0x1160, 0x3164:
		return zeroWidth
	}
	return visible
}

// reveal returns s without its hidden characters and how many there were. What
// an emoji or a script needs stays.
func reveal(s string) (string, found) {
	var n found
	if !hides(s) {
		return s, n
	}
	rs := []rune(s)
	drop := make([]bool, len(rs))
	loose := 0
	rtl := strings.ContainsFunc(s, isRTL)
	for i := 0; i < len(rs); i++ {
		switch classOf(rs[i]) {
		case tag:
			if end := flagEnd(rs, i); end > 0 {
				i = end
				continue
			}
			drop[i] = true
			n.tags++
		case direction:
			override := rs[i] == 0x202D || rs[i] == 0x202E
			if !rtl || override {
				drop[i] = true
				n.direction++
			}
		case selector:
			if !selects(rs, i) {
				drop[i] = true
				n.selectors++
			}
		case zeroWidth:
			end := i
			for end+1 < len(rs) && classOf(rs[end+1]) == zeroWidth {
				end++
			}
			if end-i >= 2 { // three in a row spell something
				for j := i; j <= end; j++ {
					drop[j] = true
				}
				n.zeroWidth += end - i + 1
			} else {
				for j := i; j <= end; j++ {
					if !joins(rs, j) {
						loose++
					}
				}
			}
			i = end
		case visible:
		}
	}
	if loose > looseZeroWidth {
		for i, r := range rs {
			if !drop[i] && classOf(r) == zeroWidth && !joins(rs, i) {
				drop[i] = true
				n.zeroWidth++
			}
		}
	}
	if n == (found{}) {
		return s, n
	}
	var b strings.Builder
	b.Grow(len(s))
	for i, r := range rs {
		if !drop[i] {
			b.WriteRune(r)
		}
	}
	return b.String(), n
}

// flagEnd returns the index of the cancel tag if rs[i] is the first tag of the
// flag of a region: a black flag, up to six letters or digits, cancel (UTS 51).
func flagEnd(rs []rune, i int) int {
	if i == 0 || rs[i-1] != 0x1F3F4 {
		return 0
	}
	for j := i; j < len(rs) && j <= i+6; j++ {
		switch r := rs[j]; {
		case r == 0xE007F && j > i:
			return j
		case r >= 0xE0061 && r <= 0xE007A, r >= 0xE0030 && r <= 0xE0039:
		default:
			return 0
		}
	}
	return 0
}

// selects reports whether the variation selector at i follows something that
// varies: one selector, after a symbol or an ideograph.
func selects(rs []rune, i int) bool {
	if i == 0 || classOf(rs[i-1]) != visible {
		return false
	}
	base := rs[i-1]
	if rs[i] >= 0xE0100 {
		return unicode.Is(unicode.Han, base)
	}
	return unicode.IsSymbol(base) || unicode.IsPunct(base) || unicode.IsDigit(base) ||
		unicode.Is(unicode.Han, base) || unicode.Is(unicode.Mongolian, base) || unicode.Is(unicode.Myanmar, base) || base >= 0x2000 && !unicode.IsSpace(base)
}

// joins reports whether the zero-width character at i does what it is for.
func joins(rs []rune, i int) bool {
	before, after := rune(-1), rune(-1)
	if i > 0 {
		before = rs[i-1]
	}
	if i+1 < len(rs) {
		after = rs[i+1]
	}
	switch rs[i] {
	case 0xFEFF:
		return i == 0 // a byte order mark
	case 0x200D: // emoji sequences
		if before >= 0x2000 && after >= 0x2000 {
			return true
		}
		return isJoining(before)
	case 0x200C:
		return isJoining(before) && (after < 0 || !unicode.IsLetter(after) || isJoining(after))
	case 0x200B: // line breaks in scripts without spaces
		return unicode.In(before, unicode.Thai, unicode.Khmer, unicode.Lao, unicode.Myanmar, unicode.Tibetan)
	case 0x115F, 0x1160, 0x3164:
		return unicode.Is(unicode.Hangul, before) || unicode.Is(unicode.Hangul, after)
	}
	return false
}

// isJoining reports whether r belongs to a script in which joiners change what
// is shown: Arabic and its kin, and the Indic scripts.
func isJoining(r rune) bool {
	return r > 0 && unicode.In(r, unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Nko,
		unicode.Devanagari, unicode.Bengali, unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya, unicode.Tamil,
		unicode.Telugu, unicode.Kannada, unicode.Malayalam, unicode.Sinhala, unicode.Khmer)
}

// isRTL reports whether r is written from right to left.
func isRTL(r rune) bool {
	return r >= 0x590 && unicode.In(r, unicode.Hebrew, unicode.Arabic, unicode.Syriac, unicode.Thaana, unicode.Nko)
}
