package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// An explained capability, or task file.
type explained struct {
	capability.Explanation
	Autonomy *admin.Autonomy `json:"autonomy,omitempty"` // of the task, as far as a daemon says it
}

func (a *app) capExplain() *cobra.Command {
	var task string
	c := &cobra.Command{
		Use: "explain TOKEN | --task FILE", Short: "Say in sentences what a capability or a task file lets an agent do", Args: cobra.MaximumNArgs(1),
		Long: `Say in sentences what a capability lets an agent do: link by link, and what is left of
it under all links; with --task, what the capability of a task file will say when it is
minted. Nothing is verified. Names of servers and the autonomy level of a task come from
the daemon, if one is running. TOKEN can be - for standard input.`,
		Example: example("pvault cap explain vc1.…", "pvault cap mint --task task.yaml | pvault cap explain -", "pvault cap explain --task task.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var x explained
			if err := tokenOrTask(args, task); err != nil {
				return err
			}
			if task != "" {
				r, err := a.review(task)
				if err != nil {
					return err
				}
				if x.Explanation, err = r.Explain(); err != nil {
					return err
				}
			} else {
				chain, err := a.chain(args[0])
				if err != nil {
					return err
				}
				x.Explanation = capability.Explain(chain, a.serverNames(cmd.Context()))
				if x.Autonomy = a.autonomyOf(cmd.Context(), capability.Inspect(chain).Task.ID); x.Autonomy != nil {
					x.Summary = append(x.Summary, levelSays(x.Autonomy))
				}
			}
			return a.print(x, x.write)
		},
	}
	c.Flags().StringVar(&task, "task", "", "task file, minted or not")
	return c
}

// tokenOrTask wants one of them.
func tokenOrTask(args []string, task string) error {
	if (len(args) == 1) == (task != "") {
		return usage{errors.New("want a TOKEN, or --task FILE")}
	}
	return nil
}

// review reads a task file as it would be minted.
func (a *app) review(path string) (*daemon.Review, error) {
	file, inputs, err := daemon.ReadTask(path)
	if err != nil {
		return nil, err
	}
	conf, err := a.load()
	if err != nil {
		return nil, err
	}
	r, err := daemon.ReviewTask(conf, file, inputs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// levelSays says which level a task has.
func levelSays(l *admin.Autonomy) string {
	if l.Now != l.Began {
		return l.Means + " (it began at " + l.Began + ", and was lowered after violations)"
	}
	return l.Means
}

func (x *explained) write(w io.Writer) {
	for _, s := range x.Summary {
		fmt.Fprintln(w, visible(s))
	}
	for i, l := range x.Links {
		if l.ID.IsZero() {
			fmt.Fprintf(w, "\nlink %d, not minted\n", i)
		} else {
			fmt.Fprintf(w, "\nlink %d, %s\n", i, l.ID)
		}
		for _, s := range l.Says {
			fmt.Fprintln(w, "  "+visible(s))
		}
		if l.Empty {
			fmt.Fprintln(w, "  restricts nothing")
		}
	}
	fmt.Fprintln(w, "\nin effect")
	for _, t := range x.Effect {
		fmt.Fprintln(w, "  "+visible(t.Target))
		for _, s := range t.Rules {
			fmt.Fprintln(w, "    "+visible(s))
		}
	}
	if len(x.Effect) == 0 {
		fmt.Fprintln(w, "  nothing can be called")
	}
}

// autonomyOf returns the level of a task, as far as a daemon says it.
func (a *app) autonomyOf(ctx context.Context, id vault.TaskID) *admin.Autonomy {
	client, _, err := a.client()
	if err != nil {
		return nil
	}
	defer client.Close()
	tasks, err := client.Tasks(ctx)
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		if t.ID == id {
			return t.Autonomy
		}
	}
	return nil
}

// registered returns the registered servers, nil if no daemon says them.
func (a *app) registered(ctx context.Context) []admin.Server {
	client, _, err := a.client()
	if err != nil {
		return nil
	}
	defer client.Close()
	servers, err := client.Servers(ctx)
	if err != nil {
		return nil
	}
	return append([]admin.Server{}, servers...) // none is not nobody asked
}

// serverNames returns the names of registered servers by id, as far as a daemon
// says them.
func (a *app) serverNames(ctx context.Context) func(vault.ServerID) string {
	names := map[string]string{}
	for _, s := range a.registered(ctx) {
		names[s.ID] = s.Name
	}
	return func(id vault.ServerID) string { return names[id.String()] }
}

func (a *app) capLint() *cobra.Command {
	var task string
	var strict bool
	c := &cobra.Command{
		Use: "lint TOKEN | --task FILE", Short: "Say what of a capability or a task file deserves a second look", Args: cobra.MaximumNArgs(1),
		Long: `Report what of a capability may not mean what it was meant to. An error is what cannot
mean what it says: a link or a set that lets nothing through, a prefix that is used on
paths, a server that is not registered. A warning is what bounds little: arguments
without constraints, patterns open at an end, budgets that bound nothing, a group in
which nobody can answer. A note is what says nothing or leaves something out.

The exit code is 7 if there is an error, and with --strict also if there is a warning.
Whether servers are registered is looked up if a daemon is running. TOKEN can be - for
standard input.`,
		Example: example("pvault cap lint vc1.…", "pvault cap lint - --json < token", "pvault cap lint --task task.yaml --strict"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := tokenOrTask(args, task); err != nil {
				return err
			}
			found := []capability.Finding{} // none is [] in JSON
			if task != "" {
				r, err := a.review(task)
				if err != nil {
					return err
				}
				found = append(found, r.Lint(a.registered(cmd.Context()))...)
			} else {
				chain, err := a.chain(args[0])
				if err != nil {
					return err
				}
				found = append(found, capability.Lint(chain, time.Now())...)
			}
			if err := a.print(found, func(w io.Writer) {
				for _, f := range found {
					at := f.Where
					if task == "" {
						at = fmt.Sprintf("link %d  %s", f.Link, f.Where)
					}
					fmt.Fprintf(w, "%-8s %-15s %s: %s\n", f.Severity, f.Code, visible(at), visible(f.Detail))
				}
				if len(found) == 0 {
					fmt.Fprintln(w, "nothing found")
				}
			}); err != nil {
				return err
			}
			for _, f := range found {
				if f.Severity == capability.LintError || strict && f.Severity == capability.LintWarning {
					return &exit{code: exitDiffers}
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&task, "task", "", "task file, minted or not")
	c.Flags().BoolVar(&strict, "strict", false, "a warning counts as an error")
	return c
}
