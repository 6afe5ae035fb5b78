package taskfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pilox/vault/capability"
)

// describe says of a target what a reviewer has to know. rule is nil for egress.
func (g *learner) describe(k lessonKey, rule *capability.Rule) {
	calls := g.groups[k]
	d := Learned{Target: k.String(), Kind: string(k.kind), Calls: len(calls)}
	var clean []*Seen
	var sources, pointers []string
	flow := 0
	reasons := map[string]int{}
	for _, s := range calls {
		if s.Refused != "" {
			d.Denied++
			reasons[strings.TrimSpace(string(s.Refused)+" "+s.Where)]++
		}
		if s.Flow {
			flow++
		}
		switch {
		case !s.Known:
			d.Unknown++
		case s.Tainted:
			d.Untrusted++
			sources, pointers = append(sources, s.Sources...), append(pointers, s.Untrusted...)
		default:
			clean = append(clean, s)
		}
	}
	note := func(format string, args ...any) { g.notes[k] = append(g.notes[k], fmt.Sprintf(format, args...)) }
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		note("%d of %d calls were refused then (%s), and are granted here because that was asked for", reasons[r], d.Calls, r)
	}
	if d.Untrusted > 0 {
		note("%d of %d calls came after the agent had read untrusted data (%s)", d.Untrusted, d.Calls, short(sources))
	}
	if len(pointers) > 0 {
		note("untrusted data, or nothing that is known, gave %s", short(pointers))
	}
	if d.Unknown > 0 {
		note("what the agent had read before is not on record for %d of %d calls", d.Unknown, d.Calls)
	}
	if flow > 0 {
		note("a person was asked where the data of %d of %d calls came from", flow, d.Calls)
	}
	if rule == nil && slices.ContainsFunc(calls, (*Seen).suspect) {
		note("so its paths are patterns unless a person had listed them: a path that is listed counts as the operator's choice and asks nobody")
	}
	if rule != nil && d.Untrusted+d.Unknown > 0 {
		g.without(k, rule, clean, note)
	}
	if rule != nil {
		d.Asks = rule.Ask
		if slices.Contains(rule.Ask, flowGroup) && slices.ContainsFunc(calls, (*Seen).suspect) {
			note("so every call asks the group %s; remove that only if the values are meant", flowGroup)
		}
	}
	for _, l := range g.out.LeftOut {
		if l.Target == d.Target {
			note("%d more calls are not learned from: %s", l.Calls, l.Why)
		}
	}
	d.Notes = g.notes[k]
	g.out.Targets = append(g.out.Targets, d)
}

// without says what the rule would be, had only calls counted that nothing untrusted
// came before.
func (g *learner) without(k lessonKey, rule *capability.Rule, clean []*Seen, note func(string, ...any)) {
	if len(clean) == 0 {
		note("without them it would not be here")
		return
	}
	base, _ := g.baseRule(k)
	other, _, ok := g.rule(g.inference(clean), base, clean)
	if !ok {
		return
	}
	for _, p := range slices.Sorted(maps.Keys(rule.Args)) {
		var with, without writer
		with.arg(rule.Args[p])
		if a, there := other.Args[p]; there {
			without.arg(a)
		} else {
			without.WriteString("not there")
		}
		if with.String() != without.String() {
			note("without them %s would be %s", argName(p), without.String())
		}
	}
}

// short lists a few of the different names.
func short(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return "of unknown origin"
	}
	if len(names) > 4 {
		names = append(names[:4:4], "others")
	}
	return strings.Join(names, ", ")
}
