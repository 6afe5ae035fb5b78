package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
)

func (a *app) auditAnchor() *cobra.Command {
	return &cobra.Command{
		Use:   "anchor",
		Short: "Ask the witnesses, log and time-stamp authority of vault.yaml to vouch for the ledger now",
		Long: `Ask every witness, the transparency log and the time-stamp authority of vault.yaml to
vouch for a fresh checkpoint now, rather than within anchor.every. Exit code 1 if one of them did not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Anchor(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.print(list, func(w io.Writer) {
				for i := range list {
					fmt.Fprintln(w, anchorLine(&list[i]))
				}
			}); err != nil {
				return err
			}
			for _, t := range list {
				if t.Error != "" {
					return errors.New("not everybody vouches for it")
				}
			}
			return nil
		},
	}
}

// anchorLine says how far somebody is who vouches for the ledger.
func anchorLine(t *admin.Anchor) string {
	s := fmt.Sprintf("%s: %d records", t.Target, t.Size)
	if !t.At.IsZero() {
		s += " at " + t.At.Format(time.RFC3339)
	}
	if t.Lag > 0 {
		s += fmt.Sprintf(", %d since", t.Lag)
	}
	if t.Error != "" {
		s += "; last attempt: " + visible(t.Error)
	}
	return s
}
