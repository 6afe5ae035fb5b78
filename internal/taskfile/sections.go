package taskfile

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// The keys of each mapping. schema.json lists the same ones; a test compares them.
var (
	fileKeys = []string{
		"version", "purpose", "principal", "life", "inputs", "sandbox", "tools", "resources",
		"prompts", "server_requests", "egress", "budgets", "labels", "delegate", "caveats", "ask", "sign_at", "autonomy",
	}
	sandboxKeys  = []string{"min_grade", "escalate"}
	ruleKeys     = []string{"args", "ask"}
	budgetKeys   = []string{"calls", "recipients", "hosts", "time", "bytes_out"} // and sum(SERVER.TOOL.ARGUMENT, UNIT)
	labelKeys    = []string{"may_read", "may_send_to"}
	delegateKeys = []string{"depth", "to"}
	// serverRequests are what a server may ask of the agent's side.
	serverRequests = []string{"sampling/createMessage", "elicitation/create", "roots/list"}
)

var (
	plainName     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	principalForm = regexp.MustCompile(`^(user|service):\S+$`)
	dnsName       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	spiffeID      = regexp.MustCompile(`^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$`)
	sumForm       = regexp.MustCompile(`^sum\(\s*([^,\s]+)\s*,\s*([A-Za-z0-9_-]{1,16})\s*\)$`)
)

func (d *decoder) file(n *yaml.Node) *File {
	m := d.fields(n, "", fileKeys)
	f := &File{}
	if len(m) == 0 && n.Kind != yaml.MappingNode {
		return f
	}
	need := func(key, hint string) *yaml.Node {
		v := m[key]
		if v == nil {
			d.failHint(n, "", hint, "%s is missing", key)
		}
		return v
	}
	if v := need("version", "this is version: 1"); v != nil {
		if got, ok := d.integer(v, "version", 1, 1); ok {
			f.Version = int(got)
		}
	}
	if v := need("purpose", "say in a sentence what the task is for"); v != nil {
		f.Purpose = d.text(v, "purpose", maxPurpose)
	}
	if v := need("principal", "say for whom it runs: user:clerk@example.com"); v != nil {
		f.Principal = d.text(v, "principal", 256)
		if f.Principal != "" && !principalForm.MatchString(f.Principal) {
			d.fail(v, "principal", "want user:NAME or service:NAME")
		}
	}
	if v := m["autonomy"]; v != nil {
		f.Autonomy = d.level(v, "autonomy")
		f.autonomy = place{v.Line, v.Column, "autonomy"}
	}
	// A level gives what the file does not say.
	given := m["autonomy"] != nil
	if v := m["life"]; v != nil || !given {
		if v = need("life", "say how long it may last: 30m"); v != nil {
			f.Life = d.life(v, "life")
		}
	}
	if v := m["inputs"]; v != nil {
		f.Inputs.Path = d.text(v, "inputs", maxConstraint)
	}
	if v := m["sandbox"]; v != nil {
		f.Sandbox = d.sandbox(v, "sandbox")
	}
	f.Tools = d.rules(m["tools"], "tools", nameCheck["tools"])
	f.Prompts = d.rules(m["prompts"], "prompts", nameCheck["prompts"])
	f.Resources = d.rules(m["resources"], "resources", nameCheck["resources"])
	f.ServerRequests = d.rules(m["server_requests"], "server_requests", nameCheck["server_requests"])
	if v := m["egress"]; v != nil {
		f.Egress = d.egress(v, "egress")
	}
	budgets := m["budgets"]
	if budgets == nil && !given {
		budgets = need("budgets", "say at least how many calls: budgets: {calls: 50}")
	}
	if v := budgets; v != nil {
		f.Budgets = d.budgets(v, "budgets", f.Tools, given)
		if f.Budgets.BytesOut > 0 && m["egress"] != nil {
			// A capability with both allows no request at all.
			d.unsupported(v, "budgets.bytes_out", "a budget of bytes does not count requests to hosts in this version", "remove it or egress")
		}
	}
	if v := m["labels"]; v != nil {
		f.Labels = d.labels(v, "labels")
	}
	if v := m["delegate"]; v != nil {
		f.Delegate = d.delegate(v, "delegate")
	}
	if v := m["caveats"]; v != nil {
		f.Caveats = d.texts(v, "caveats", maxConstraint, func(string) error { return nil })
		if len(f.Caveats) > maxCaveats {
			d.fail(v, "caveats", "more than %d", maxCaveats)
		}
	}
	if v := m["ask"]; v != nil {
		f.Ask = d.groups(v, "ask")
	}
	if v := m["sign_at"]; v != nil {
		f.SignAt = d.risk(v, "sign_at")
	}
	return f
}

