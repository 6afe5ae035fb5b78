package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) mcp() *cobra.Command {
	var task taskFlags
	c := &cobra.Command{
		Use:   "mcp --task FILE",
		Short: "Serve one task's view of the tools to a client over stdio",
		Long: `Speak MCP on standard input and output, for clients that start servers as programs.
The client sees the tools of the task and nothing else. Starting it again rejoins the
task: its budgets go on. Inside pvault run no task is needed: the sandbox has its own.`,
		Example: example(
			`{"mcpServers": {"vault": {"command": "pvault", "args": ["mcp", "--task", "/home/me/task.yaml"]}}}`),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url := a.getenv("PVAULT_URL"); url != "" {
				return daemon.Shim(cmd.Context(), a.in, a.out, http.DefaultClient, url+"/mcp", nil, nil)
			}
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			t, err := a.open(cmd.Context(), client, task)
			if err != nil {
				return err
			}
			h := http.Header{"Authorization": {"Bearer " + t.Token}}
			return daemon.Shim(cmd.Context(), a.in, a.out, client.HTTP, "http://vault/mcp", h, a.logger(conf))
		},
	}
	task.add(c)
	return c
}
