package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
)

func (a *app) auditDisclose() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "disclose INDEX FIELD --output FILE",
		Short: "Write a bundle that opens one field of one event",
		Long: `Write the evidence bundle of the run of an event, with one field open: its value, its
salt and its path to the record. Everything else stays a commitment. The bundle verifies
like any other.`,
		Example: example("pvault audit disclose 42 args -o args.zip", "pvault audit verify args.zip --key @ledger.key"),
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r admin.ExportRequest
			var err error
			if r.Only.Index, err = strconv.ParseUint(args[0], 10, 64); err != nil {
				return usage{fmt.Errorf("INDEX %q: want a number", args[0])}
			}
			if r.Only.Field = args[1]; r.Only.Field == "" || out == "" {
				return usage{errors.New("say which field, and where to: --output FILE")}
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			b, err := client.Export(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.writeBundle(out, b)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "file to write")
	return c
}

// writeBundle writes a bundle and says how to verify it.
func (a *app) writeBundle(out string, b []byte) error {
	if err := os.WriteFile(out, b, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return a.print(map[string]any{"bundle": out, "bytes": len(b)}, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s, %d bytes; verify it with: pvault audit verify %s --key KEY\n", out, len(b), out)
	})
}

func (a *app) auditErase() *cobra.Command {
	var r admin.EraseRequest
	var approver string
	c := &cobra.Command{
		Use:   "erase (INDEX FIELD | --subject PRINCIPAL) --basis TEXT",
		Short: "Erase a field, or all that was recorded for a person, for ever",
		Long: `Erase one field of one event from the live database, or destroy the keys of all runs of
a principal, which reaches backups of the database too. Their tasks must be closed. No
proof and no checkpoint changes. An approver signs for it, and the erasure is itself
recorded: what by index and name, by whom, and on what legal basis. It cannot be undone.`,
		Example: example("pvault audit erase 42 args --basis 'GDPR Art. 17(1)(a), case 7'", "pvault audit erase --subject user:clerk@example.com --basis 'GDPR Art. 17(1)(b)'"),
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case r.Basis == "":
				return usage{errors.New("say on what legal basis: --basis TEXT")}
			case len(args) == 2 && r.Subject == "":
				var err error
				if r.Index, err = strconv.ParseUint(args[0], 10, 64); err != nil {
					return usage{fmt.Errorf("INDEX %q: want a number", args[0])}
				}
				r.Field = args[1]
			case len(args) != 0 || r.Subject == "":
				return usage{errors.New("name INDEX FIELD, or --subject PRINCIPAL")}
			}
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			key, err := a.signer(conf, approver)
			if err != nil {
				return err
			}
			defer key.Close()
			done, err := client.Erase(cmd.Context(), r, approver, key)
			if err != nil {
				return err
			}
			return a.print(done, func(w io.Writer) {
				if r.Subject == "" {
					fmt.Fprintf(w, "erased %s of event %d; recorded as event %d\n", r.Field, r.Index, done.Events[0])
				}
				for i, run := range done.Runs {
					fmt.Fprintf(w, "erased the key of run %s; recorded as event %d\n", run, done.Events[i])
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&r.Subject, "subject", "", "principal, as its task files name it")
	f.StringVar(&r.Basis, "basis", "", "legal basis, such as 'GDPR Art. 17(1)(a)'")
	f.StringVar(&approver, "approver", "default", "approver key to sign with")
	return c
}
