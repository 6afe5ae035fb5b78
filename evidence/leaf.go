package evidence

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
)

// A Leaf is one record of a ledger: everything about an event that stands in the
// clear. All of it is assigned or checked by the sequencer before it is hashed.
type Leaf struct {
	Log         string       // origin of the ledger
	Index       uint64       // dense, from 0
	Time        time.Time    // when it got its place; microseconds, UTC
	Run         vault.TaskID // empty for the daemon's own run
	RunSeq      uint64       // dense inside the run, from 0
	PrevRunLeaf vault.Digest // leaf hash of the record before it in the run; zero for the first
	Call        string
	Phase       vault.Phase
	Intent      uint64 // index of the intent this record closes or releases
	HasIntent   bool
	Epoch       uint64 // of the daemon that wrote it
	Class       vault.Class
	Verdict     vault.Verdict
	Reason      vault.Code
	Policy      vault.Digest
	Server      vault.ServerID
	Tool        string // name in the server; empty for kinds whose name says whom or where
	Kind        vault.Kind
	Proof       vault.ProofKind
	Grade       vault.Grade
	AnyArgs     bool
	SameUID     bool
	Debits      []vault.Debit
	Refund      bool
	Fields      Fields
}

// Fields is what a leaf says about its sensitive fields: how many there are and
// the root of the tree over their commitments, in the order of [vault.FieldsOf].
type Fields struct {
	N    int
	Root vault.Digest
}

// Append appends the exact bytes of l to b. They are canonical by construction:
// members sorted, no spaces, no floats. The error names the member that a leaf
// cannot hold.
func (l *Leaf) Append(b []byte) ([]byte, error) {
	if err := l.check(); err != nil {
		return b, fmt.Errorf("encode leaf: %w", err)
	}
	start := len(b)
	b = appendBool(append(b, `{"any_args":`...), l.AnyArgs)
	b = appendString(append(b, `,"call_id":`...), l.Call)
	b = appendString(append(b, `,"class":`...), string(l.Class))
	b = append(b, `,"debits":[`...)
	for i := range l.Debits {
		if i > 0 {
			b = append(b, ',')
		}
		d := &l.Debits[i]
		b = appendInt(append(b, `{"amount":`...), d.Amount)
		b = appendString(append(b, `,"counter":`...), d.Counter)
		b = appendBool(append(b, `,"kept":`...), d.Kept)
		b = appendInt(append(b, `,"limit":`...), d.Limit)
		b = appendString(append(b, `,"unit":`...), d.Unit)
		b = append(b, '}')
	}
	b = strconv.AppendUint(append(b, `],"epoch":`...), l.Epoch, 10)
	b = strconv.AppendInt(append(b, `,"fields":{"n":`...), int64(l.Fields.N), 10)
	b = appendDigest(append(b, `,"root":`...), l.Fields.Root)
	b = appendString(append(b, `},"grade":`...), l.Grade.String())
	b = strconv.AppendUint(append(b, `,"idx":`...), l.Index, 10)
	b = append(b, `,"intent_idx":`...)
	if l.HasIntent {
		b = strconv.AppendUint(b, l.Intent, 10)
	} else {
		b = append(b, "null"...)
	}
	b = appendString(append(b, `,"kind":`...), string(l.Kind))
	b = appendString(append(b, `,"log":`...), l.Log)
	b = appendString(append(b, `,"phase":`...), string(l.Phase))
	b = appendDigest(append(b, `,"policy":`...), l.Policy)
	b = appendDigest(append(b, `,"prev_run_leaf":`...), l.PrevRunLeaf)
	b = appendString(append(b, `,"proof":`...), string(l.Proof))
	b = appendString(append(b, `,"reason":`...), string(l.Reason))
	b = appendBool(append(b, `,"refund":`...), l.Refund)
	b = appendString(append(b, `,"run":`...), string(l.Run))
	b = strconv.AppendUint(append(b, `,"run_seq":`...), l.RunSeq, 10)
	b = appendBool(append(b, `,"same_uid":`...), l.SameUID)
	b = appendDigest(append(b, `,"server":`...), vault.Digest(l.Server))
	b = appendString(append(b, `,"tool":`...), l.Tool)
	b = appendTime(append(b, `,"ts":"`...), l.Time)
	b = append(b, `","v":1,"verdict":"`...)
	b = append(append(b, l.Verdict.String()...), `"}`...)
	if len(b)-start > MaxLeaf {
		return b[:start], fmt.Errorf("encode leaf: %d bytes, more than %d", len(b)-start, MaxLeaf)
	}
	return b, nil
}

