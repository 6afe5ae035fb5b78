package approval

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// Bounds on what [Render] shows. A person reads a page, not a file; what is cut
// off is said, with its size and digest. [RenderFull] cuts nothing.
const (
	maxShown   = 2048 // bytes of one string
	headShown  = 1536 // of which from its start
	tailShown  = 384  // and from its end, where payloads like to hide
	maxMembers = 64   // members of one array or object
	maxLines   = 400  // of all arguments
	maxBlank   = 2    // empty lines in a row
	wrapAt     = 100  // runes of one line
	maxWarned  = 40   // lines of warnings
)

// Render returns q as plain text for a person. Everything that came from outside
// is escaped so that it can neither hide nor pretend to be part of the frame: no
// value can start a line, and texts of several lines stand behind a bar. Values are
// shown from the very bytes that are signed and executed. Long ones are cut visibly.
func Render(q *Question) string { return render(q, false) }

// RenderFull is [Render] without cutting values short.
func RenderFull(q *Question) string { return render(q, true) }

func render(q *Question, full bool) string {
	r := &renderer{full: full}
	body := r.body(q)
	var b strings.Builder
	fmt.Fprintf(&b, "Approval %s\n", Visible(q.ID))
	if len(r.warnings) > 0 {
		b.WriteString("\nLOOK CLOSELY\n")
		for i, w := range r.warnings {
			if i == maxWarned {
				fmt.Fprintf(&b, "  ! and %d more\n", len(r.warnings)-i)
				break
			}
			fmt.Fprintf(&b, "  ! %s\n", w)
		}
	}
	b.WriteString(body)
	return b.String()
}

// A renderer collects warnings while it writes the body.
type renderer struct {
	full     bool
	warnings []string
	lines    int // written so far for values
	cut      bool
}

func (r *renderer) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

// text escapes one short field of the frame and warns about it.
func (r *renderer) text(what, s string) string {
	if fs := inspect(s); len(fs) > 0 {
		r.warn("%s %s", what, join(fs))
	}
	if s == "" {
		return "(none)"
	}
	if !r.full && len(s) > maxShown {
		return Visible(headOf(s, maxShown)) + omitted(s, maxShown)
	}
	return Visible(s)
}

