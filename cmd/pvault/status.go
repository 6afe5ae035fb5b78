package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What the running daemon is, and the public keys that others pin",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			s, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) {
				fmt.Fprintf(w, "pvault %s, process %d, since %s\n", s.Version, s.PID, s.Started.Format("2006-01-02 15:04:05"))
				for _, line := range [][2]string{
					{"data", s.Data},
					{"http", s.HTTP},
					{"grade", s.Grade},
					{"tenant", s.Tenant},
					{"cluster", s.Cluster},
					{"ledger", fmt.Sprintf("%d events", s.Ledger)},
					{"questions", fmt.Sprintf("%d open, %d approvers", s.OpenAsks, s.Approvers)},
					{"ledger key", s.LedgerKey},
					{"issuer key", s.IssuerKey},
					{"session key", s.SessionKey},
					{"question key", "ed25519:" + base64.RawURLEncoding.EncodeToString(s.ApprovalKey)},
				} {
					fmt.Fprintf(w, "  %-13s %s\n", line[0], line[1])
				}
				if s.Metrics != "" {
					fmt.Fprintf(w, "  %-13s http://%s/metrics\n", "metrics", s.Metrics)
				}
				if r := s.Rules; r != nil {
					fmt.Fprintf(w, "  %-13s %.16s, %s old, %d answers, %d in shadow of which %d would be stricter\n", "policy", s.Policy,
						time.Duration(r.Age)*time.Second, r.Evaluated, r.Shadowed, r.Mismatches)
				}
				for i := range s.Anchors {
					fmt.Fprintf(w, "  %-13s %s\n", "anchor", anchorLine(&s.Anchors[i]))
				}
				for i := range s.Sinks {
					fmt.Fprintf(w, "  %-13s %s\n", "sink", sinkLine(&s.Sinks[i]))
				}
				for _, note := range s.Warnings {
					fmt.Fprintf(w, "  %-13s %s\n", "note", note)
				}
			})
		},
	}
}

// sinkLine is a receiver of events in a line.
func sinkLine(s *admin.Sink) string {
	line := fmt.Sprintf("%s (%s): up to date", s.Name, s.Kind)
	if s.Lag > 0 {
		line = fmt.Sprintf("%s (%s): %d events behind", s.Name, s.Kind, s.Lag)
	}
	if !s.At.IsZero() {
		line += ", delivered last " + s.At.Local().Format("2006-01-02 15:04:05")
	}
	if s.Refused > 0 {
		line += fmt.Sprintf(", %d dropped by the receiver", s.Refused)
	}
	if s.Error != "" {
		line += ": " + visible(s.Error)
	}
	return line
}
