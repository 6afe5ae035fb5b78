package main

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (a *app) approve() *cobra.Command {
	c := &cobra.Command{
		Use: "approve", Short: "Answer the calls that wait for a person", Args: cobra.NoArgs,
		Long: "Answer the calls that wait for a person. What you see is rendered here from the same bytes that are signed,\nhashed and executed.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.approveList(), a.approveShow(), a.decide("allow", true), a.decide("deny", false))
	return c
}

func (a *app) approveList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the open questions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Approvals(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tSTATE\tTARGET\tGROUPS\tEXPIRES")
				for _, q := range list {
					fmt.Fprintf(t, "%s\t%s\t%s\t%v\t%s\n", q.ID, q.State, q.Target, q.Groups, q.Expires.Format(time.RFC3339))
				}
				_ = t.Flush()
			})
		},
	}
}

// question fetches one question and renders it from its signed bytes, so that the
// daemon's word for the text is not needed.
func (a *app) question(cmd *cobra.Command, client *admin.Client, id string) (admin.Approval, ed25519.PublicKey, error) {
	status, err := client.Status(cmd.Context())
	if err != nil {
		return admin.Approval{}, nil, err
	}
	list, err := client.Approvals(cmd.Context())
	if err != nil {
		return admin.Approval{}, nil, err
	}
	for _, q := range list {
		if q.ID == id {
			q.Text, err = daemon.RenderQuestion(q.Question, status.ApprovalKey)
			return q, status.ApprovalKey, err
		}
	}
	return admin.Approval{}, nil, &admin.Error{Code: "not_found", Message: "no question " + id, Hint: "pvault approve ls lists them"}
}

func (a *app) approveShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show exactly what would run", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			q, _, err := a.question(cmd, client, args[0])
			if err != nil {
				return err
			}
			return a.print(q, func(w io.Writer) { fmt.Fprintln(w, q.Text) })
		},
	}
}

func (a *app) decide(word string, allow bool) *cobra.Command {
	var approver string
	c := &cobra.Command{
		Use:     word + " ID",
		Short:   map[bool]string{true: "Allow this call once", false: "Refuse this call"}[allow],
		Example: example("pvault approve show q-…", "pvault approve "+word+" q-…"),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			q, gateway, err := a.question(cmd, client, args[0])
			if err != nil {
				return err
			}
			if !a.json && !a.quiet {
				fmt.Fprintln(a.err, q.Text)
			}
			key, err := a.signer(conf, approver)
			if err != nil {
				return err
			}
			defer key.Close()
			answer, err := key.Answer(q.Question, gateway, allow)
			if err != nil {
				return err
			}
			if err := client.Answer(cmd.Context(), q.ID, answer); err != nil {
				return err
			}
			return a.print(map[string]string{"id": q.ID, "answer": word}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s\n", word, q.Target)
			})
		},
	}
	c.Flags().StringVar(&approver, "approver", "default", "approver key to sign with")
	return c
}
