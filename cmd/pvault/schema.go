package main

import (
	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) schema() *cobra.Command {
	return &cobra.Command{
		Use:       "schema vault|task",
		Short:     "Print the JSON Schema of vault.yaml or task.yaml",
		Example:   example("pvault schema task > task.schema.json"),
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"vault", "task"},
		RunE: func(_ *cobra.Command, args []string) error {
			s := daemon.Schema
			if args[0] == "task" {
				s = daemon.TaskSchema()
			}
			_, err := a.out.Write(s)
			return err
		},
	}
}
