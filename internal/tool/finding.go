package tool

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/pilox/vault"
)

// A Finding is something in a definition that a person should look at before
// trusting it. Findings are reported and block nothing: words are weak evidence,
// and what a tool can do is bounded elsewhere.
type Finding struct {
	Server string     `json:"server"`
	Kind   vault.Kind `json:"kind,omitempty"`
	Tool   string     `json:"tool,omitempty"` // name of the tool, resource or prompt
	Where  string     `json:"where"`          // JSON Pointer into the definition or listing
	What   string     `json:"what"`
	Detail string     `json:"detail,omitempty"` // for people; may quote the server
}

// What a finding found.
const (
	FindHidden    = "hidden_unicode"  // a character that people do not see and models read
	FindServer    = "names_server"    // the name of another registered server: shadowing
	FindInstructs = "instructs_model" // words that tell the model what to do beside this tool
	FindUnusable  = "unusable"        // a definition that cannot be pinned
	FindOpen      = "open_schema"     // arguments beyond the schema are let through
	FindPatterns  = "ignored_pattern" // a pattern is not enforced
	FindNoTool    = "no_such_tool"    // the operator's entry names a tool that is not listed
)

// maxFindings bounds what one definition can put on the screen.
const maxFindings = 32

// instructions are phrasings of published tool-poisoning attacks: they address
// the model, about something else than how to call the tool.
var instructions = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)` + strings.Join([]string{
		`<\s*/?\s*(important|system|instructions?|secret|critical)\s*>`,
		`\b(ignore|disregard|forget|override)\b.{0,30}\b(previous|prior|above|earlier|other|all)\b.{0,20}\b(instructions?|rules?|prompts?|tools?|messages?)\b`,
		`\b(do not|don't|never|without)\b.{0,20}\b(tell|telling|mention|mentioning|inform|informing|notify|notifying|reveal|revealing|ask|asking|show|showing)\b.{0,20}\b(the )?user\b`,
		`\bbefore (using|calling|you use|you call|invoking)\b.{0,30}\b(this|any|other|another)\b.{0,10}\btools?\b`,
		`\b(instead of|rather than) (using|calling)\b`,
		`\byou (must|have to|should always)\b.{0,20}\b(first|always|also)\b`,
		`\b(always|first) (call|use|invoke|run|read)\b.{0,30}\b(this tool|before|first)\b`,
		`\bsystem prompt\b`,
		`\b(your|the) (instructions|guidelines) (are|have)\b`,
		`~/\.(ssh|aws|config|cursor|gnupg|netrc|npmrc)\b|\bid_rsa\b|\bmcp\.json\b`,
	}, "|"))
})

// examine looks at every string and every key of a definition.
func examine(server string, key itemKey, def vault.Value, others []string) []Finding {
	e := examiner{server: server, key: key, others: others}
	e.value("", def)
	return e.found
}

type examiner struct {
	server string
	key    itemKey
	others []string
	found  []Finding
}

func (e *examiner) add(where, what, detail string) {
	if len(e.found) < maxFindings {
		e.found = append(e.found, Finding{e.server, e.key.kind, e.key.name, where, what, detail})
	}
}

func (e *examiner) value(where string, v vault.Value) {
	switch v.Kind() {
	case vault.String:
		s, _ := v.Str()
		e.text(where, s)
	case vault.Array:
		i := 0
		for _, child := range v.All() {
			e.value(where+"/"+strconv.Itoa(i), child)
			i++
		}
	case vault.Object:
		for key, child := range v.All() {
			e.text(where, key)
			e.value(where+"/"+vault.PointerToken(key), child)
		}
	default: // a number, true, false or null has no text
	}
}

func (e *examiner) text(where, s string) {
	if r, ok := findHidden(s); ok {
		e.add(where, FindHidden, strings.ToUpper(runeName(r)))
	}
	if m := instructions().FindString(s); m != "" {
		e.add(where, FindInstructs, shorten(strings.ToValidUTF8(m, "")))
	}
	for _, name := range e.others {
		if containsWord(s, name) {
			e.add(where, FindServer, name)
		}
	}
}

func runeName(r rune) string {
	const digits = "0123456789abcdef"
	out := []byte("u+")
	for shift := 20; shift >= 0; shift -= 4 {
		if d := r >> shift & 15; d != 0 || shift < 16 {
			out = append(out, digits[d])
		}
	}
	return string(out)
}

// findHidden returns the first invisible character of s. A zero-width joiner or
// variation selector behind an emoji is how emoji are written, so it passes.
func findHidden(s string) (rune, bool) {
	var before rune
	for _, r := range s {
		emoji := before >= 0x1f000 && before < 0xe0000 || before >= 0x2190 && before < 0x2c00 || before == 0xfe0f
		if hiddenRune(r) && !(r == 0x200d && emoji) {
			return r, true
		}
		before = r
	}
	return 0, false
}

// hiddenRune reports characters that do not show: controls (ANSI escapes among
// them), bidirectional marks, zero width, tags and their like. Tab and the ends
// of lines are text.
func hiddenRune(r rune) bool {
	switch {
	case r == '\t' || r == '\n' || r == '\r':
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0:
		return true
	case r == 0x00ad, r == 0x034f, r == 0x115f, r == 0x1160, r == 0x17b4, r == 0x17b5, r == 0x3164, r == 0xffa0:
		return true // soft hyphen, joiner, fillers: letters that show as nothing
	case r >= 0xe0000 && r <= 0xe0fff: // tags, variation selectors 17 to 256
		return true
	case r == 0x2028, r == 0x2029:
		return true
	}
	return unicode.Is(unicode.Cf, r) // bidi, zero width, U+FEFF, invisible operators
}

// containsWord reports whether word stands in s on its own, in any case.
func containsWord(s, word string) bool {
	s = strings.ToLower(s)
	for {
		i := strings.Index(s, word)
		if i < 0 {
			return false
		}
		end := i + len(word)
		if (i == 0 || !isWordByte(s[i-1])) && (end == len(s) || !isWordByte(s[end])) {
			return true
		}
		s = s[end:]
	}
}

func isWordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c >= 0x80
}

// sortFindings orders findings for people.
func sortFindings(f []Finding) []Finding {
	slices.SortStableFunc(f, func(a, b Finding) int {
		if c := strings.Compare(a.Tool, b.Tool); c != 0 {
			return c
		}
		return strings.Compare(a.Where, b.Where)
	})
	return f
}
