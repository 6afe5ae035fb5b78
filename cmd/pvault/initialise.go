package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) initialise() *cobra.Command {
	var name string
	var unprotected bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the data directory and an approver key",
		Long: `Make the data directory and the key of an approver: whoever has it answers questions,
mints tasks from new files and registers servers. It is wrapped with a passphrase that
is asked for on the terminal, or read from the descriptor in PVAULT_PASSPHRASE_FD.`,
		Example: example("pvault init", "pvault init --approver deputy", "PVAULT_PASSPHRASE_FD=3 pvault init 3< passphrase.txt"),
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, err := a.load()
			if err != nil {
				return err
			}
			pass := a.passphrase("Passphrase for the approver key", true)
			if unprotected {
				pass = nil
			}
			ap, err := daemon.CreateApprover(a.approverDir(conf), name, pass)
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("an approver %q exists already; name another with --approver", name)
			}
			if err != nil {
				return fmt.Errorf("make approver key: %w", err)
			}
			return a.print(ap, func(w io.Writer) {
				fmt.Fprintf(w, "approver %s is set up in %s\n", ap.Name, a.approverDir(conf))
				if ap.Unprotected {
					fmt.Fprintln(w, "its key has no passphrase: every event it has a part in says so")
				}
				fmt.Fprintln(w, "next: pvault up (restart it if it runs), then pvault server add")
			})
		},
	}
	c.Flags().StringVar(&name, "approver", "default", "name of the approver")
	c.Flags().BoolVar(&unprotected, "unprotected", false, "no passphrase, for tests; marked in every event")
	return c
}
