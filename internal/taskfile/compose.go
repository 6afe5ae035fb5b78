package taskfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
)

// A learned comment begins so, and is replaced when the file is learned again.
const learnedMark = "learned: "

var errLayout = errors.New("only a task file with one key a line can be changed: write its keys at the beginning of lines, without braces around the whole file")

// A chunk is one key of a mapping with the comments before it, as lines.
type chunk struct {
	key      string
	comments []string
	body     []string
	at       int        // line of the key
	node     *yaml.Node // of the value
}

func (c *chunk) String() string { return strings.Join(c.comments, "") + strings.Join(c.body, "") }

// chunks cuts the lines from..to of a file into the keys of a block mapping; before is
// what stands above the first. Lines count from 0, to is exclusive.
func chunks(lines []string, m *yaml.Node, from, to int) (before []string, out []chunk, err error) {
	if m.Kind != yaml.MappingNode || m.Style&yaml.FlowStyle != 0 || len(m.Content) == 0 {
		return nil, nil, errLayout
	}
	column := m.Content[0].Column
	var starts []int
	last := from - 1
	for i := 0; i < len(m.Content); i += 2 {
		k := m.Content[i]
		at := k.Line - 1
		if k.Column != column || at <= last || at >= to {
			return nil, nil, errLayout
		}
		last = at
		starts = append(starts, at)
		out = append(out, chunk{key: k.Value, at: at, node: m.Content[i+1]})
	}
	end := from
	for i := range out {
		first := starts[i]
		for first > end && strings.HasPrefix(strings.TrimSpace(lines[first-1]), "#") {
			first--
		}
		if i == 0 {
			before = lines[from:first]
		} else {
			out[i-1].body = lines[starts[i-1]:first]
		}
		out[i].comments, end = lines[first:starts[i]], starts[i]+1
	}
	out[len(out)-1].body = lines[starts[len(starts)-1]:to]
	return before, out, nil
}

