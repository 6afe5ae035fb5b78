package daemon

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/taskfile"
)

// A Review looks at a task file that is not minted, as it would be minted under a
// configuration. It asks no daemon.
type Review struct {
	conf  Config
	file  *taskfile.File // as it was written
	under *taskfile.File // with its level expanded
	link  capability.Link
	names map[vault.ServerID]string
}

// ReviewTask parses a task file with its inputs. Servers need not be registered.
func ReviewTask(conf Config, file, inputs []byte) (*Review, error) {
	f, err := taskfile.Parse(file, func(string) ([]byte, error) { return inputs, nil })
	if err != nil {
		return nil, err
	}
	levels, err := conf.Autonomy.levels()
	if err != nil {
		return nil, err
	}
	r := &Review{conf: conf, file: f, names: map[vault.ServerID]string{}}
	if r.under, err = f.Under(levels); err != nil {
		return nil, err
	}
	r.link, err = r.under.Claims(func(name string) (vault.ServerID, bool) {
		id := vault.ServerID(vault.Hash("reviewed-server", []byte(name))) // it has one when it is registered
		r.names[id] = name
		return id, true
	})
	return r, err
}

func (r *Review) name(id vault.ServerID) string { return r.names[id] }

// Explain says in sentences what the file lets an agent do.
func (r *Review) Explain() (capability.Explanation, error) {
	x := capability.ExplainRoot(&r.link, r.name)
	x.Summary = append(x.Summary, fmt.Sprintf("for %s from when an approver mints it", taskfile.Span(r.under.Life)))
	if r.file.Autonomy != "" {
		text, err := r.conf.Autonomy.explain(r.file.Autonomy)
		if err != nil {
			return x, err
		}
		x.Summary = append(x.Summary, text)
	} else {
		x.Summary = append(x.Summary, "no autonomy level: calls ask only where this file, the flow of data or the policy demands it")
	}
	switch n := len(r.under.Inputs.Text); n {
	case 0:
		x.Summary = append(x.Summary, "no inputs: no text counts as the user's own words")
	default:
		x.Summary = append(x.Summary, fmt.Sprintf("%d bytes of inputs count as the user's own words", n))
	}
	switch d := r.under.Delegate; {
	case d.Depth == 0:
		x.Summary = append(x.Summary, "it cannot be handed on")
	default:
		x.Summary = append(x.Summary, fmt.Sprintf("it can be handed on %d more times, and only narrower", d.Depth))
	}
	return x, nil
}

// explain says what a level means here.
func (a *Autonomy) explain(level string) (string, error) {
	levels, err := a.levels()
	if err != nil {
		return "", err
	}
	l, ok := levels[level]
	if !ok {
		return "", fmt.Errorf("no autonomy level %s is configured", level)
	}
	text := fmt.Sprintf("autonomy %s: %s", level, l)
	if level == taskfile.LevelNames[0] {
		return text + "; there is no lower level", nil
	}
	strikes := a.Strikes
	if strikes == 0 {
		strikes = 3
	}
	return text + fmt.Sprintf("; every %d refusals for what it may not do lower it by a level", strikes), nil
}

// standing says which level a task began with, which one it has now, and what that
// means; nil without a level.
func (d *Daemon) standing(id vault.TaskID, began string) *admin.Autonomy {
	if began == "" {
		return nil
	}
	out := &admin.Autonomy{Began: began, Now: began}
	if l, ok := d.gateway.Autonomy.Level(id); ok {
		out.Now = l.Name
	}
	text, err := d.conf.Autonomy.explain(out.Now)
	if err != nil {
		return out
	}
	out.Means = text
	return out
}

// Lint says what of the file deserves a second look. servers are the registered ones;
// nil if nobody could be asked.
func (r *Review) Lint(servers []admin.Server) []capability.Finding {
	out := capability.LintRoot(&r.link, r.name)
	add := func(s capability.Severity, code, where, format string, args ...any) {
		out = append(out, capability.Finding{Severity: s, Code: code, Where: where, Detail: fmt.Sprintf(format, args...)})
	}
	if servers != nil {
		r.lintServers(servers, add)
	}
	for _, e := range r.under.Egress {
		if slices.ContainsFunc(e.Paths, func(p string) bool { return strings.HasPrefix(p, "/**") }) {
			add(capability.LintWarning, "open-path", "egress "+e.Host, "every path of the host passes")
		}
	}
	asks := slices.Clone(r.under.Ask)
	for _, rule := range slices.Concat(r.under.Tools, r.under.Resources, r.under.Prompts, r.under.ServerRequests) {
		asks = append(asks, rule.Ask...)
	}
	slices.Sort(asks)
	for _, g := range slices.Compact(asks) {
		if _, ok := r.conf.Approvals.Groups[g]; !ok && !slices.Contains([]string{"default", "flow", "policy"}, g) {
			add(capability.LintWarning, "nobody-answers", "ask "+g, "approvals.groups lists no such group, so nobody can answer and the calls are refused")
		}
	}
	if r.under.Life > 24*time.Hour {
		add(capability.LintNote, "long-life", "life", "%s is longer than a day: what is not used is authority that lies around", taskfile.Span(r.under.Life))
	}
	if r.file.Autonomy == "" {
		add(capability.LintNote, "no-level", "autonomy", "without a level no call asks because of its risk, and violations lower nothing")
	}
	if r.under.Inputs.Text == "" {
		add(capability.LintNote, "no-inputs", "inputs", "no text counts as the user's own words, so more calls ask")
	}
	return out
}

// lintServers holds the targets against what is registered.
func (r *Review) lintServers(servers []admin.Server, add func(s capability.Severity, code, where, format string, args ...any)) {
	known := map[string]*admin.Server{}
	for i := range servers {
		known[servers[i].Name] = &servers[i]
	}
	for _, rule := range slices.Concat(r.under.Tools, r.under.Resources, r.under.Prompts, r.under.ServerRequests) {
		if known[rule.Server] == nil {
			add(capability.LintError, "unknown-server", rule.Server+"."+rule.Name, "no such server is registered, so the file cannot be minted")
		}
	}
	for _, rule := range r.under.Tools {
		if s := known[rule.Server]; s != nil && rule.Name != "*" && !slices.Contains(s.Tools, rule.Name) {
			add(capability.LintError, "unknown-tool", rule.Server+"."+rule.Name, "the server has no such tool that was reviewed")
		}
	}
}
