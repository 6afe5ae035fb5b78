package evidence

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault"
)

// story tells what ran, plainly and in order. Names come from records and are
// quoted: a tool must not drive the auditor's terminal.
func (r *Ran) story() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "             "+format+"\n", args...) }
	b.WriteString("  story      records " + strconv.FormatUint(r.First, 10) + " to " + strconv.FormatUint(r.Last, 10) + "\n")
	if r.Opened != nil {
		who := "a task was opened; who for is committed to in record " + strconv.FormatUint(r.Opened.Index, 10) + " and not opened here"
		if id := r.Identities; id.Agent != nil && id.Principal != nil {
			who = fmt.Sprintf("a task was opened for %s by agent %s", quoted(*id.Principal), quoted(*id.Agent))
			if id.By != nil {
				who += ", approved by " + quoted(*id.By)
			}
		}
		line("%s", who)
		if p := r.Identities.Purpose; p != nil {
			line("purpose: %s", quoted(*p))
		}
	}
	if r.Grants != nil {
		line("authority: a chain of %d links, %s", len(r.Grants.Links), r.Grants.Chain)
	}
	for _, t := range r.Tools {
		name := string(t.Kind)
		if t.Tool != "" {
			name += " " + quoted(t.Tool)
		}
		if t.Server != (vault.Digest{}) {
			name += " of server " + t.Server.String()[:16]
		}
		line("%s: %d allowed to run, %d refused", name, t.Intents, t.Refused)
	}
	if r.More > 0 {
		line("%d more records of other tools or policies", r.More)
	}
	if len(r.Grades) > 0 {
		line("sandbox grades enforced: %s", counts(r.Grades))
	}
	if len(r.Phases) > 0 {
		line("calls by phase: %s", counts(r.Phases))
	}
	if r.SameUID {
		line("agent and daemon shared a user somewhere: their separation is not claimed")
	}
	if r.Closed {
		line("the task was closed")
	}
	return b.String()
}

func counts(m map[string]uint64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}

// quoted shows at most a line of s, with what a terminal would act on escaped.
func quoted(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.QuoteToGraphic(s)
}
