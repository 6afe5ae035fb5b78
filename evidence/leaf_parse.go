package evidence

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// ParseLeaf reads the bytes of one leaf. It accepts exactly what [Leaf.Append]
// writes and nothing else: the order of members, the form of numbers and the
// escapes in strings are all fixed.
func ParseLeaf(b []byte) (*Leaf, error) {
	l := new(Leaf)
	if err := l.parse(string(b)); err != nil {
		return nil, err
	}
	return l, nil
}

// parse fills l in from s. Strings of l share memory with s.
func (l *Leaf) parse(s string) error {
	if len(s) > MaxLeaf {
		return fmt.Errorf("parse leaf: %d bytes, more than %d", len(s), MaxLeaf)
	}
	r := reader{s: s}
	l.AnyArgs = r.boolean(`{"any_args":`)
	l.Call = r.str(`,"call_id":`)
	l.Class = vault.Class(r.str(`,"class":`))
	r.skip(`,"debits":[`)
	l.Debits = l.Debits[:0]
	for i := 0; !r.bad && !strings.HasPrefix(r.s, "]"); i++ {
		if i == MaxDebits {
			r.fail("debits")
			break
		}
		if i > 0 {
			r.skip(",")
		}
		var d vault.Debit
		d.Amount = r.integer(`{"amount":`)
		d.Counter = r.str(`,"counter":`)
		d.Kept = r.boolean(`,"kept":`)
		d.Limit = r.integer(`,"limit":`)
		d.Unit = r.str(`,"unit":`)
		r.skip(`}`)
		l.Debits = append(l.Debits, d)
	}
	l.Epoch = r.index(`],"epoch":`)
	l.Fields.N = int(r.index(`,"fields":{"n":`))
	l.Fields.Root = r.digest(`,"root":`)
	l.Grade = r.grade(`},"grade":`)
	l.Index = r.index(`,"idx":`)
	if l.HasIntent = !strings.HasPrefix(r.s, `,"intent_idx":null`); l.HasIntent {
		l.Intent = r.index(`,"intent_idx":`)
	} else {
		l.Intent = 0
		r.skip(`,"intent_idx":null`)
	}
	l.Kind = vault.Kind(r.str(`,"kind":`))
	l.Log = r.str(`,"log":`)
	l.Phase = vault.Phase(r.str(`,"phase":`))
	l.Policy = r.digest(`,"policy":`)
	l.PrevRunLeaf = r.digest(`,"prev_run_leaf":`)
	l.Proof = vault.ProofKind(r.str(`,"proof":`))
	l.Reason = vault.Code(r.str(`,"reason":`))
	l.Refund = r.boolean(`,"refund":`)
	l.Run = vault.TaskID(r.str(`,"run":`))
	l.RunSeq = r.index(`,"run_seq":`)
	l.SameUID = r.boolean(`,"same_uid":`)
	l.Server = vault.ServerID(r.digest(`,"server":`))
	l.Tool = r.str(`,"tool":`)
	l.Time = r.time(`,"ts":"`)
	l.Verdict = r.verdict(`","v":1,"verdict":`)
	r.skip("}")
	if r.s != "" {
		r.fail("the end")
	}
	if r.bad {
		return fmt.Errorf("parse leaf: byte %d: want %s", len(s)-len(r.s), r.want)
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("parse leaf: %w", err)
	}
	return nil
}

// A reader takes members off the front of s. After the first mismatch it is bad
// and returns zero values only.
type reader struct {
	s    string
	bad  bool
	want string
}

func (r *reader) fail(want string) {
	if !r.bad {
		r.bad, r.want = true, strings.Trim(want, `,":{}[]`)
	}
}

func (r *reader) skip(lit string) bool {
	if r.bad {
		return false
	}
	if !strings.HasPrefix(r.s, lit) {
		r.fail(lit)
		return false
	}
	r.s = r.s[len(lit):]
	return true
}

func (r *reader) boolean(member string) bool {
	if !r.skip(member) {
		return false
	}
	switch {
	case strings.HasPrefix(r.s, "false"):
		r.s = r.s[5:]
	case strings.HasPrefix(r.s, "true"):
		r.s = r.s[4:]
		return true
	default:
		r.fail(member)
	}
	return false
}

// index reads an unsigned integer up to 2^53−1 without leading zeros.
func (r *reader) index(member string) uint64 {
	if !r.skip(member) {
		return 0
	}
	var n uint64
	i := 0
	for i < len(r.s) && r.s[i] >= '0' && r.s[i] <= '9' {
		n = n*10 + uint64(r.s[i]-'0')
		if i++; n > MaxInt {
			break
		}
	}
	if i == 0 || n > MaxInt || i > 1 && r.s[0] == '0' {
		r.fail(member)
		return 0
	}
	r.s = r.s[i:]
	return n
}