// risk reads a least risk.
func (d *decoder) risk(n *yaml.Node, path string) string {
	s := d.text(n, path, 16)
	if s != "" && !slices.Contains([]string{"low", "medium", "high"}, s) {
		d.fail(n, path, "want low, medium or high")
	}
	return s
}

func (d *decoder) life(n *yaml.Node, path string) time.Duration {
	s := d.text(n, path, 64)
	if s == "" {
		return 0
	}
	life, err := time.ParseDuration(s)
	switch {
	case err != nil:
		d.fail(n, path, "want a duration such as 30m or 2h")
	case life < time.Second || life > MaxLife:
		d.failHint(n, path, "what lasts longer is not one task", "want a duration from 1s to %s", strings.TrimSuffix(MaxLife.String(), "0m0s"))
	}
	return life
}

func (d *decoder) sandbox(n *yaml.Node, path string) (s Sandbox) {
	m := d.fields(n, path, sandboxKeys)
	if v := m["escalate"]; v != nil {
		d.unsupported(v, path+".escalate", "escalation to another sandbox is not supported by this version", "remove it, and demand the sandbox that the task needs from the start with min_grade")
	}
	if v := m["min_grade"]; v != nil {
		if text := d.text(v, path+".min_grade", 8); text != "" {
			g, err := vault.ParseGrade(text)
			if err != nil {
				d.fail(v, path+".min_grade", "%v", err)
			}
			s.MinGrade, s.stated = g, true
		}
	}
	return s
}

// rules reads a mapping of SERVER.NAME to a rule.
func (d *decoder) rules(n *yaml.Node, path string, check func(name string) error) []Rule {
	if n == nil {
		return nil
	}
	entries := d.entries(n, path)
	if len(entries) > maxRules {
		d.fail(n, path, "more than %d rules", maxRules)
		return nil
	}
	var out []Rule
	for _, e := range entries {
		at := path + "." + e.key
		// The first dot ends the server: registered names have none, the names of
		// tools and URIs may.
		server, name, found := strings.Cut(e.key, ".")
		switch {
		case !found || name == "" || !plainName.MatchString(server):
			d.failHint(e.keyNode, path, "write SERVER.NAME, or SERVER.* for every one of a server", "%q is no target", e.key)
			continue
		case len(name) > maxTarget || strings.ContainsFunc(name, hidden):
			d.fail(e.keyNode, path, "the name is too long or holds a character that does not show")
			continue
		}
		if name != "*" {
			if err := check(name); err != nil {
				d.fail(e.keyNode, path, "%v", err)
				continue
			}
		}
		r := Rule{Server: server, Name: name, Rule: d.rule(e, at)}
		r.at = place{e.keyNode.Line, e.keyNode.Column, at}
		if name == "*" && !r.Any {
			d.failHint(e.keyNode, at, "name the targets to constrain their arguments", "a rule for every name must say args: any")
		}
		out = append(out, r)
	}
	return out
}

// nameCheck checks the name of a target, by section.
var nameCheck = map[string]func(string) error{
	"tools": toolName, "prompts": toolName, "resources": resourceURI, "server_requests": serverRequest,
}

func resourceURI(s string) error {
	if !strings.Contains(s, ":") {
		return fmt.Errorf("%q is no URI", s)
	}
	return nil
}

