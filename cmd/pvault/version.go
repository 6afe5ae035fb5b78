package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.print(map[string]string{"version": daemon.Version}, func(w io.Writer) { fmt.Fprintln(w, "pvault "+daemon.Version) })
		},
	}
}
