package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) store() *cobra.Command {
	c := &cobra.Command{
		Use:   "store",
		Short: "Prepare a PostgreSQL for the ledger",
	}
	c.AddCommand(&cobra.Command{
		Use:   "sql",
		Short: "Print the SQL that makes the schema and the roles",
		Long: `Print the SQL that makes the schema pvault and its roles in an empty database. A
daemon makes the schema itself if its login may; where it must not, the owner of the
database runs this and grants pvault_writer to the daemon's login. pvault_writer
cannot change or delete a record, pvault_eraser can only delete the encrypted fields
beside one, pvault_auditor can only read.`,
		Example: example("pvault store sql | psql vault"),
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.out, daemon.StoreSQL())
			return err
		},
	})
	return c
}