func (r *renderer) body(q *Question) string {
	var b strings.Builder
	row := func(name, value string) { fmt.Fprintf(&b, "  %-10s %s\n", name, value) }

	b.WriteString("\nWHO\n")
	row("agent", r.text("agent", q.Agent))
	row("for", r.text("principal", q.Principal))
	row("task", r.text("task", q.Task))
	row("purpose", r.text("purpose", q.Purpose))
	row("tenant", r.text("tenant", q.Tenant))
	row("proof", r.text("proof", q.Proof))

	b.WriteString("\nWANTS\n")
	row(r.text("kind", q.Kind), r.text("tool", q.Tool))
	if q.Server != "" || !q.ServerID.IsZero() || !q.Definition.IsZero() { // a host is its own name
		row("of server", r.text("server", q.Server))
		row("id", q.ServerID.String())
		row("definition", digestText(q.Definition))
	}
	row("risk", r.text("risk", q.Risk))
	row("sandbox", gradeText(q.Grade))

	b.WriteString("\nASKED BECAUSE\n")
	for _, reason := range q.Reasons {
		line := r.text("reason", reason.Code)
		if reason.Path != "" {
			line += " at " + r.text("reason path", reason.Path)
		}
		if reason.Detail != "" {
			line += ": " + r.text("reason", reason.Detail)
		}
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	row("policy", digestText(q.Policy))
	row("groups", r.list("group", q.Groups)+" (each must allow it)")

	r.args(&b, "ARGUMENTS", q.Args)
	if len(q.Params) > 0 && string(q.Params) != "{}" {
		r.args(&b, "OTHER PARAMETERS", q.Params)
	}

	b.WriteString("\nWHERE VALUES COME FROM\n")
	for _, o := range q.Origins {
		from := "nowhere: nobody knows where it comes from"
		if len(o.Found) > 0 {
			from = r.list("origin", o.Found)
		}
		trust := "not trusted"
		if o.Trusted {
			trust = "trusted"
		}
		fmt.Fprintf(&b, "  - %s: %s (%s)\n", r.text("origin path", pointer(o.Path)), from, trust)
	}
	if len(q.Origins) == 0 {
		b.WriteString("  - no argument was traced\n")
	}
	row("has seen", r.scope(q.Scope))

	b.WriteString("\nTIME\n")
	row("asked", time.Unix(q.RequestedAt, 0).UTC().Format(time.RFC3339))
	row("until", q.Expires().UTC().Format(time.RFC3339))

	b.WriteString("\nCANNOT BE SEEN HERE\n")
	b.WriteString("  - what the server does with these values, and what it answers\n")
	if q.Server != "" {
		b.WriteString("  - the content of files, pages or records that the arguments only name\n")
	}
	if r.cut {
		b.WriteString("  - the parts of values that are cut above; the full view shows them\n")
		r.warnings = append([]string{"NOT EVERYTHING IS SHOWN: values were cut; use the full view before you allow this"}, r.warnings...)
	}
	if q.AnyArgs {
		r.warn("the capability puts no limit on the arguments of this call")
	}
	if q.SameUID {
		r.warn("the agent runs as the same user as this daemon: Vault does not claim that they are separated")
	}
	return b.String()
}

func pointer(p string) string {
	if p == "" {
		return "all arguments"
	}
	return p
}

func digestText(d vault.Digest) string {
	if d.IsZero() {
		return "(none)"
	}
	return "sha256 " + d.String()
}

func gradeText(g string) string {
	if g == "none" {
		return "none: it runs outside every sandbox of this host"
	}
	return "grade " + Visible(g)
}

func (r *renderer) list(what string, items []string) string {
	if len(items) == 0 {
		return "(none)"
	}
	out := make([]string, len(items))
	for i, s := range items {
		out[i] = r.text(what, s)
	}
	return strings.Join(out, ", ")
}

func (r *renderer) scope(s Scope) string {
	readers := "nobody may read it all"
	switch {
	case s.Public:
		readers = "public"
	case len(s.Readers) > 0:
		readers = "private to " + r.list("reader", s.Readers)
	}
	out := fmt.Sprintf("data from %s, %s", r.text("integrity", s.Integrity), readers)
	if len(s.Sources) > 0 {
		out += "; sources " + r.list("source", s.Sources)
	}
	if s.More {
		out += " and more"
	}
	return out
}

// args writes one canonical JSON document as an indented tree.
func (r *renderer) args(b *strings.Builder, title string, raw []byte) {
	fmt.Fprintf(b, "\n%s  (exactly %d bytes, sha256 %x)\n", title, len(raw), sha256.Sum256(raw))
	doc, err := parseCanonical(raw)
	if err != nil || doc.String() != string(raw) {
		r.warn("%s cannot be shown: not canonical JSON. Deny.", strings.ToLower(title))
		b.WriteString("  (not canonical JSON)\n")
		return
	}
	if doc.IsZero() {
		b.WriteString("  (none)\n")
		return
	}
	if !r.full {
		r.lines = 0
	}
	r.value(b, "", "", 1, doc.Root())
}

// line writes one line of a value, and reports false once there were too many.
func (r *renderer) line(b *strings.Builder, depth int, s string) bool {
	if !r.full && r.lines >= maxLines {
		if !r.cut || r.lines == maxLines {
			b.WriteString("  ⟨the rest is not shown⟩\n")
		}
		r.lines++
		r.cut = true
		return false
	}
	r.lines++
	b.WriteString(strings.Repeat("  ", depth))
	b.WriteString(s)
	b.WriteByte('\n')
	return true
}

// value writes v at path under the label of its key.
func (r *renderer) value(b *strings.Builder, path, label string, depth int, v vault.Value) bool {
	switch v.Kind() {
	case vault.Object, vault.Array:
		return r.container(b, path, label, depth, v)
	case vault.String:
		s, _ := v.Str()
		return r.str(b, path, label, depth, s)
	case vault.Absent, vault.Null, vault.Bool, vault.Number:
	}
	return r.line(b, depth, label+v.Raw())
}

func (r *renderer) container(b *strings.Builder, path, label string, depth int, v vault.Value) bool {
	what, n := "object", 0
	if v.Kind() == vault.Array {
		what = "array"
	}
	if v.Len() == 0 {
		return r.line(b, depth, label+"(empty "+what+")")
	}
	if label != "" || what == "array" {
		if !r.line(b, depth, fmt.Sprintf("%s(%s of %d)", label, what, v.Len())) {
			return false
		}
		depth++
	}
	for k, c := range v.All() {
		if !r.full && n == maxMembers {
			r.cut = true
			return r.line(b, depth, fmt.Sprintf("⟨%d more members not shown⟩", v.Len()-n))
		}
		at, name := path+"/"+vault.PointerToken(k), r.key(path, k)
		if what == "array" {
			at, name = fmt.Sprintf("%s/%d", path, n), fmt.Sprintf("[%d]: ", n)
		}
		if !r.value(b, at, name, depth, c) {
			return false
		}
		n++
	}
	return true
}

// key returns the label of an object member. Keys are quoted: a key can hold a
// colon.
func (r *renderer) key(path, k string) string {
	if fs := inspect(k); len(fs) > 0 {
		r.warn("a key in %s %s", Visible(pointer(clipPath(path))), join(fs))
	}
	if !r.full && len(k) > maxShown {
		r.cut = true
		return quote(headOf(k, headShown)) + omitted(k, headShown) + ": "
	}
	return quote(k) + ": "
}

// str writes a string: on one line, or if it has several, as a block in which each
// line is marked.
func (r *renderer) str(b *strings.Builder, path, label string, depth int, s string) bool {
	if fs := inspect(s); len(fs) > 0 {
		r.warn("%s %s", Visible(clipPath(path)), join(fs))
	}
	head, middle, tail := s, "", ""
	if !r.full && len(s) > maxShown {
		head, tail = headOf(s, headShown), tailOf(s, tailShown)
		cut := s[len(head) : len(s)-len(tail)]
		middle = omitted(s, len(s)-len(cut))
		r.cut = true
	}
	if !strings.Contains(s, "\n") && utf8.RuneCountInString(s) <= wrapAt {
		return r.line(b, depth, label+quote(s))
	}
	if !r.line(b, depth, fmt.Sprintf("%s(text of %d bytes, %d lines)", label, len(s), strings.Count(s, "\n")+1)) {
		return false
	}
	if !r.block(b, depth+1, head) {
		return false
	}
	if middle == "" {
		return true
	}
	return r.line(b, depth+1, middle) && r.block(b, depth+1, tail)
}

// block writes text line by line behind a bar. A line that goes on is marked with
// a different bar, so that breaking it does not look like a newline.
func (r *renderer) block(b *strings.Builder, depth int, s string) bool {
	blank := 0
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if l == "" && i < len(lines)-1 {
			blank++
			continue
		}
		if !r.blanks(b, depth, blank) {
			return false
		}
		blank = 0
		mark := "| "
		for {
			part := firstRunes(l, wrapAt)
			var line strings.Builder
			line.WriteString(mark)
			indent := min(spaces(part), maxRun)
			if mark != "| " || indent == len(part) {
				indent = 0
			}
			line.WriteString(part[:indent])
			l = l[len(part):]
			writeVisible(&line, part[indent:], edges{mark == "| " && indent == 0, l == ""}, false)
			if !r.line(b, depth, line.String()) {
				return false
			}
			if l == "" {
				break
			}
			mark = "> "
		}
	}
	return r.blanks(b, depth, blank)
}

