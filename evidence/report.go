package evidence

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/pilox/vault"
)

// A Problem is what is wrong with a bundle, one word. When there are several,
// the report names the one that says most.
type Problem string

// The problems. What each means for the person who asks stands in [Problem.Exit].
const (
	ProblemNone        Problem = "ok"
	ProblemAltered     Problem = "altered"     // a record, or another signed part, is not what was recorded
	ProblemDropped     Problem = "dropped"     // a record is missing between others
	ProblemSwapped     Problem = "swapped"     // the records are not in their order
	ProblemTruncated   Problem = "truncated"   // records at the end are missing
	ProblemDisclosure  Problem = "disclosure"  // an opened value is not the one that was recorded
	ProblemMalformed   Problem = "malformed"   // not a bundle that Vault writes
	ProblemStatement   Problem = "statement"   // what ran is told otherwise than by the records
	ProblemWrongKey    Problem = "wrong_key"   // sound, but signed by another key than the pinned one
	ProblemUnpinned    Problem = "unpinned"    // sound under its own key, which anyone can make
	ProblemUnwitnessed Problem = "unwitnessed" // the quorum of the verifier's witness policy has not signed
	ProblemUnanchored  Problem = "unanchored"  // no entry of the Rekor log that the verifier named
	ProblemUnstamped   Problem = "unstamped"   // no timestamp of an authority that the verifier trusts
	ProblemRollback    Problem = "rollback"    // older than a checkpoint the verifier already holds
	ProblemSplitView   Problem = "split_view"  // contradicts a checkpoint the verifier already holds
	ProblemUnrelated   Problem = "unrelated"   // holds no proof that relates it to that checkpoint
	ProblemOtherRun    Problem = "other_run"   // of another run than the one asked for
	ProblemStale       Problem = "stale"       // older than the verifier asked for
	ProblemIncomplete  Problem = "incomplete"  // the run is still open, so later records may exist
)

// Exit codes of pvault audit verify. 1 is an error before verification and 2
// wrong usage. The tens say what to doubt: the records (10), who vouches (20),
// which history (30), whether it is over (40).
const (
	ExitOK          = 0
	ExitAltered     = 10
	ExitDropped     = 11
	ExitSwapped     = 12
	ExitTruncated   = 13
	ExitDisclosure  = 14
	ExitMalformed   = 15
	ExitStatement   = 16
	ExitWrongKey    = 20
	ExitUnpinned    = 21
	ExitUnwitnessed = 22
	ExitUnanchored  = 23
	ExitUnstamped   = 24
	ExitRollback    = 30
	ExitSplitView   = 31
	ExitUnrelated   = 32
	ExitOtherRun    = 33
	ExitStale       = 34
	ExitIncomplete  = 40
)

// Exit returns the exit code of p. An unknown problem is malformed, never ok.
func (p Problem) Exit() int {
	switch p {
	case ProblemNone:
		return ExitOK
	case ProblemAltered:
		return ExitAltered
	case ProblemDropped:
		return ExitDropped
	case ProblemSwapped:
		return ExitSwapped
	case ProblemTruncated:
		return ExitTruncated
	case ProblemDisclosure:
		return ExitDisclosure
	case ProblemStatement:
		return ExitStatement
	case ProblemUnwitnessed:
		return ExitUnwitnessed
	case ProblemUnanchored:
		return ExitUnanchored
	case ProblemUnstamped:
		return ExitUnstamped
	case ProblemStale:
		return ExitStale
	case ProblemWrongKey:
		return ExitWrongKey
	case ProblemUnpinned:
		return ExitUnpinned
	case ProblemRollback:
		return ExitRollback
	case ProblemSplitView:
		return ExitSplitView
	case ProblemUnrelated:
		return ExitUnrelated
	case ProblemOtherRun:
		return ExitOtherRun
	case ProblemIncomplete:
		return ExitIncomplete
	case ProblemMalformed:
	}
	return ExitMalformed
}

