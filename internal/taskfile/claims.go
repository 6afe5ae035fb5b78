package taskfile

import (
	"fmt"
	"slices"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// Claims returns what the file says of the root link of a task's capability:
// principal, purpose, inputs, grants, budgets, grade, clearance and delegation.
// The rest belongs to one instance of the task and is the minter's: tenant, agent,
// task id, audience, also that of the third parties, times (the file says how long in
// [File.Life]) and holder.
//
// A file with an autonomy level has to be expanded by [File.Under] before: without
// calls in its budgets it is an error.
//
// resolve returns the id of a registered server. A server that it does not know is
// an error at its rule, in [Errors]: a grant for nothing would look like one.
func (f *File) Claims(resolve func(server string) (vault.ServerID, bool)) (capability.Link, error) {
	if f.Budgets.Calls == 0 || f.Life == 0 {
		return capability.Link{}, Errors{f.autonomy.err("autonomy", "the level is not expanded")}
	}
	var problems Errors
	grants := capability.Grants{}
	ids := make(map[string]vault.ServerID)
	for _, part := range []struct {
		kind  vault.Kind
		rules []Rule
	}{
		{vault.KindTool, f.Tools},
		{vault.KindResource, f.Resources},
		{vault.KindPrompt, f.Prompts},
		{vault.KindServerRequest, f.ServerRequests},
	} {
		for _, r := range part.rules {
			id, ok := resolve(r.Server)
			if !ok || id.IsZero() {
				if len(problems) < maxErrors {
					problems = append(problems, &Error{
						Line: r.at.line, Column: r.at.column, Path: r.at.path,
						Problem: fmt.Sprintf("no server %q is registered", r.Server), Hint: "register it with pvault server add",
					})
				}
				continue
			}
			ids[r.Server] = id
			if grants[part.kind] == nil {
				grants[part.kind] = make(map[vault.Target]capability.Rule)
			}
			target := vault.Target{Server: id, Name: r.Name}
			if _, twice := grants[part.kind][target]; twice {
				problems = append(problems, &Error{
					Line: r.at.line, Column: r.at.column, Path: r.at.path,
					Problem: "another rule grants the same target under another name of the server", Hint: "keep one of them",
				})
				continue
			}
			grants[part.kind][target] = r.Rule
		}
	}
	if len(problems) > 0 {
		return capability.Link{}, problems
	}

	for _, e := range f.Egress {
		if grants[vault.KindEgress] == nil {
			grants[vault.KindEgress] = make(map[vault.Target]capability.Rule)
		}
		grants[vault.KindEgress][vault.Target{Name: e.Host}] = e.rule() // no server: the host is the target
	}

	budgets := &capability.Budgets{Calls: capability.Limit(f.Budgets.Calls)}
	if f.Budgets.BytesOut > 0 {
		budgets.BytesOut = capability.Limit(f.Budgets.BytesOut)
	}
	if f.Budgets.Recipients > 0 {
		budgets.Recipients = capability.Limit(f.Budgets.Recipients)
	}
	if f.Budgets.Hosts > 0 {
		budgets.Hosts = capability.Limit(f.Budgets.Hosts)
	}
	if f.Budgets.Time > 0 {
		budgets.Wall = capability.Limit(f.Budgets.Time.Milliseconds())
	}
	for _, s := range f.Budgets.Sums {
		budgets.Sums = append(budgets.Sums, capability.Sum{
			Kind: vault.KindTool, Server: ids[s.Server], Name: s.Tool,
			Arg: s.Arg, UnitArg: s.UnitArg, Unit: s.Unit, Limit: s.Limit,
		})
	}
	var parties []capability.ThirdParty
	for _, group := range f.Ask {
		parties = append(parties, capability.ThirdParty{Group: group})
	}
	depth := f.Delegate.Depth
	return capability.Link{
		Principal: f.Principal,
		Task:      &capability.Task{File: f.digest, Purpose: f.Purpose, Inputs: f.Inputs.Text},
		Depth:     &depth,
		Delegates: slices.Clone(f.Delegate.To),
		Grants:    grants,
		Budgets:   budgets,
		MinGrade:  f.Sandbox.MinGrade,
		MayRead:   slices.Clone(f.Labels.MayRead),
		MaySendTo: slices.Clone(f.Labels.MaySendTo),

		Caveats:    slices.Clone(f.Caveats),
		ThirdParty: parties,
		SignAt:     capability.SignAt(f.SignAt),
	}, nil
}