func serverRequest(s string) error {
	if !slices.Contains(serverRequests, s) {
		return fmt.Errorf("unknown server request %q: want one of %s", s, strings.Join(serverRequests, ", "))
	}
	return nil
}

func toolName(s string) error {
	if len(s) > 128 || strings.ContainsAny(s, " *?[]{}\"'`\\") {
		return fmt.Errorf("%q is no name: write it out in full, or SERVER.* for every one", s)
	}
	return nil
}

func (d *decoder) rule(e entry, path string) (r capability.Rule) {
	m := d.fields(e.v, path, ruleKeys)
	switch v := m["args"]; {
	case v == nil:
		if e.v.Kind == yaml.MappingNode {
			d.failHint(e.keyNode, path, "name the arguments; args: {} allows none and args: any does not constrain them", "args is missing")
		}
	case v.Kind == yaml.ScalarNode && v.Value == "any":
		r.Any = true
	case v.Kind == yaml.ScalarNode:
		d.fail(v, path+".args", "want the arguments by name, or any")
	default:
		r.Args = d.args(v, path+".args", 0)
	}
	if v := m["ask"]; v != nil {
		r.Ask = d.groups(v, path+".ask")
	}
	return r
}

// groups reads one approval group or a list of them.
func (d *decoder) groups(n *yaml.Node, path string) []string {
	if n.Kind == yaml.ScalarNode {
		s := d.text(n, path, 64)
		if s == "" {
			return nil
		}
		if err := groupName(s); err != nil {
			d.fail(n, path, "%v", err)
		}
		return []string{s}
	}
	out := d.texts(n, path, 64, groupName)
	slices.Sort(out)
	if len(out) > maxGroups {
		d.fail(n, path, "more than %d groups", maxGroups)
	}
	return out
}

func groupName(s string) error {
	if !plainName.MatchString(s) {
		return fmt.Errorf("%q is no name of letters, digits, - and _", s)
	}
	return nil
}

func hostName(s string) error {
	if len(s) > 253 || !dnsName.MatchString(s) {
		return fmt.Errorf("%q is no DNS name in lower case", s)
	}
	return nil
}

func (d *decoder) budgets(n *yaml.Node, path string, tools []Rule, given bool) (b Budgets) {
	entries := d.entries(n, path)
	calls := false
	for _, e := range entries {
		at := path + "." + e.key
		switch {
		case e.key == "calls":
			calls = true
			b.Calls, _ = d.integer(e.v, at, 1, 1_000_000_000)
		case e.key == "bytes_out":
			b.BytesOut = d.size(e.v, at)
		case e.key == "recipients":
			b.Recipients, _ = d.integer(e.v, at, 1, 1_000_000)
		case e.key == "hosts":
			b.Hosts, _ = d.integer(e.v, at, 1, 1_000_000)
		case e.key == "time":
			b.Time = d.life(e.v, at)
		case strings.HasPrefix(e.key, "sum("):
			if s, ok := d.sum(e, at, tools); ok {
				b.Sums = append(b.Sums, s)
			}
		default:
			d.unknown(e, path, budgetKeys, ", sum(SERVER.TOOL.ARGUMENT, UNIT)")
		}
	}
	if len(b.Sums) > maxSums {
		d.fail(n, path, "more than %d sums", maxSums)
	}
	if !calls && !given && n.Kind == yaml.MappingNode {
		d.failHint(n, path, "a task without a bound on calls is never over", "calls is missing")
	}
	return b
}