// check reports the first member that a leaf must not have. The parser calls it
// too, so both sides refuse the same.
func (l *Leaf) check() error {
	fields := vault.FieldsOf(l.Class)
	switch {
	case !validName(l.Log) || l.Log == "":
		return errors.New("log: want a name of 1 to 1024 bytes of UTF-8")
	case l.Index > MaxInt || l.RunSeq > MaxInt || l.Epoch > MaxInt || l.Intent > MaxInt:
		return errors.New("an index is beyond 2^53−1")
	case l.RunSeq > l.Index:
		return errors.New("run_seq: more records in the run than in the log")
	case (l.RunSeq == 0) != l.PrevRunLeaf.IsZero():
		return errors.New("prev_run_leaf: the first record of a run has none, the others have one")
	case !l.HasIntent && l.Intent != 0:
		return errors.New("intent_idx: set without HasIntent")
	case l.HasIntent && l.Intent >= l.Index:
		return errors.New("intent_idx: not an earlier record")
	case !validRun(l.Run):
		return errors.New("run: want at most 64 of a-z, 0-9, A-Z, - and _")
	case !validName(l.Call):
		return errors.New("call_id: want at most 1024 bytes of UTF-8")
	case !validName(l.Tool):
		return errors.New("tool: want at most 1024 bytes of UTF-8")
	case fields == nil:
		return fmt.Errorf("class: unknown %q", l.Class)
	case !validPhase(l.Phase):
		return fmt.Errorf("phase: unknown %q", l.Phase)
	case !validProof(l.Proof):
		return fmt.Errorf("proof: unknown %q", l.Proof)
	case !validCode(string(l.Reason)):
		return fmt.Errorf("reason: %q is no code", l.Reason)
	case l.Verdict > vault.Allow:
		return errors.New("verdict: unknown")
	case l.Grade > vault.GradeA:
		return errors.New("grade: unknown")
	case l.Fields.N != len(fields):
		return fmt.Errorf("fields: %d, class %s has %d", l.Fields.N, l.Class, len(fields))
	case l.Fields.Root.IsZero():
		return errors.New("fields: no root")
	case len(l.Debits) > MaxDebits:
		return fmt.Errorf("debits: %d, more than %d", len(l.Debits), MaxDebits)
	}
	if l.Kind != "" {
		if _, err := vault.ParseKind(string(l.Kind)); err != nil {
			return fmt.Errorf("kind: %w", err)
		}
	}
	for i := range l.Debits {
		if d := &l.Debits[i]; !validName(d.Counter) || !validName(d.Unit) {
			return errors.New("debits: want names of at most 1024 bytes of UTF-8")
		}
	}
	if y := l.Time.UTC().Year(); y < 1 || y > 9999 {
		return errors.New("ts: year outside 1 to 9999")
	}
	return nil
}

func validName(s string) bool { return len(s) <= MaxName && utf8.ValidString(s) }

// validRun keeps runs to what is safe as a file name, because keys are kept by run.
func validRun(id vault.TaskID) bool {
	if len(id) > 64 {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

func validCode(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func validPhase(p vault.Phase) bool {
	switch p {
	case vault.PhaseRefused, vault.PhaseAsked, vault.PhaseIntent, vault.PhaseReleased,
		vault.PhaseDone, vault.PhaseFailed, vault.PhaseCancelled, vault.PhaseUnknown,
		vault.PhaseOpened, vault.PhaseClosed, vault.PhaseNoted:
		return true
	}
	return false
}

func validProof(p vault.ProofKind) bool {
	switch p {
	case "", vault.ProofSignature, vault.ProofSession, vault.ProofDPoP, vault.ProofChannel, vault.ProofPeer, vault.ProofSVID, vault.ProofBearer:
		return true
	}
	return false
}

func appendBool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }

// appendInt writes an integer that a double keeps as a number, others as a string.
func appendInt(b []byte, n int64) []byte {
	if n >= -MaxInt && n <= MaxInt {
		return strconv.AppendInt(b, n, 10)
	}
	return append(strconv.AppendInt(append(b, '"'), n, 10), '"')
}

// appendDigest writes 64 hex digits, or null for the zero digest.
func appendDigest(b []byte, d vault.Digest) []byte {
	if d.IsZero() {
		return append(b, "null"...)
	}
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for _, c := range d {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return append(b, '"')
}

// appendString writes a string as RFC 8785 section 3.2.2.2 does.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if e := shortEscape(c); e != 0 {
			b = append(b, '\\', e)
		} else {
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}

// shortEscape returns the letter of a two-character escape, 0 if c has none.
func shortEscape(c byte) byte {
	switch c {
	case '"', '\\':
		return c
	case '\b':
		return 'b'
	case '\t':
		return 't'
	case '\n':
		return 'n'
	case '\f':
		return 'f'
	case '\r':
		return 'r'
	}
	return 0
}

// appendTime writes 2006-01-02T15:04:05.000000Z. time.AppendFormat would do the
// same in four times the time, and this is on the path of every call.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	b = pad(b, year, 4)
	b = pad(append(b, '-'), int(month), 2)
	b = pad(append(b, '-'), day, 2)
	b = pad(append(b, 'T'), hour, 2)
	b = pad(append(b, ':'), minute, 2)
	b = pad(append(b, ':'), sec, 2)
	b = pad(append(b, '.'), t.Nanosecond()/1000, 6)
	return append(b, 'Z')
}

// pad appends n as exactly width decimal digits.
func pad(b []byte, n, width int) []byte {
	at := len(b)
	b = append(b, "000000"[:width]...)
	for i := at + width - 1; i >= at; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}
