package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

// An explanation is what the ledger says of one decision.
type explanation struct {
	ID       string            `json:"decision_id"`
	Run      string            `json:"run"`
	Target   string            `json:"target"`
	Outcome  string            `json:"outcome"` // the last phase on record
	Verdict  string            `json:"verdict"`
	Reasons  []explainedReason `json:"reasons"` // the one that decided first
	Labels   *explainedLabels  `json:"labels,omitempty"`
	Origins  []vault.Origin    `json:"origins,omitempty"`
	Links    []string          `json:"links,omitempty"`
	Policy   string            `json:"policy,omitempty"` // revision
	Debits   []vault.Debit     `json:"debits,omitempty"`
	Events   []uint64          `json:"events"`
	HowToAsk string            `json:"how_to_ask,omitempty"`
}

type explainedReason struct {
	Stage  string `json:"stage"`
	Code   string `json:"code"`
	Path   string `json:"path,omitempty"`   // JSON Pointer of the argument, or the rule
	Detail string `json:"detail,omitempty"` // link, caveat, rule or label
}

type explainedLabels struct {
	Integrity string   `json:"integrity"`
	Readers   []string `json:"readers"`
	Sources   []string `json:"sources,omitempty"`
}

// stageOf names the stage that a reason comes from, for people.
func stageOf(code string) string {
	for prefix, stage := range map[string]string{
		"args.": "arguments", "request.": "request", "capability.": "capability", "proof": "capability", "tool.": "catalogue", "server.": "server",
		"flow.": "flow", "policy_": "policy", "scan.": "content", "approval.": "approval", "sandbox.": "sandbox", "ledger.": "ledger",
		"upstream.": "server", "result.": "result", "egress.": "egress", "call.": "call", "task.": "task",
	} {
		if strings.HasPrefix(code, prefix) {
			return stage
		}
	}
	return "daemon"
}

func (a *app) policyExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain DECISION", Short: "Say which link, caveat, rule or label decided about a call", Args: cobra.ExactArgs(1),
		Long: `Say what decided about one call, from the ledger: the stage and its reason, the argument
it points to, and the link, caveat, budget, rule or source behind it. DECISION is the
decision_id of a denial, which is the id of the call, or the index of its event.`,
		Example: example("pvault policy explain c-0123456789abcdefghjkmnpqrs", "pvault policy explain 42 --json"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			id := args[0]
			each := func(f func(e *explainedEvent) error) error {
				return client.Tail(cmd.Context(), 0, "", false, true, func(raw json.RawMessage) error {
					var e explainedEvent
					if err := decodeEvent(raw, &e); err != nil || e.Leaf.Call == "" || e.Leaf.Class != string(vault.ClassCall) && e.Leaf.Class != string(vault.ClassAccess) {
						return err
					}
					return f(&e)
				})
			}
			if index, err := strconv.ParseUint(id, 10, 64); err == nil {
				if err := each(func(e *explainedEvent) error {
					if e.Leaf.Index == index {
						id = e.Leaf.Call
					}
					return nil
				}); err != nil {
					return err
				}
			}
			x := &explanation{ID: id}
			if err := each(func(e *explainedEvent) error {
				if e.Leaf.Call != id {
					return nil
				}
				return x.add(e)
			}); err != nil {
				return err
			}
			if len(x.Events) == 0 {
				return fmt.Errorf("no decision %s is on record: refusals before authentication are counted and not recorded one by one", args[0])
			}
			return a.print(x, func(w io.Writer) { x.write(w) })
		},
	}
}

type explainedEvent struct {
	Leaf struct {
		Index   uint64        `json:"idx"`
		Run     string        `json:"run"`
		Call    string        `json:"call_id"`
		Class   string        `json:"class"`
		Phase   string        `json:"phase"`
		Verdict string        `json:"verdict"`
		Reason  string        `json:"reason"`
		Kind    string        `json:"kind"`
		Tool    string        `json:"tool"`
		Policy  vault.Digest  `json:"policy"`
		Debits  []vault.Debit `json:"debits"`
	} `json:"leaf"`
	Fields map[string]string `json:"fields"`
}

// add takes one event of the call.
func (x *explanation) add(e *explainedEvent) error {
	l := &e.Leaf
	x.Run, x.Outcome, x.Events = l.Run, l.Phase, append(x.Events, l.Index)
	if x.Target == "" || l.Phase == "asked" || l.Phase == "intent" || l.Phase == "refused" {
		x.Target = strings.TrimSpace(l.Kind + " " + l.Tool + e.Fields["target"])
		x.Verdict = l.Verdict
	}
	if len(l.Debits) > 0 && l.Phase == "intent" {
		x.Debits = l.Debits
	}
	if !l.Policy.IsZero() {
		x.Policy = l.Policy.String()
	}
	x.HowToAsk = vault.Code(l.Reason).HowToAsk()
	if note := e.Fields["note"]; note != "" {
		var reasons []explainedReason
		if err := json.Unmarshal([]byte(note), &reasons); err != nil {
			return fmt.Errorf("note of event %d: %w", l.Index, err)
		}
		for i := range reasons {
			reasons[i].Stage = stageOf(reasons[i].Code)
		}
		x.Reasons = reasons
	} else if l.Reason != "" {
		x.Reasons = []explainedReason{{Stage: stageOf(l.Reason), Code: l.Reason}}
	}
	if raw := e.Fields["context"]; raw != "" {
		f := &vault.Facts{Call: new(vault.Call), Grant: new(vault.Grant), Tool: new(vault.Tool)}
		if err := vault.ParseContext([]byte(raw), f); err != nil {
			return fmt.Errorf("event %d: %w", l.Index, err)
		}
		x.Labels = &explainedLabels{Integrity: f.Scope.Integrity.String(), Readers: f.Scope.Readers.Names()}
		if f.Scope.Readers.IsPublic() {
			x.Labels.Readers = []string{"public"}
		}
		for _, s := range f.Scope.Sources {
			x.Labels.Sources = append(x.Labels.Sources, s.String())
		}
		x.Origins, x.Links = f.Origins, nil
		for _, id := range f.Grant.Links {
			x.Links = append(x.Links, id.String())
		}
	}
	return nil
}