// sum reads sum(SERVER.TOOL.ARGUMENT, UNIT): LIMIT against the rules of the file.
// Without a rule that demands the amount and fixes the unit, the total would be
// one of apples and pears.
func (d *decoder) sum(e entry, path string, tools []Rule) (s Sum, ok bool) {
	m := sumForm.FindStringSubmatch(e.key)
	if m == nil {
		d.fail(e.keyNode, path, "want sum(SERVER.TOOL.ARGUMENT, UNIT)")
		return s, false
	}
	var rule *Rule
	for i := range tools {
		r := &tools[i]
		prefix := r.Server + "." + r.Name + "."
		// Names may hold dots: the longest tool that fits is meant.
		if strings.HasPrefix(m[1], prefix) && len(m[1]) > len(prefix) && (rule == nil || len(r.Name) > len(rule.Name)) {
			rule = r
			s.Arg = argPointer(m[1][len(prefix):])
		}
	}
	if rule == nil {
		d.failHint(e.keyNode, path, "write SERVER.TOOL.ARGUMENT of a tool of this file", "tools has no rule for what is summed")
		return s, false
	}
	s.Server, s.Tool, s.Unit = rule.Server, rule.Name, m[2]
	amount, named := rule.Args[s.Arg]
	switch {
	case !named:
		d.failHint(e.keyNode, path, "constrain it, for example decimal: [0, 1000]", "the rule of %s.%s does not name the argument", s.Server, s.Tool)
		return s, false
	case amount.Optional:
		d.fail(e.keyNode, path, "what is summed must not be optional")
		return s, false
	}
	var units []string
	for name, arg := range rule.Args {
		if name != s.Arg && !arg.Optional && fixes(arg, s.Unit) {
			units = append(units, name)
		}
	}
	if len(units) != 1 {
		d.failHint(e.keyNode, path, "a total must not mix units: fix the argument with exact: "+s.Unit, "%s.%s needs one argument that is exactly %s, found %d", s.Server, s.Tool, s.Unit, len(units))
		return s, false
	}
	s.UnitArg = units[0]
	limit, err := capability.ParseDecimal(e.v.Value)
	if e.v.Kind != yaml.ScalarNode || err != nil || limit <= 0 {
		d.fail(e.v, path, "want a positive number with at most six decimal places")
		return s, false
	}
	s.Limit = limit
	return s, true
}

// fixes reports whether arg can only be the string value.
func fixes(arg capability.Arg, value string) bool {
	return slices.ContainsFunc(arg.All, func(c capability.Constraint) bool {
		return c.Exact != nil && *c.Exact == capability.String(value)
	})
}

// size reads a number of bytes, with a binary unit if it is large.
func (d *decoder) size(n *yaml.Node, path string) int64 {
	digits, shift := n.Value, 0
	for unit, s := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if before, ok := strings.CutSuffix(n.Value, unit); ok {
			digits, shift = before, s
		}
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if n.Kind != yaml.ScalarNode || err != nil || strconv.FormatInt(v, 10) != digits || v < 1 || v > 1<<40>>shift {
		d.fail(n, path, "want a size such as 65536, 64KiB or 1MiB, at most 1024GiB")
		return 0
	}
	return v << shift
}

func (d *decoder) labels(n *yaml.Node, path string) (l Labels) {
	m := d.fields(n, path, labelKeys)
	if v := m["may_read"]; v != nil {
		l.MayRead = d.texts(v, path+".may_read", 64, groupName)
		slices.Sort(l.MayRead)
	}
	if v := m["may_send_to"]; v != nil {
		l.MaySendTo = d.texts(v, path+".may_send_to", 253, hostName)
		slices.Sort(l.MaySendTo)
	}
	return l
}

func (d *decoder) delegate(n *yaml.Node, path string) (out Delegate) {
	m := d.fields(n, path, delegateKeys)
	v := m["depth"]
	if v == nil {
		if n.Kind == yaml.MappingNode {
			d.failHint(n, path, "depth: 1 lets the agent hand on, and nobody after it", "depth is missing")
		}
		return out
	}
	depth, _ := d.integer(v, path+".depth", 0, capability.MaxLinks-1)
	out.Depth = int(depth)
	if v := m["to"]; v != nil {
		for _, s := range d.texts(v, path+".to", 256, func(s string) error {
			if !spiffeID.MatchString(s) {
				return fmt.Errorf("%q is no SPIFFE ID", s)
			}
			return nil
		}) {
			out.To = append(out.To, vault.AgentID(s))
		}
		slices.Sort(out.To)
	}
	return out
}
