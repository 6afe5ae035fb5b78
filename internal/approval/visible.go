package approval

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A finding is one way in which a text can look like something it is not.
type finding string

// The findings, as a person reads them.
const (
	findBidi      finding = "changes the direction of text: what you read can be in another order than what is sent"
	findRTL       finding = "has right-to-left letters: the order on screen can differ from the order sent"
	findInvisible finding = "has invisible characters"
	findControl   finding = "has control characters"
	findSpace     finding = "has unusual or padding spaces"
	findMixed     finding = "mixes alphabets within a word: letters may be look-alikes"
	findLookalike finding = "has a word of another alphabet that reads like Latin letters"
	findMarks     finding = "stacks combining marks"
	findUnknown   finding = "has characters that no font must know: private or unassigned"
	findLines     finding = "has many empty lines"
	findEncoded   finding = "looks encoded: what it means cannot be seen here"
	findPunycode  finding = "has a punycode host name (xn--): decode it before you trust it"
)

// maxRun is the longest run of spaces shown as such. Longer runs push text out of
// sight.
const maxRun = 16

// Visible returns s as one line that shows everything a person could overlook:
// controls, invisible and direction-changing characters appear as ⟨U+XXXX⟩, and so
// does the bracket itself, so that the text cannot fake an escape. No two texts
// look the same in code points.
func Visible(s string) string {
	var b strings.Builder
	writeVisible(&b, s, edges{true, true}, false)
	return b.String()
}

// edges says at which end of a text spaces would be overlooked: not where a line
// merely goes on.
type edges struct{ start, end bool }

// writeVisible writes the escaped form of s. quoted also escapes the quote.
func writeVisible(b *strings.Builder, s string, e edges, quoted bool) {
	marks := 0
	for i := 0; i < len(s); {
		if n := spaces(s[i:]); n > maxRun || n > 0 && (e.start && i == 0 || e.end && i+n == len(s)) {
			fmt.Fprintf(b, "⟨%d×space⟩", n)
			i += n
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size <= 1:
			fmt.Fprintf(b, "⟨byte %02X⟩", s[i])
		case r == '\n':
			b.WriteString("⟨newline⟩")
		case r == '\t':
			b.WriteString("⟨tab⟩")
		case quoted && r == '"', r == '⟨', r == '⟩':
			fmt.Fprintf(b, "⟨U+%04X⟩", r)
		case unicode.Is(unicode.M, r):
			// The first two marks of a letter are spelling; more are decoration, and
			// one without a letter would change the frame.
			if marks++; marks > 2 || i == 0 || hidden(r) {
				fmt.Fprintf(b, "⟨U+%04X⟩", r)
			} else {
				b.WriteRune(r)
			}
		case hidden(r):
			fmt.Fprintf(b, "⟨U+%04X⟩", r)
		default:
			b.WriteRune(r)
		}
		if !unicode.Is(unicode.M, r) {
			marks = 0
		}
		i += max(size, 1)
	}
}

// spaces returns the number of leading ASCII spaces.
func spaces(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }

// hidden reports whether r would not be seen, or would move what is seen.
func hidden(r rune) bool {
	switch {
	case r == ' ':
		return false
	case !unicode.IsGraphic(r), unicode.Is(unicode.Z, r): // controls, formats, private, unassigned; every other space
		return true
	case inVisible(r):
		return true
	}
	return false
}

// invisible reports letters and marks that draw nothing.
func inVisible(r rune) bool {
	switch {
	case r == 0x034F, r == 0x115F, r == 0x1160, r == 0x17B4, r == 0x17B5, r == 0x2800, r == 0x3164, r == 0xFFA0, r == 0x1D159:
		return true // grapheme joiner, fillers, Khmer inherent vowels, Braille blank, musical null head
	case r >= 0x180B && r <= 0x180F, r >= 0xFE00 && r <= 0xFE0F, r >= 0xE0000 && r <= 0xE0FFF:
		return true // variation selectors and tags
	case unicode.Is(unicode.Cf, r):
		return true // zero-width, soft hyphen, joiners, direction
	}
	return false
}

func bidi(r rune) bool {
	return r == 0x061C || r == 0x200E || r == 0x200F || r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069
}