// A Report answers four questions about a bundle separately.
//
// Intact: are the records the ones that were recorded? Complete: are they all,
// for a closed run or a whole ledger, as of the checkpoint? Anchored: has
// anybody but the ledger signed it? Before: by whose word did it exist when?
//
// What no bundle can show: whoever holds the ledger key can rewrite what came
// after the last outside anchor, and show different histories to different
// people. Only something the verifier already holds (a checkpoint), a witness or
// an anchor tells; Window says how much that is.
type Report struct {
	Problem Problem `json:"problem"`
	Exit    int     `json:"exit"`
	Detail  string  `json:"detail,omitempty"`
	Record  *uint64 `json:"record,omitempty"` // index in the ledger of the first record that fails

	Log       string       `json:"log,omitempty"`
	Scope     Scope        `json:"scope,omitempty"`
	Run       vault.TaskID `json:"run,omitempty"`
	Size      uint64       `json:"size"`      // of the ledger at the checkpoint
	Records   uint64       `json:"records"`   // in the bundle, read so far
	Disclosed uint64       `json:"disclosed"` // fields opened and found right

	Intact   bool   `json:"intact"`
	Complete bool   `json:"complete"`
	OpenRuns int    `json:"open_runs"` // scope log: runs that have no closing record
	Pinned   bool   `json:"pinned"`
	Key      string `json:"key,omitempty"` // that signed the checkpoint

	AnchoredBy []string   `json:"anchored_by"`      // whose word the verifier's own keys confirm, and on how many records
	Anchored   uint64     `json:"anchored"`         // records that somebody outside has vouched for
	Strangers  int        `json:"strangers"`        // anchors by nobody the verifier named: they say nothing
	Before     *time.Time `json:"before,omitempty"` // by an anchor's word; nil without one
	First      *time.Time `json:"first,omitempty"`  // by the ledger's own word
	Last       *time.Time `json:"last,omitempty"`   // by the ledger's own word
	Window     string     `json:"window,omitempty"` // what a holder of the ledger key could have rewritten; empty if that was not reached

	Ran *Ran `json:"ran,omitempty"` // what ran, derived from the records
}

// String tells the report in a few lines for a person.
func (r Report) String() string {
	// What somebody else wrote must not drive the terminal of who reads it.
	r.Detail, r.Log, r.Run, r.Key = plain(r.Detail), plain(r.Log), vault.TaskID(plain(string(r.Run))), plain(r.Key)
	var b strings.Builder
	if r.Problem == ProblemNone {
		b.WriteString("OK\n")
	} else {
		fmt.Fprintf(&b, "%s (exit %d)", strings.ToUpper(string(r.Problem)), r.Exit)
		if r.Record != nil {
			fmt.Fprintf(&b, " at record %d", *r.Record)
		}
		if r.Detail != "" {
			fmt.Fprintf(&b, ": %s", r.Detail)
		}
		b.WriteByte('\n')
	}
	if r.Log == "" {
		return b.String()
	}
	what := "the whole ledger"
	if r.Scope == ScopeRun {
		what = "run " + string(r.Run)
	}
	fmt.Fprintf(&b, "  what       %s of %s, %d records, checkpoint %d\n", what, r.Log, r.Records, r.Size)
	fmt.Fprintf(&b, "  intact     %s\n", yes(r.Intact, "yes, every record is the one that was recorded", "no"))
	switch {
	case !r.Intact:
		b.WriteString("  complete   not known\n")
	case r.Complete && r.Scope == ScopeLog:
		fmt.Fprintf(&b, "  complete   yes, every record up to checkpoint %d; %d runs still open\n", r.Size, r.OpenRuns)
	case r.Complete:
		fmt.Fprintf(&b, "  complete   yes, the run is closed, as of checkpoint %d\n", r.Size)
	default:
		b.WriteString("  complete   no, the run is open: later records may exist\n")
	}
	fmt.Fprintf(&b, "  signed by  %s\n", yes(r.Pinned, "the pinned key "+r.Key, "no key you pinned; inside the bundle: "+r.Key))
	switch {
	case r.Window == "":
		b.WriteString("  anchored   not looked at\n")
	case len(r.AnchoredBy) == 0:
		b.WriteString("  anchored   not anchored: nobody but the ledger vouches for it")
		if r.Strangers > 0 {
			fmt.Fprintf(&b, "; %d anchors by nobody you named say nothing, see --policy, --rekor-key and --tsa-roots", r.Strangers)
		}
		b.WriteByte('\n')
	default:
		fmt.Fprintf(&b, "  anchored   by %s\n", strings.Join(r.AnchoredBy, ", "))
	}
	if r.Before == nil {
		b.WriteString("  existed    not proven by anyone outside")
	} else {
		fmt.Fprintf(&b, "  existed    before %s", r.Before.Format(time.RFC3339))
	}
	if r.First != nil && r.Last != nil {
		fmt.Fprintf(&b, "; by the ledger's own clock %s to %s", r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339))
	}
	b.WriteByte('\n')
	if r.Disclosed > 0 {
		fmt.Fprintf(&b, "  opened     %d fields, each the value that was recorded\n", r.Disclosed)
	}
	if r.Window != "" {
		fmt.Fprintf(&b, "  window     %s\n", r.Window)
	}
	if r.Ran != nil {
		b.WriteString(r.Ran.story())
	}
	return b.String()
}

// plain puts a replacement character for each that is not for reading.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

func yes(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}