// compose writes the proposal: the text of the base, in which the sections that were
// learned are replaced and all else stands as it was, or a new file.
func (g *learner) compose() ([]byte, error) {
	text := string(g.Text)
	if g.Base == nil {
		text = g.head()
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	d := &decoder{}
	root, err := d.parse([]byte(text))
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(text, "\n")
	before, have, err := chunks(lines, root, 0, len(lines))
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(have, func(c chunk) bool { return !slices.Contains(fileKeys, c.key) }) {
		return nil, errLayout
	}
	limits, life := g.limits()
	for _, key := range []string{"life", "tools", "resources", "prompts", "server_requests", "egress", "budgets"} {
		i := slices.IndexFunc(have, func(c chunk) bool { return c.key == key })
		var old *chunk
		if i >= 0 {
			old = &have[i]
		}
		var body string
		switch key {
		case "life":
			if body = "life: " + duration(life) + "\n"; old != nil && life == g.Base.Life {
				continue
			}
		case "budgets":
			var now, then writer
			limits.write(&now)
			if g.Base != nil {
				g.Base.Budgets.write(&then)
			}
			if body = now.String(); old != nil && now.String() == then.String() {
				continue
			}
		case "egress":
			if body = g.egressSection(); old != nil && body == g.baseEgress() {
				continue
			}
		default:
			body = g.section(key, lines, old)
		}
		switch {
		case body == "" && old != nil:
			have = slices.Delete(have, i, i+1)
		case body != "" && old != nil:
			old.body = append([]string{body}, blank(old.body)...)
		case body != "":
			at := slices.IndexFunc(have, func(c chunk) bool { return slices.Index(fileOrder, c.key) > slices.Index(fileOrder, key) })
			if at < 0 {
				at = len(have)
			}
			have = slices.Insert(have, at, chunk{key: key, body: []string{body}})
		}
	}
	out := strings.Join(before, "")
	for i := range have {
		out += have[i].String()
	}
	return []byte(out), nil
}

// fileOrder is the order in which new keys find their place.
var fileOrder = []string{
	"version", "purpose", "principal", "autonomy", "life", "inputs", "sandbox", "tools", "resources", "prompts",
	"server_requests", "egress", "budgets", "labels", "delegate", "caveats", "ask", "sign_at",
}

// blank returns the empty lines at the end.
func blank(lines []string) []string {
	i := len(lines)
	for i > 0 && strings.TrimSpace(lines[i-1]) == "" {
		i--
	}
	return lines[i:]
}

// head writes what a new file says beside what was learned.
func (g *learner) head() string {
	var w writer
	w.WriteString("version: 1\n")
	w.WriteString("purpose: ")
	w.text(g.Purpose)
	w.WriteString("\nprincipal: ")
	if kind, name, ok := strings.Cut(g.Principal, ":"); ok && plainText.MatchString(kind) && plainText.MatchString(name) {
		w.WriteString(g.Principal)
	} else {
		w.text(g.Principal)
	}
	w.WriteByte('\n')
	if g.Inputs {
		w.comment(0, learnedMark+"the task had inputs, which are not copied: name their file here (inputs: ./request.txt)")
	}
	if grade := g.leastGrade(); grade > vault.GradeNone {
		fmt.Fprintf(&w, "sandbox: {min_grade: %s}\n", grade)
	}
	if len(g.MayRead)+len(g.MaySendTo) > 0 {
		w.WriteString("labels: ")
		w.members(
			member{"may_read", len(g.MayRead) > 0, func() { w.texts(g.MayRead) }},
			member{"may_send_to", len(g.MaySendTo) > 0, func() { w.texts(g.MaySendTo) }},
		)
		w.WriteByte('\n')
	}
	if len(g.Caveats) > 0 {
		w.WriteString("caveats: ")
		w.texts(g.Caveats)
		w.WriteByte('\n')
	}
	if len(g.Ask) > 0 {
		w.WriteString("ask: ")
		w.groups(g.Ask)
		w.WriteByte('\n')
	}
	if g.SignAt != "" {
		w.WriteString("sign_at: " + g.SignAt + "\n")
	}
	return w.String()
}

// leastGrade is the grade that every tool call ran at, at least.
func (g *learner) leastGrade() vault.Grade {
	least, found := vault.GradeA, false
	for k, calls := range g.groups {
		if k.kind != vault.KindTool {
			continue
		}
		for _, s := range calls {
			if s.Refused == "" {
				least, found = min(least, s.Grade), true
			}
		}
	}
	if !found {
		return vault.GradeNone
	}
	return least
}

// section writes the rules of one section. A rule that says what it said before keeps
// its lines, and each keeps the comments of people.
func (g *learner) section(key string, lines []string, old *chunk) string {
	var w writer
	done := map[lessonKey]bool{}
	add := func(target string, c *chunk) {
		for k := range g.rules {
			if sectionOf[k.kind] == key && k.String() == target && !done[k] {
				g.entry(&w, k, c)
				done[k] = true
			}
		}
	}
	if old != nil {
		_, entries, err := chunks(lines, old.node, old.at+1, old.at+len(old.body))
		if err != nil {
			entries = nil // in braces: written anew
		}
		for i := range entries {
			add(entries[i].key, &entries[i])
		}
	}
	for i := range g.out.Targets {
		if t := &g.out.Targets[i]; sectionOf[vault.Kind(t.Kind)] == key {
			add(t.Target, nil)
		}
	}
	if w.Len() == 0 {
		return ""
	}
	return key + ":\n" + w.String()
}

// entry writes one rule with what there is to know about it. c is where it stands in
// the base, or nil.
func (g *learner) entry(w *writer, k lessonKey, c *chunk) {
	if c != nil {
		for _, l := range c.comments {
			if !strings.HasPrefix(strings.TrimSpace(l), "# "+learnedMark) {
				w.WriteString(l)
			}
		}
	}
	for _, n := range g.notes[k] {
		w.comment(2, learnedMark+n)
	}
	rule := g.rules[k]
	if base, _ := g.baseRule(k); base != nil && c != nil {
		var now, then writer
		now.rule("", &rule)
		then.rule("", &base.Rule)
		if now.String() == then.String() {
			w.WriteString(strings.Join(c.body, ""))
			return
		}
	}
	w.rule(k.String(), &rule)
	if c != nil {
		w.WriteString(strings.Join(blank(c.body), ""))
	}
}

// egressSection writes the hosts.
func (g *learner) egressSection() string {
	var w writer
	for _, host := range slices.Sorted(maps.Keys(g.hosts)) {
		e := g.hosts[host]
		for _, n := range g.notes[lessonKey{vault.KindEgress, "", host}] {
			w.comment(2, learnedMark+n)
		}
		w.egress(&e)
	}
	if w.Len() == 0 {
		return ""
	}
	return "egress:\n" + w.String()
}

// baseEgress is the egress section of the base as egressSection would write it.
func (g *learner) baseEgress() string {
	if g.Base == nil {
		return ""
	}
	var w writer
	w.WriteString("egress:\n")
	for i := range g.Base.Egress {
		w.egress(&g.Base.Egress[i])
	}
	return w.String()
}