// inspect returns what is suspicious about s, each finding once, in the order of
// the list above.
func inspect(s string) []finding {
	found := make(map[finding]bool)
	var word scripts
	marks, run, lines := 0, 0, 0
	for _, r := range s {
		switch {
		case bidi(r):
			found[findBidi] = true
		case inVisible(r):
			found[findInvisible] = true
		case r == '\n', r == '\t':
		case unicode.IsControl(r), r == utf8.RuneError:
			found[findControl] = true
		case r != ' ' && unicode.Is(unicode.Z, r):
			found[findSpace] = true
		case !unicode.IsGraphic(r):
			found[findUnknown] = true
		}
		if unicode.In(r, unicode.Hebrew, unicode.Arabic, unicode.Syriac, unicode.Thaana, unicode.Nko) {
			found[findRTL] = true
		}
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		if r == ' ' {
			run++
		} else {
			run = 0
		}
		switch r {
		case '\n':
			lines++
		case ' ', '\t', '\r':
		default:
			lines = 0
		}
		found[findMarks] = found[findMarks] || marks > 2
		found[findSpace] = found[findSpace] || run > maxRun
		found[findLines] = found[findLines] || lines > maxBlank+1
		word.add(r, found)
	}
	word.end(found)
	if encoded(s) {
		found[findEncoded] = true
	}
	if strings.Contains(strings.ToLower(s), "xn--") {
		found[findPunycode] = true
	}
	var out []finding
	for _, f := range []finding{findBidi, findRTL, findInvisible, findControl, findSpace, findMixed, findLookalike, findMarks, findUnknown, findLines, findEncoded, findPunycode} {
		if found[f] {
			out = append(out, f)
		}
	}
	return out
}

// scripts watches the alphabets of one word.
type scripts struct {
	latin, other  bool
	letters, like int // letters of other alphabets, and those that look Latin
}

// add takes in the next character of the text. Words end where letters and marks
// do; digits and joiners do not end them, as they are part of names.
func (w *scripts) add(r rune, found map[finding]bool) {
	switch {
	case unicode.Is(unicode.Latin, r):
		w.latin = true
	case unicode.In(r, unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee, unicode.Coptic, unicode.Lisu, unicode.Georgian):
		w.other = true
		w.letters++
		if lookalike(r) {
			w.like++
		}
	case unicode.IsLetter(r) && fancy(r):
		w.other = true // mathematical and full-width Latin
		w.letters++
		w.like++
	case unicode.IsLetter(r), unicode.Is(unicode.M, r), unicode.IsDigit(r), r == '_', inVisible(r):
	default:
		w.end(found)
	}
}

func (w *scripts) end(found map[finding]bool) {
	if w.latin && w.other {
		found[findMixed] = true
	} else if w.other && w.letters > 1 && w.like == w.letters {
		found[findLookalike] = true
	}
	*w = scripts{}
}

// fancy reports letters that are drawn as styled Latin: mathematical alphanumeric
// symbols, and letterlike ones.
func fancy(r rune) bool { return r >= 0x1D400 && r <= 0x1D7FF || r >= 0x2100 && r <= 0x214F }

// lookalike reports letters that most fonts draw like a Latin letter (a part of
// Unicode TR 39, confusables).
func lookalike(r rune) bool {
	const cyrillic = "аеорсухіјѕһԁԛԝьАВЕКМНОРСТУХІЈЅԌԚԜѴѵ"
	const greek = "οανικρτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧϲϳ"
	const armenian = "оօսհզոցԼՕՍ"
	return strings.ContainsRune(cyrillic, r) || strings.ContainsRune(greek, r) || strings.ContainsRune(armenian, r) ||
		unicode.Is(unicode.Cherokee, r) || unicode.Is(unicode.Lisu, r)
}

// minEncoded is the length from which a run without spaces in an encoding alphabet
// is taken for encoded data: longer than a SHA-256 digest in hex.
const minEncoded = 80

// mimeLine is about the shortest full line of encoded data that is broken into
// lines: PEM has 64 characters, MIME 76. Shorter lines are a list of words.
const mimeLine = 60

// encoded reports whether s has a long run of base64 or hex.
func encoded(s string) bool {
	run, line := 0, 0
	for _, c := range []byte(s) {
		line++
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '+', c == '/', c == '-', c == '_', c == '=', c == '%':
			if run++; run >= minEncoded {
				return true
			}
		case c == '\r':
		case c == '\n':
			if line < mimeLine {
				run = 0
			}
			line = 0
		default:
			run = 0
		}
	}
	return false
}

// join lists findings in one sentence.
func join(fs []finding) string {
	out := make([]string, len(fs))
	for i, f := range fs {
		out[i] = string(f)
	}
	return strings.Join(slices.Compact(out), "; ")
}