// integer reads what appendInt writes.
func (r *reader) integer(member string) int64 {
	if !r.skip(member) {
		return 0
	}
	quoted := strings.HasPrefix(r.s, `"`)
	s := r.s
	if quoted {
		s = s[1:]
	}
	i := 0
	if strings.HasPrefix(s, "-") {
		i++
	}
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	var buf [24]byte
	form := appendInt(buf[:0], n)
	if err != nil || !strings.HasPrefix(r.s, string(form)) {
		r.fail(member)
		return 0
	}
	r.s = r.s[len(form):]
	return n
}

func (r *reader) str(member string) string {
	if !r.skip(member) {
		return ""
	}
	if !strings.HasPrefix(r.s, `"`) {
		r.fail(member)
		return ""
	}
	for i := 1; i < len(r.s); i++ {
		c := r.s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		if c == '"' {
			s := r.s[1:i]
			r.s = r.s[i+1:]
			return s
		}
		if c == '\\' {
			return r.escaped(member)
		}
		break
	}
	r.fail(member)
	return ""
}

// escaped reads a string with escapes, each in the one form RFC 8785 gives it.
func (r *reader) escaped(member string) string {
	end := 1
	for end < len(r.s) && r.s[end] != '"' {
		if r.s[end] == '\\' {
			end++
		}
		end++
	}
	if end >= len(r.s) {
		r.fail(member)
		return ""
	}
	var out []byte
	for i := 1; i < end; i++ {
		c := r.s[i]
		if c != '\\' {
			out = append(out, c)
			continue
		}
		i++
		switch c := r.s[i]; c {
		case '"', '\\':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 't':
			out = append(out, '\t')
		case 'n':
			out = append(out, '\n')
		case 'f':
			out = append(out, '\f')
		case 'r':
			out = append(out, '\r')
		case 'u':
			n, err := strconv.ParseUint(r.s[i+1:min(i+5, end)], 16, 8)
			if err != nil {
				r.fail(member)
				return ""
			}
			out = append(out, byte(n))
			i += 4
		default:
			r.fail(member)
			return ""
		}
	}
	// The one check for everything above: it encodes back to what was read.
	if s := string(out); utf8.ValidString(s) && string(appendString(nil, s)) == r.s[:end+1] {
		r.s = r.s[end+1:]
		return s
	}
	r.fail(member)
	return ""
}

func (r *reader) digest(member string) vault.Digest {
	if !r.skip(member) {
		return vault.Digest{}
	}
	if strings.HasPrefix(r.s, "null") {
		r.s = r.s[4:]
		return vault.Digest{}
	}
	var d vault.Digest
	const n = 2 * len(d)
	if len(r.s) < n+2 || r.s[0] != '"' || r.s[n+1] != '"' {
		r.fail(member)
		return vault.Digest{}
	}
	digits, wrong := r.s[1:n+1], byte(0)
	for i := range d {
		hi, lo := hexValue[digits[2*i]], hexValue[digits[2*i+1]]
		wrong |= hi | lo
		d[i] = hi<<4 | lo
	}
	if wrong > 15 || d.IsZero() { // zero is written as null
		r.fail(member)
		return vault.Digest{}
	}
	r.s = r.s[n+2:]
	return d
}

var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	return t
}()

func (r *reader) grade(member string) vault.Grade {
	s := r.str(member)
	if r.bad {
		return vault.GradeNone
	}
	g, err := vault.ParseGrade(s)
	if err != nil {
		r.fail(member)
	}
	return g
}

func (r *reader) verdict(member string) vault.Verdict {
	switch s := r.str(member); s {
	case "allow":
		return vault.Allow
	case "ask":
		return vault.Ask
	case "deny":
	default:
		r.fail(member)
	}
	return vault.Deny
}

// time reads the 27 characters of appendTime.
func (r *reader) time(member string) time.Time {
	const form = "0000-00-00T00:00:00.000000Z"
	if !r.skip(member) {
		return time.Time{}
	}
	if len(r.s) < len(form) {
		r.fail(member)
		return time.Time{}
	}
	s := r.s[:len(form)]
	for i := range len(form) {
		if digit := form[i] == '0'; digit && (s[i] < '0' || s[i] > '9') || !digit && s[i] != form[i] {
			r.fail(member)
			return time.Time{}
		}
	}
	year, month, day := number(s[0:4]), number(s[5:7]), number(s[8:10])
	hour, minute, sec := number(s[11:13]), number(s[14:16]), number(s[17:19])
	t := time.Date(year, time.Month(month), day, hour, minute, sec, number(s[20:26])*1000, time.UTC)
	// time.Date normalises the 31st of April; the calendar does not have it.
	if y, m, d := t.Date(); y != year || int(m) != month || d != day || hour > 23 || minute > 59 || sec > 59 {
		r.fail(member)
		return time.Time{}
	}
	r.s = r.s[len(form):]
	return t
}

func number(s string) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}