// write tells it to a person.
func (x *explanation) write(w io.Writer) {
	fmt.Fprintf(w, "%s  %s\n", x.ID, visible(x.Target))
	fmt.Fprintf(w, "  %s, verdict %s, events %v of %s\n", x.Outcome, x.Verdict, x.Events, x.Run)
	for _, r := range x.Reasons {
		fmt.Fprintf(w, "  %-11s %s", r.Stage, r.Code)
		if r.Path != "" {
			fmt.Fprintf(w, " at %s", visible(r.Path))
		}
		fmt.Fprintln(w)
		if r.Detail != "" {
			fmt.Fprintf(w, "              %s\n", visible(r.Detail))
		}
	}
	if x.Labels != nil {
		fmt.Fprintf(w, "  in scope    integrity %s, readers %v, from %s\n", x.Labels.Integrity, x.Labels.Readers, visible(strings.Join(x.Labels.Sources, ", ")))
	}
	for _, o := range x.Origins {
		where := "nowhere that is known"
		if len(o.Found) > 0 {
			where = strings.Join(o.Found, ", ")
		}
		fmt.Fprintf(w, "  argument    %s was found in %s (trusted: %v)\n", visible(o.Path), visible(where), o.Trusted)
	}
	if x.Policy != "" {
		fmt.Fprintf(w, "  policy      revision %s\n", x.Policy)
	}
	if x.HowToAsk != "" {
		fmt.Fprintf(w, "  next        %s\n", x.HowToAsk)
	}
}

func (a *app) policyReplay() *cobra.Command {
	var since time.Duration
	var bundle, query string
	c := &cobra.Command{
		Use: "replay", Short: "Say what other rules would have decided about recorded calls", Args: cobra.NoArgs,
		Long: `Hold the calls that the ledger records against the rules of another bundle, and print
each one about which they say something else. The hooks are those of the configuration;
--query asks one rule about every call instead. Nothing is decided or recorded. The
exit code is 7 if anything would change.`,
		Example: example("pvault policy replay --bundle ./policy-next --since 24h", "pvault policy replay --bundle ./policy-next --json"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			hooks := conf.Policy.Hooks
			if query != "" {
				hooks = []daemon.Hook{{At: "tool.call", Query: query}}
			}
			r, err := daemon.NewReplayer(cmd.Context(), hooks, bundle)
			if err != nil {
				return err
			}
			after := time.Time{}
			if since > 0 {
				after = time.Now().Add(-since)
			}
			n := 0
			err = client.Tail(cmd.Context(), 0, "", false, true, func(raw json.RawMessage) error {
				var e struct {
					Leaf struct {
						Time  time.Time   `json:"ts"`
						Class vault.Class `json:"class"`
					} `json:"leaf"`
				}
				if err := decodeEvent(raw, &e); err != nil {
					return err
				}
				if n++; n%10_000 == 0 {
					a.progress(fmt.Sprintf("%d events", n))
				}
				if e.Leaf.Time.Before(after) && e.Leaf.Class != vault.ClassTask {
					return nil
				}
				return r.Add(cmd.Context(), raw)
			})
			if err != nil {
				return err
			}
			out := r.Report()
			if err := a.print(out, func(w io.Writer) {
				for _, c := range out.Changed {
					fmt.Fprintf(w, "%8d  %s  %-24s %s -> %s", c.Event, c.Time.Format(time.RFC3339), visible(c.Target), c.Before, c.After)
					if c.Reason != "" {
						fmt.Fprintf(w, "  %s %s", c.Reason, visible(c.Rule))
					}
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "%d calls, %d would change, %d could not be tried; rules %s\n", out.Calls, len(out.Changed), out.Skipped, out.Revision[:16])
			}); err != nil {
				return err
			}
			if len(out.Changed) > 0 {
				return &exit{code: exitDiffers}
			}
			return nil
		},
	}
	f := c.Flags()
	f.DurationVar(&since, "since", 0, "only calls of the last so long; 0 is all")
	f.StringVar(&bundle, "bundle", "", "bundle of the rules to try, a directory or an archive, signed or not")
	f.StringVar(&query, "query", "", "ask this rule about every call instead of the configured hooks")
	must(c.MarkFlagRequired("bundle"))
	return c
}
