package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

func (a *app) capExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain TOKEN", Short: "Say in sentences what a capability lets an agent do", Args: cobra.ExactArgs(1),
		Long: `Say in sentences what a capability lets an agent do: link by link, and what is left of
it under all links. Nothing is verified. Names of servers come from the daemon, if one
is running. TOKEN can be - for standard input.`,
		Example: example("pvault cap explain vc1.…", "pvault cap mint --task task.yaml | pvault cap explain -"),
		RunE: func(cmd *cobra.Command, args []string) error {
			chain, err := a.chain(args[0])
			if err != nil {
				return err
			}
			x := capability.Explain(chain, a.serverNames(cmd.Context()))
			return a.print(x, func(w io.Writer) {
				for _, s := range x.Summary {
					fmt.Fprintln(w, visible(s))
				}
				for i, l := range x.Links {
					fmt.Fprintf(w, "\nlink %d, %s\n", i, l.ID)
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
			})
		},
	}
}

// serverNames returns the names of registered servers by id, as far as a daemon
// says them.
func (a *app) serverNames(ctx context.Context) func(vault.ServerID) string {
	names := map[string]string{}
	if client, _, err := a.client(); err == nil {
		defer client.Close()
		servers, err := client.Servers(ctx)
		if err == nil {
			for _, s := range servers {
				names[s.ID] = s.Name
			}
		}
	}
	return func(id vault.ServerID) string { return names[id.String()] }
}

func (a *app) capLint() *cobra.Command {
	return &cobra.Command{
		Use: "lint TOKEN", Short: "Say what of a capability deserves a second look", Args: cobra.ExactArgs(1),
		Long: `Report what of a capability may not mean what it was meant to: a link that restricts
nothing, one that leaves nothing, arguments without constraints, a prefix that is used
on paths, patterns open at an end, budgets that bound nothing. The exit code is 7 if
anything is found. TOKEN can be - for standard input.`,
		Example: example("pvault cap lint vc1.…", "pvault cap lint - --json < token"),
		RunE: func(_ *cobra.Command, args []string) error {
			chain, err := a.chain(args[0])
			if err != nil {
				return err
			}
			found := capability.Lint(chain, time.Now())
			if err := a.print(found, func(w io.Writer) {
				for _, f := range found {
					fmt.Fprintf(w, "%-15s link %d  %s: %s\n", f.Code, f.Link, visible(f.Where), visible(f.Detail))
				}
				if len(found) == 0 {
					fmt.Fprintln(w, "nothing found")
				}
			}); err != nil {
				return err
			}
			if len(found) > 0 {
				return &exit{code: exitDiffers}
			}
			return nil
		},
	}
}
