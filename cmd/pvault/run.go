package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
)

func (a *app) runCommand() *cobra.Command {
	var task taskFlags
	var r admin.RunRequest
	c := &cobra.Command{
		Use:   "run --task FILE -- COMMAND [ARGS...]",
		Short: "Run an agent in a sandbox with a task's authority",
		Long: `Run a program in a sandbox: no environment, no home, no network, no file but what
--read and --write grant. Its one way out is a channel to the gateway that belongs to
this run alone. PVAULT_URL says where: an MCP endpoint is at $PVAULT_URL/mcp, without a
token. pvault call and pvault mcp find it by themselves. The exit code is the program's.`,
		Example: example("pvault run --task task.yaml --read ./agent -- /usr/bin/node ./agent/main.js"),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			t, err := a.open(cmd.Context(), client, task)
			if err != nil {
				return err
			}
			r.Token, r.Argv = t.Token, args
			for _, list := range [][]string{r.ReadOnly, r.ReadWrite} {
				for i, p := range list {
					if list[i], err = filepath.Abs(p); err != nil {
						return err
					}
				}
			}
			return a.sandboxed(cmd.Context(), client, r)
		},
	}
	task.add(c)
	c.Flags().StringSliceVar(&r.ReadOnly, "read", nil, "files and directories the program may read")
	c.Flags().StringSliceVar(&r.ReadWrite, "write", nil, "directories the program may change")
	return c
}

// sandboxed runs r and passes its output and exit code on.
func (a *app) sandboxed(ctx context.Context, client *admin.Client, r admin.RunRequest) error {
	code := -1
	err := client.Run(ctx, r, func(f admin.Frame) error {
		switch {
		case f.Stdout != nil:
			_, err := a.out.Write(f.Stdout)
			return err
		case f.Stderr != nil:
			_, err := a.err.Write(f.Stderr)
			return err
		case f.Progress != "":
			a.progress(f.Progress)
		case f.Exit != nil:
			code = *f.Exit
		}
		return nil
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return &exit{code: code} // the program has said why
	}
	return nil
}
