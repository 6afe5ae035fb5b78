package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
)

func (a *app) policyLog() *cobra.Command {
	var r admin.DecisionsRequest
	var since, run string
	c := &cobra.Command{
		Use: "log", Short: "Print decisions in the form of OPA's decision log", Args: cobra.NoArgs,
		Long: `Print the decisions on record, oldest first, one to a line: with --json as events of OPA's
decision log (EventV1), with what only Vault knows under "vault". It is read from the
ledger, so nothing is lost while nobody reads: start again with --from, at the seq after
the last one. What a record does not tell is absent.

data.system.log.drop and data.system.log.mask of the policy bundles in use have their word
first, as in OPA. Where one of them fails, the event has neither input nor result and says
so, and the exit code is 7. What was dropped is counted at the end.`,
		Example: example("pvault policy log --since 24h", "pvault policy log --run t-… --json", "pvault policy log --follow --from 1000 --json"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if r.Since, err = parseSince(since, time.Now()); err != nil {
				return usage{err}
			}
			r.Run = vault.TaskID(run)
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			var printed, dropped, bare int
			err = client.Decisions(cmd.Context(), r, func(event json.RawMessage, left string) error {
				if left == admin.LeftDropped {
					dropped++
					return nil
				}
				if left == admin.LeftBare {
					bare++
				}
				printed++
				if a.json {
					_, err := fmt.Fprintf(a.out, "%s\n", event)
					return err
				}
				return a.printDecision(event)
			})
			if cmd.Context().Err() != nil {
				err = nil // who follows ends it by hand
			}
			if err != nil && printed+dropped == 0 {
				return err
			}
			fmt.Fprintf(a.err, "%d decisions, %d dropped by data.system.log.drop, %d without their input because a rule about the log failed\n", printed, dropped, bare)
			if err == nil && bare > 0 {
				return &exit{code: exitDiffers}
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVarP(&r.Follow, "follow", "f", false, "wait for more")
	f.StringVar(&since, "since", "", "not before: a duration such as 24h, or a time in RFC 3339")
	f.StringVar(&run, "run", "", "only the decisions about one task")
	f.Uint64Var(&r.From, "from", 0, "first index in the ledger")
	return c
}

// parseSince reads how long ago, or when.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q: want a duration such as 24h, or a time in RFC 3339", text)
	}
	return t, nil
}

// printDecision writes one line about a decision.
func (a *app) printDecision(raw json.RawMessage) error {
	var e struct {
		Timestamp  time.Time `json:"timestamp"`
		DecisionID string    `json:"decision_id"`
		Input      any       `json:"input"`
		Result     any       `json:"result"`
		Error      any       `json:"error"`
		Erased     []any     `json:"erased"`
		Masked     []any     `json:"masked"`
		Vault      struct {
			Seq    uint64 `json:"seq"`
			Effect string `json:"effect"`
			Agent  string `json:"agent"`
			Tool   string `json:"tool"`
		} `json:"vault"`
	}
	if err := decodeEvent(raw, &e); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out, "%8d  %s  %-5s %-24s %s", e.Vault.Seq, e.Timestamp.Format(time.RFC3339), e.Vault.Effect, visible(cmp.Or(e.Vault.Tool, member(e.Input, "hook"))), visible(e.DecisionID))
	for _, part := range []string{firstReason(e.Result), member(e.Error, "message"), counted("erased", len(e.Erased)), counted("masked", len(e.Masked))} {
		if err == nil && part != "" {
			_, err = fmt.Fprintf(a.out, "  %s", visible(part))
		}
	}
	if err == nil {
		_, err = fmt.Fprintln(a.out)
	}
	return err
}

// firstReason returns the code and rule of what decided, as far as masks left it.
func firstReason(result any) string {
	doc, _ := result.(map[string]any)
	list, _ := doc["reasons"].([]any)
	if len(list) == 0 {
		return ""
	}
	return strings.TrimSpace(member(list[0], "code") + " " + member(list[0], "rule") + member(list[0], "path"))
}

// member returns a text of an object, empty if there is none.
func member(v any, name string) string {
	doc, _ := v.(map[string]any)
	s, _ := doc[name].(string)
	return s
}

func counted(what string, n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, what)
}
