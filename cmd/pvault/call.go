package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
)

func (a *app) call() *cobra.Command {
	var task taskFlags
	var token, id, kind string
	c := &cobra.Command{
		Use:   "call SERVER.TOOL [ARGUMENTS]",
		Short: "Make one tool call, for scripts and debugging",
		Long: `Make one call through every stage, as an agent would. ARGUMENTS is a JSON object, or
- to read it from standard input. The exit code is 3 if the call was refused and 4
if a person has to answer first; then repeat it with the same --id.`,
		Example: example(
			`pvault call --task task.yaml files.read_file '{"path":"/srv/invoices/a.txt"}'`,
			`pvault call --token vc1.… --kind egress api.bank.example '{"method":"GET","path":"/v1/accounts/7"}'`),
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := admin.CallRequest{ID: id, Token: token, Name: args[0]}
			var err error
			if r.Kind, err = vault.ParseKind(kind); err != nil {
				return usage{err}
			}
			if r.Kind != vault.KindEgress {
				var ok bool
				if r.Server, r.Name, ok = strings.Cut(args[0], "."); !ok {
					return usage{fmt.Errorf("%q: want SERVER.NAME", args[0])}
				}
			}
			r.Args = json.RawMessage("{}")
			if len(args) == 2 {
				if r.Args, err = a.arguments(args[1]); err != nil {
					return err
				}
			}
			if url := a.getenv("PVAULT_URL"); url != "" {
				answer, err := admin.CallChannel(cmd.Context(), url, r)
				if err != nil {
					return err
				}
				return a.answer(answer)
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if r.Token == "" {
				t, err := a.open(cmd.Context(), client, task)
				if err != nil {
					return err
				}
				r.Token = t.Token
			}
			answer, err := client.Call(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.answer(answer)
		},
	}
	task.add(c)
	c.Flags().StringVar(&token, "token", "", "capability, instead of --task")
	c.Flags().StringVar(&id, "id", "", "call id: the same id never has a second effect")
	c.Flags().StringVar(&kind, "kind", "tool", "kind of call: tool, resource, prompt, egress")
	return c
}

// arguments takes the JSON of a command line, or of standard input for "-".
func (a *app) arguments(s string) (json.RawMessage, error) {
	b := []byte(s)
	if s == "-" {
		var err error
		if b, err = a.readFile("-", vault.MaxArgsBytes); err != nil {
			return nil, err
		}
	}
	// Checked here for a better message; the daemon checks again and is strict.
	if !json.Valid(b) {
		return nil, usage{fmt.Errorf("ARGUMENTS is not JSON: %s", strings.TrimSpace(s))}
	}
	return b, nil
}

// answer prints a result, or ends with the code of its denial.
func (a *app) answer(r admin.CallAnswer) error {
	if err := a.print(r, func(w io.Writer) {
		if r.Denial == nil {
			fmt.Fprintln(w, textOf(r.Result))
		}
	}); err != nil {
		return err
	}
	if d := r.Denial; d != nil {
		if a.json {
			code := exitDenied
			if d.Verdict == "pending" {
				code = exitPending
			}
			return &exit{code: code}
		}
		if d.Event != nil {
			fmt.Fprintln(a.err, a.dim(fmt.Sprintf("recorded as event %d", *d.Event)))
		}
		return d
	}
	if r.IsError {
		return &exit{code: exitError}
	}
	return nil
}

// textOf returns the text of an MCP result, or the result itself if it has none.
func textOf(raw json.RawMessage) string {
	var r struct {
		Content []struct{ Type, Text string }
	}
	if json.Unmarshal(raw, &r) != nil || len(r.Content) == 0 {
		return string(raw)
	}
	var parts []string
	for _, c := range r.Content {
		if c.Type != "text" {
			return string(raw)
		}
		parts = append(parts, c.Text)
	}
	return strings.Join(parts, "\n")
}
