package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (a *app) audit() *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "Read, prove, export and verify what happened", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.auditTail(), a.auditProve(), a.auditExport(), a.auditDisclose(), a.auditErase(), a.auditVerify(), a.auditKey(), a.auditAnchor(), a.auditRecover())
	return c
}

func (a *app) auditTail() *cobra.Command {
	var from uint64
	var run string
	var follow, disclose bool
	var keep eventFilter
	var format string
	c := &cobra.Command{
		Use: "tail", Short: "Print events, oldest first", Args: cobra.NoArgs,
		Long: `Print events, oldest first. To feed another system, start again at the index after the
last one it has: nothing is lost while it was away. --format cloudevents (CloudEvents 1.0,
JSON), ocsf (Open Cybersecurity Schema Framework 1.8, JSON) and syslog (RFC 5424) are one
line each and hold the record without sensitive fields. To have the daemon do this by
itself, see sinks in vault.yaml.`,
		Example: example("pvault audit tail --follow", "pvault audit tail --run t-… --disclose --json", "pvault audit tail --class call --phase refused", "pvault audit tail --follow --from 1000 --format syslog"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case format != "" && !slices.Contains(daemon.EventForms, format):
				return usage{fmt.Errorf("--format %q: want %s", format, strings.Join(daemon.EventForms, ", "))}
			case format != "" && (disclose || a.json):
				return usage{errors.New("--format goes with neither --disclose nor --json")}
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			return client.Tail(cmd.Context(), from, vault.TaskID(run), follow, disclose, func(e json.RawMessage) error {
				if ok, err := keep.takes(e); !ok || err != nil {
					return err
				}
				if format != "" {
					line, err := daemon.FormatEvent(format, e)
					if err == nil {
						_, err = fmt.Fprintf(a.out, "%s\n", line)
					}
					return err
				}
				if a.json {
					_, err := fmt.Fprintf(a.out, "%s\n", e)
					return err
				}
				return printEvent(a.out, e)
			})
		},
	}
	f := c.Flags()
	f.Uint64Var(&from, "from", 0, "first index")
	f.StringVar(&run, "run", "", "only the events of one task")
	f.BoolVarP(&follow, "follow", "f", false, "wait for more")
	f.BoolVar(&disclose, "disclose", false, "also the sensitive fields")
	f.StringSliceVar(&keep.classes, "class", nil, "only these classes, such as call,approval")
	f.StringSliceVar(&keep.phases, "phase", nil, "only these phases, such as refused")
	f.StringVar(&format, "format", "", "form of another system: "+strings.Join(daemon.EventForms, ", "))
	return c
}

// printEvent writes one line about an event.
func printEvent(w io.Writer, raw json.RawMessage) error {
	var e struct {
		Leaf struct {
			Idx                                                       uint64
			TS, Class, Phase, Verdict, Reason, Kind, Tool, Proof, Run string
		}
		Fields map[string]string
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	l := e.Leaf
	what := strings.Join(strings.Fields(l.Class+" "+l.Phase+" "+l.Kind+" "+l.Tool+" "+l.Reason), " ")
	if _, err := fmt.Fprintf(w, "%8d  %s  %-28s %s\n", l.Idx, l.TS, l.Run, what); err != nil {
		return err
	}
	for name, value := range e.Fields {
		if _, err := fmt.Fprintf(w, "          %s: %s\n", name, visible(value)); err != nil {
			return err
		}
	}
	return nil
}

// visible makes control characters visible and cuts what is too long for a line:
// what a tool returned must not drive the auditor's terminal.
func visible(s string) string {
	q := strconv.QuoteToGraphic(s)
	q = q[1 : len(q)-1]
	const most = 400
	if len(q) > most {
		return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(q[:most], ""), len(s))
	}
	return q
}

func (a *app) auditProve() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "prove INDEX", Short: "Print the proof that one event is in the ledger (C2SP tlog-proof)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usage{fmt.Errorf("INDEX %q: want a number", args[0])}
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			proof, err := client.Prove(cmd.Context(), index)
			if err != nil {
				return err
			}
			if out != "" {
				return os.WriteFile(out, proof, 0o644) // a proof is public
			}
			_, err = a.out.Write(proof)
			return err
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "file to write")
	return c
}

func (a *app) auditExport() *cobra.Command {
	var run, out, since string
	var disclose bool
	var redact []string
	c := &cobra.Command{
		Use:   "export --output FILE",
		Short: "Write an evidence bundle that verifies offline",
		Long: `Write an evidence bundle of one run, or of the whole ledger. Sensitive fields stay
commitments unless --disclose is given.`,
		Example: example("pvault audit export --run t-… -o run.zip", "pvault audit verify run.zip --key \"$(pvault audit key)\""),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usage{errors.New("say where to: --output FILE")}
			}
			var from uint64
			if since != "" {
				cp, err := a.checkpointSize(since)
				if err != nil {
					return err
				}
				from = cp
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			b, err := client.Export(cmd.Context(), admin.ExportRequest{Run: vault.TaskID(run), Disclose: disclose, Redact: redact, Since: from})
			if err != nil {
				return err
			}
			return a.writeBundle(out, b)
		},
	}
	f := c.Flags()
	f.StringVar(&run, "run", "", "task whose run to export; empty means the whole ledger")
	f.StringVarP(&out, "output", "o", "", "file to write")
	f.BoolVar(&disclose, "disclose", false, "open the sensitive fields")
	f.StringSliceVar(&redact, "redact", nil, "with --disclose: fields that stay closed, such as args,result")
	f.StringVar(&since, "since", "", "file with a checkpoint the verifier holds, or its size: adds the proof that the ledger continues it")
	return c
}

