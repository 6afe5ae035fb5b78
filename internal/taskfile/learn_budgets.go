package taskfile

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// limits returns what the proposal allows in all: what the run that used most used,
// with headroom, and never more than the task file that is changed if that was
// enough.
func (g *learner) limits() (b Budgets, life time.Duration) {
	type run struct{ calls, bytes, recipients, hosts int64 }
	runs := map[vault.TaskID]*run{}
	var most run
	counted := map[string]bool{}
	for _, calls := range g.groups {
		for _, s := range calls {
			r := runs[s.Run]
			if r == nil {
				r = new(run)
				runs[s.Run] = r
			}
			r.calls++
			r.bytes += int64(len(s.Args.String()))
			for _, d := range s.Debits {
				switch d.Unit {
				case vault.UnitRecipients:
					r.recipients += d.Amount
				case vault.UnitHosts:
					r.hosts += d.Amount
				default:
					continue
				}
				counted[d.Unit] = true
			}
		}
	}
	for _, r := range runs {
		most.calls, most.bytes = max(most.calls, r.calls), max(most.bytes, r.bytes)
		most.recipients, most.hosts = max(most.recipients, r.recipients), max(most.hosts, r.hosts)
	}
	base := new(File)
	if g.Base != nil {
		base = g.Base
	}
	limit := func(what string, used, before int64) int64 {
		if used > before && before > 0 {
			g.out.Wider = append(g.out.Wider, what)
		}
		if want := g.room(used); before == 0 || used > before || want < before {
			return want
		}
		return before
	}
	b = Budgets{Time: base.Budgets.Time, Calls: limit("budgets.calls", max(most.calls, 1), base.Budgets.Calls)}
	switch {
	case len(g.hosts) == 0:
		b.BytesOut = limit("budgets.bytes_out", most.bytes, base.Budgets.BytesOut)
	case base.Budgets.BytesOut > 0:
		g.out.Wider = append(g.out.Wider, "budgets.bytes_out, which does not go together with egress")
	}
	b.Recipients, b.Hosts = base.Budgets.Recipients, base.Budgets.Hosts
	if counted[vault.UnitRecipients] {
		b.Recipients = limit("budgets.recipients", max(most.recipients, 1), b.Recipients)
	}
	if counted[vault.UnitHosts] {
		b.Hosts = limit("budgets.hosts", max(most.hosts, 1), b.Hosts)
	}
	b.Sums = g.sums(base.Budgets.Sums)
	g.out.Used = Used{most.calls, most.bytes, g.Lesson.Life.Round(time.Second).String()}
	g.out.Calls, g.out.Life = b.Calls, g.life()
	return b, g.out.Life
}

// life returns how long the task may last, in whole minutes.
func (g *learner) life() time.Duration {
	used := min(g.Lesson.Life, MaxLife)
	want := max(time.Duration(g.room(int64(used))), leastLife)
	want = min((want + time.Minute - 1).Truncate(time.Minute), MaxLife)
	switch {
	case g.Base == nil:
		return want
	case used > g.Base.Life:
		g.out.Wider = append(g.out.Wider, "life")
		return want
	}
	return min(want, g.Base.Life)
}

// sums returns the totals that are bounded: those of the base whose tool was called,
// and for a new file those of amounts with a currency beside them.
func (g *learner) sums(base []Sum) (out []Sum) {
	wanted := base
	if g.Base == nil {
		wanted = g.amounts()
	}
	for _, s := range wanted {
		k := lessonKey{vault.KindTool, s.Server, s.Tool}
		if _, still := g.rules[k]; !still {
			continue
		}
		totals := map[vault.TaskID]capability.Decimal{}
		var most capability.Decimal
		for _, c := range g.groups[k] {
			d, err := capability.ParseDecimal(c.Args.At(s.Arg).Raw())
			if err != nil || d < 0 || totals[c.Run] > maxTotal {
				totals, most = nil, math.MaxInt64 // it was not counted, or cannot be: no total is known
				break
			}
			totals[c.Run] += d
			most = max(most, totals[c.Run])
		}
		if whole := capability.Decimal(1e6); totals != nil && most <= maxTotal {
			most = capability.Decimal(g.room(int64(most)))
			most = max((most+whole-1)/whole*whole, whole)
		}
		if most > maxTotal {
			most = math.MaxInt64
		}
		if s.Limit = min(cmp.Or(s.Limit, math.MaxInt64), most); s.Limit < math.MaxInt64 && len(out) < maxSums {
			out = append(out, s)
		}
	}
	return out
}

// leastLife is the shortest life that is proposed. A recorded agent may have been done
// in a second; another time a person has to answer first.
const leastLife = 5 * time.Minute

// maxTotal keeps a total with its headroom far from overflow.
const maxTotal = math.MaxInt64 / 2000

var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// amounts returns the amounts of learned rules that one currency goes with.
func (g *learner) amounts() (out []Sum) {
	for _, k := range slices.SortedFunc(maps.Keys(g.rules), byTarget) {
		if k.kind != vault.KindTool {
			continue
		}
		args := g.rules[k].Args
		var units []string
		for _, p := range slices.Sorted(maps.Keys(args)) {
			a := args[p]
			if len(a.All) != 1 || a.All[0].Exact == nil || a.Optional {
				continue
			}
			if raw, err := a.All[0].Exact.MarshalJSON(); err == nil && currency.MatchString(strings.Trim(string(raw), `"`)) {
				units = append(units, p)
			}
		}
		roles := g.inference(g.groups[k]).roles
		for _, p := range slices.Sorted(maps.Keys(args)) {
			if roles[p] != vault.RoleAmount || args[p].Optional || len(units) != 1 || strings.ContainsAny(p, ", \t") {
				continue
			}
			unit, _ := g.groups[k][0].Args.At(units[0]).Str()
			out = append(out, Sum{Server: k.server, Tool: k.name, Arg: p, UnitArg: units[0], Unit: unit})
		}
	}
	return out
}

// write writes a budgets section on one line.
func (b *Budgets) write(w *writer) {
	w.WriteString("budgets: ")
	all := []member{
		{"calls", b.Calls > 0, func() { fmt.Fprint(w, b.Calls) }},
		{"recipients", b.Recipients > 0, func() { fmt.Fprint(w, b.Recipients) }},
		{"hosts", b.Hosts > 0, func() { fmt.Fprint(w, b.Hosts) }},
		{"time", b.Time > 0, func() { w.WriteString(duration(b.Time)) }},
		{"bytes_out", b.BytesOut > 0, func() { fmt.Fprint(w, b.BytesOut) }},
	}
	for _, s := range b.Sums {
		var key writer
		key.text("sum(" + s.Server + "." + s.Tool + "." + argName(s.Arg) + ", " + s.Unit + ")")
		all = append(all, member{key.String(), true, func() { w.WriteString(s.Limit.String()) }})
	}
	w.members(all...)
	w.WriteByte('\n')
}