// blanks writes n empty lines, or says how many there are.
func (r *renderer) blanks(b *strings.Builder, depth, n int) bool {
	if n > maxBlank {
		return r.line(b, depth, fmt.Sprintf("| ⟨%d empty lines⟩", n))
	}
	for range n {
		if !r.line(b, depth, "|") {
			return false
		}
	}
	return true
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	writeVisible(&b, s, edges{true, true}, true)
	b.WriteByte('"')
	return b.String()
}

// omitted says how much of s is not shown.
func omitted(s string, shown int) string {
	return fmt.Sprintf("⟨… %d of %d bytes not shown, sha256 of all %x⟩", len(s)-shown, len(s), sha256.Sum256([]byte(s)))
}

// clipPath shortens a pointer in a warning; the value itself stands below.
func clipPath(p string) string {
	if len(p) <= wrapAt {
		return p
	}
	return headOf(p, wrapAt) + "…"
}

// headOf returns at most n bytes from the start of s, without splitting a rune.
func headOf(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// tailOf returns at most n bytes from the end of s, without splitting a rune.
func tailOf(s string, n int) string {
	if len(s) <= n {
		return s
	}
	i := len(s) - n
	for i < len(s) && !utf8.RuneStart(s[i]) {
		i++
	}
	return s[i:]
}

// firstRunes returns the first n runes of s.
func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}