func (a *app) auditVerify() *cobra.Command {
	var keys, rekor []string
	var since, run, policy, newer, tsa string
	c := &cobra.Command{
		Use:   "verify BUNDLE",
		Short: "Verify a bundle offline, against a key you hold",
		Long: `Verify an evidence bundle. Nothing is asked of any daemon or network. The questions
are answered separately: intact? complete? anchored by whom? before when? Then it
tells what ran, and how much of the ledger nobody outside has seen.

Exit codes: 0 intact and complete under the pinned key; 10 altered record; 11 dropped;
12 swapped; 13 truncated; 14 disclosed value differs; 15 malformed; 16 the statement
of what ran differs from the records; 20 wrong key; 21 no key pinned; 22 the quorum of
--policy has not signed; 23 no entry under --rekor-key; 24 no timestamp under
--tsa-roots; 30 rollback; 31 split view; 32 unrelated to --since; 33 another run;
34 not --newer-than; 40 the run is still open; 1 not read; 2 usage.`,
		Example: example("pvault audit verify run.zip --key vault.internal/default+0b1c2d3e+AT…", "pvault audit verify log.zip --key @ledger.key --since last-checkpoint.txt", "pvault audit verify run.zip --key @ledger.key --tsa-roots tsa-roots.pem"),
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			o := evidence.Options{Run: vault.TaskID(run)}
			var err error
			if o.Keys, err = a.readKeys(keys); err != nil {
				return err
			}
			if o.RekorKeys, err = a.readKeys(rekor); err != nil {
				return err
			}
			if policy != "" {
				if o.Policy, err = a.readFile(policy, evidence.MaxPolicy); err != nil {
					return fmt.Errorf("read witness policy: %w", err)
				}
			}
			if tsa != "" {
				if o.TSARoots, err = a.readFile(tsa, evidence.MaxTSARoots); err != nil {
					return fmt.Errorf("read TSA roots: %w", err)
				}
			}
			if newer != "" {
				if o.NewerThanSize, err = strconv.ParseUint(newer, 10, 64); err != nil {
					if o.NewerThan, err = time.Parse(time.RFC3339, newer); err != nil {
						return usage{fmt.Errorf("--newer-than %q: want a time like 2026-11-27T18:00:00Z or a number of records", newer)}
					}
				}
			}
			if since != "" {
				if o.Since, err = a.readFile(since, evidence.MaxCheckpoint); err != nil {
					return fmt.Errorf("read checkpoint: %w", err)
				}
			}
			report, err := verifyFile(args[0], o)
			if err != nil {
				return err
			}
			if err := a.print(report, func(w io.Writer) { fmt.Fprintln(w, strings.TrimRight(report.String(), "\n")) }); err != nil {
				return err
			}
			if report.Exit != evidence.ExitOK {
				return &exit{code: report.Exit}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringArrayVar(&keys, "key", nil, "verifier key of the ledger, NAME+HASH+KEY, or @FILE; repeat for a successor")
	f.StringVar(&since, "since", "", "file with a checkpoint you already hold: detects rollback and rewritten history")
	f.StringVar(&run, "run", "", "the run that you asked for")
	f.StringVar(&newer, "newer-than", "", "time, or number of records, that it must be newer than: detects a replayed bundle")
	f.StringVar(&policy, "policy", "", "file with your witness policy (C2SP tlog-policy): its quorum must have signed")
	f.StringArrayVar(&rekor, "rekor-key", nil, "key of a Rekor log, NAME+HASH+KEY or @FILE, which for v1 holds its key in PEM: an entry there must exist")
	f.StringVar(&tsa, "tsa-roots", "", "file with root certificates in PEM: a time-stamp authority under one of them must have stamped it")
	return c
}

// readKeys replaces @FILE by what the file holds.
func (a *app) readKeys(list []string) ([]string, error) {
	var keys []string
	for _, k := range list {
		if path, ok := strings.CutPrefix(k, "@"); ok {
			b, err := a.readFile(path, 4096)
			if err != nil {
				return nil, fmt.Errorf("read key: %w", err)
			}
			k = strings.TrimSpace(string(b))
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// checkpointSize reads a number of records, or a file with a checkpoint of so many.
// Who signed it does not matter here: it only says which proof to ask for.
func (a *app) checkpointSize(since string) (uint64, error) {
	if n, err := strconv.ParseUint(since, 10, 64); err == nil {
		return n, nil
	}
	b, err := a.readFile(since, evidence.MaxCheckpoint)
	if err != nil {
		return 0, fmt.Errorf("read checkpoint: %w", err)
	}
	text, _, _ := strings.Cut(string(b), "\n\n")
	cp, err := evidence.ParseCheckpoint(text + "\n")
	if err != nil {
		return 0, err
	}
	return cp.Size, nil
}

func verifyFile(path string, o evidence.Options) (evidence.Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return evidence.Report{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return evidence.Report{}, err
	}
	return evidence.Verify(f, info.Size(), o)
}

func (a *app) auditKey() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the key that a bundle is verified against; keep it where this host cannot change it",
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
			return a.print(map[string]string{"key": s.LedgerKey}, func(w io.Writer) { fmt.Fprintln(w, s.LedgerKey) })
		},
	}
}
