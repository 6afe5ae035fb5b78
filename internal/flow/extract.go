package flow

import (
	"strings"
	"unicode"

	"github.com/pilox/vault"
)

// Limits on what is taken out of one document. What lies beyond stays unknown,
// and unknown asks.
const (
	maxText    = 256 << 10 // bytes of one text
	maxHarvest = 4096      // values
	maxNested  = 64 << 10  // bytes of a text that is looked at as JSON
	maxSpan    = 1024      // bytes of a quoted span or line
)

// A form says how a value stands in a text. Values of one form and kind make up
// the set that one of them may have been chosen from.
type form uint8

const (
	formWhole form = iota // the text itself
	formLine              // a line of several
	formSpan              // between quotation marks
	formWord
)

// extract yields the values in a text: every typed value that stands there as a
// whole word, the text itself, its lines and what it puts in quotes. It never
// yields a part of a word. yield returns false to stop.
func extract(text string, yield func(form, kind, string) bool) {
	k, normal := classify(text)
	if k != kindText {
		yield(formWhole, k, normal)
		return
	}
	if len(text) < minText {
		words(text, yield)
		return
	}
	if !yield(formWhole, kindText, text) {
		return
	}
	if len(text) > maxText {
		text = text[:maxText]
	}
	if !spans(text, yield) {
		return
	}
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if len(trimmed) >= minText && len(trimmed) <= maxSpan && len(trimmed) < len(text) {
			if k, normal := classify(trimmed); !yield(formLine, k, normal) {
				return
			}
		}
		if !words(line, yield) {
			return
		}
	}
}

// spans yields what stands between quotation marks.
func spans(text string, yield func(form, kind, string) bool) bool {
	for _, q := range [][2]string{{`"`, `"`}, {"`", "`"}, {"“", "”"}, {"„", "“"}, {"«", "»"}} {
		rest := text
		for {
			_, after, ok := strings.Cut(rest, q[0])
			if !ok {
				break
			}
			span, next, ok := strings.Cut(after, q[1])
			if !ok {
				break
			}
			rest = next
			if len(span) >= minText && len(span) <= maxSpan {
				if k, normal := classify(span); !yield(formSpan, k, normal) {
					return false
				}
			}
		}
	}
	return true
}

// words yields the typed values among the words of a line. A number followed or
// preceded by a unit is one amount and no number.
func words(line string, yield func(form, kind, string) bool) bool {
	var number, unit string // the previous word, if it was one
	flush := func() bool {
		n := number
		number, unit = "", ""
		return n == "" || yield(formWord, kindNumber, n)
	}
	for line != "" {
		line = strings.TrimLeftFunc(line, isBreak)
		if iban, n := ibanAt(line); n > 0 {
			if !flush() || !yield(formWord, kindIBAN, iban) {
				return false
			}
			line = line[n:]
			continue
		}
		var word string
		word, line = nextWord(line)
		if word == "" {
			continue
		}
		switch k, normal := classify(word); {
		case k == kindNumber && unit != "":
			if !yield(formWord, kindAmount, normal+" "+unit) {
				return false
			}
			number, unit = "", ""
		case k == kindNumber:
			if !flush() {
				return false
			}
			number = normal
		case isUnit(word) && number != "":
			if !yield(formWord, kindAmount, number+" "+normalUnit(word)) {
				return false
			}
			number, unit = "", ""
		case isUnit(word):
			if !flush() {
				return false
			}
			unit = normalUnit(word)
		default:
			if !flush() {
				return false
			}
			if k != kindText {
				if !yield(formWord, k, normal) {
					return false
				}
				continue
			}
			// name:value and name=value
			if i := strings.IndexAny(word, ":="); i > 0 {
				if k, normal := classify(word[i+1:]); k != kindText && !yield(formWord, k, normal) {
					return false
				}
			}
		}
	}
	return flush()
}

// nextWord returns the word that line starts with, without the marks around it,
// and the rest. A URL goes on over commas and brackets.
func nextWord(line string) (word, rest string) {
	end := strings.IndexFunc(line, isBreak)
	if space := strings.IndexFunc(line, isHardBreak); strings.Contains(line[:max(end, 0)], "://") || strings.HasPrefix(line[max(end, 0):], "://") {
		end = space
	}
	if end < 0 {
		end = len(line)
	}
	// 1,000.00 is one word, a,b are two.
	for end < len(line) && line[end] == ',' {
		next := strings.IndexFunc(line[end+1:], isBreak)
		if next < 0 {
			next = len(line) - end - 1
		}
		if _, ok := normalNumber(strings.TrimRight(line[:end+1+next], ".")); !ok {
			break
		}
		end += 1 + next
	}
	word, rest = line[:end], line[end:]
	word = strings.TrimRight(word, ".,:;!?*_)]}'")
	word = strings.TrimLeft(word, "*_('")
	return word, rest
}

func isBreak(r rune) bool {
	switch r {
	case ',', ';', '(', ')', '[', ']', '{', '}', '|':
		return true
	}
	return isHardBreak(r)
}

func isHardBreak(r rune) bool {
	switch r {
	case '"', '<', '>', '`', '“', '”', '„', '«', '»':
		return true
	}
	return unicode.IsSpace(r)
}

// ibanAt returns the IBAN that line starts with, in one piece or in groups of
// four, and how many bytes it takes; 0 if there is none.
func ibanAt(line string) (string, int) {
	if len(line) < 15 || line[0] < 'A' || line[0] > 'Z' || line[1] < 'A' || line[1] > 'Z' || line[2] < '0' || line[2] > '9' {
		return "", 0
	}
	best, n := "", 0
	for i := 4; i <= len(line) && i <= 42; i++ {
		if i < len(line) {
			c := line[i]
			if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
				continue // inside a group
			}
			if r := rune(c); c < 0x80 && !isBreak(r) && c != '.' && c != '!' && c != '?' && c != ':' || c >= 0x80 {
				break
			}
		}
		if iban, ok := normalIBAN(line[:i]); ok {
			best, n = iban, i
		}
		if i < len(line) && line[i] != ' ' {
			break
		}
	}
	return best, n
}

// leaf yields the values of one JSON value.
func leaf(v vault.Value, yield func(form, kind, string) bool) {
	switch v.Kind() {
	case vault.String:
		s, _ := v.Str()
		extract(s, yield)
	case vault.Number:
		if n, ok := jsonNumber(v.Raw()); ok {
			yield(formWhole, kindNumber, n)
		}
	default: // true, false and null identify nothing; what is inside others is a leaf itself
	}
}

// nested returns the document inside a string that is JSON: tools put their
// structured answers into text. An inner document is shorter than its text, so
// looking inside ends.
func nested(v vault.Value) (vault.Value, bool) {
	s, ok := v.Str()
	if !ok || len(s) < 2 || len(s) > maxNested || s[0] != '{' && s[0] != '[' {
		return vault.Value{}, false
	}
	doc, err := vault.ParseValue([]byte(s))
	if err != nil {
		return vault.Value{}, false
	}
	return doc.Root(), true
}
