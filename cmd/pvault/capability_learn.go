package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (a *app) capLearn() *cobra.Command {
	var runs []string
	var task, out string
	var watch bool
	r := daemon.LearnRequest{}
	c := &cobra.Command{
		Use: "learn --run TASK", Short: "Propose the least task file that what a task did would have passed", Args: cobra.NoArgs,
		Long: `Read the recorded calls of one or more runs and propose the least task file that lets
them through, as a diff to review: the tools and hosts that were called, a constraint
for each argument, budgets and life from the run that used most, with headroom. With
--task, the proposal changes that file and is nowhere wider than it, unless it says so.

Nothing is decided or loosened. What is proposed counts when a person has reviewed it
and minted it. To see what a task needs, mint a wide one for a short time (args: any is
marked in every record), let it work, and learn from its run; or --watch it.

Calls that were refused are listed with their reasons and not granted, unless
--include-denied is given. Where a call may have been caused by untrusted data, the
proposal says so, and the rule asks the group flow. Calls whose arguments were erased
are listed and not learned from. Servers that are not registered any more cannot be named.

The proposal holds values from recorded arguments. They can be personal, and outlive an
erasure of the record. --list 0 writes out no text value of an argument, only forms:
directories, domains, hosts, lengths. What looks like a secret is never written out.`,
		Example: example(
			"pvault cap learn --run t-0123456789abcdefghjkmnpqrs",
			"pvault cap learn --run t-… --task task.yaml | patch -p0",
			"pvault cap learn --run t-… --watch --output learned.yaml",
			"pvault cap learn --run t-… --run t-… --list 0 --headroom 50 --json"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case len(runs) == 0:
				return usage{errors.New("say which runs: --run TASK (pvault cap ls lists them)")}
			case watch && len(runs) > 1:
				return usage{errors.New("--watch goes with one --run")}
			case r.List < 0 || r.List > 1000 || r.Headroom < 0 || r.Headroom > 1000:
				return usage{errors.New("--list and --headroom are from 0 to 1000")}
			}
			r.OldName, r.NewName = os.DevNull, "task.yaml"
			if task != "" {
				var err error
				if r.File, r.Inputs, err = daemon.ReadTask(task); err != nil {
					return err
				}
				r.Name, r.OldName, r.NewName = task, task, task
			}
			p, err := a.learn(cmd.Context(), runs, watch, r)
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeNew(out, p.File); err != nil {
					return err
				}
			}
			if err := a.print(p, func(w io.Writer) {
				if out == "" {
					fmt.Fprint(w, p.Diff)
				}
			}); err != nil || a.json {
				return err
			}
			a.reportLearned(p, out)
			return nil
		},
	}
	f := c.Flags()
	f.StringArrayVar(&runs, "run", nil, "task whose run to learn from; repeat for more")
	f.StringVar(&task, "task", "", "task file to change; without it a new one is proposed")
	f.StringVarP(&out, "output", "o", "", "new file for the proposed task file, instead of a diff")
	f.BoolVar(&watch, "watch", false, "wait until the task is closed, or for an interrupt, and then propose")
	f.IntVar(&r.List, "list", 4, "so many different values of an argument are listed; more become a pattern")
	f.IntVar(&r.Headroom, "headroom", 25, "percent that is added to what was used of budgets, life and lengths")
	f.BoolVar(&r.Denied, "include-denied", false, "also grant calls that were refused, each with a comment")
	return c
}

// learn reads the runs and proposes.
func (a *app) learn(ctx context.Context, runs []string, watch bool, r daemon.LearnRequest) (*daemon.LearnResult, error) {
	client, conf, err := a.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	servers, err := client.Servers(ctx)
	if err != nil {
		return nil, err
	}
	l, err := daemon.NewLearner(servers)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, run := range runs {
		if seen[run] {
			return nil, usage{fmt.Errorf("--run %s is given twice", run)}
		}
		seen[run] = true
		if err := a.readRun(ctx, client, l, run, watch); err != nil {
			return nil, err
		}
	}
	return l.Propose(conf.Autonomy, r)
}

var errClosed = errors.New("the run is closed")

// readRun feeds the events of a run to l. It waits for the end of the run, or for an
// interrupt, if it watches.
func (a *app) readRun(ctx context.Context, client *admin.Client, l *daemon.Learner, run string, watch bool) error {
	if watch {
		tasks, err := client.Tasks(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(tasks, func(t admin.Task) bool { return string(t.ID) == run }) {
			return noRun(run)
		}
	}
	n := 0
	err := client.Tail(ctx, 0, vault.TaskID(run), watch, true, func(raw json.RawMessage) error {
		var e struct {
			Leaf struct {
				Class vault.Class `json:"class"`
				Phase vault.Phase `json:"phase"`
			} `json:"leaf"`
		}
		if err := decodeEvent(raw, &e); err != nil {
			return err
		}
		if err := l.Add(raw); err != nil {
			return err
		}
		if n++; n == 1 && watch {
			a.progress("watching " + run + " until it is closed; interrupt to propose from what is there")
		}
		if watch && e.Leaf.Class == vault.ClassTask && e.Leaf.Phase == vault.PhaseClosed {
			return errClosed
		}
		return nil
	})
	switch {
	case errors.Is(err, errClosed), watch && ctx.Err() != nil:
		return nil //nolint:nilerr // the end of what was watched
	case err != nil:
		return err
	case n == 0:
		return noRun(run)
	}
	return nil
}

func noRun(id string) error {
	return &admin.Error{Code: "not_found", Message: fmt.Sprintf("no run %s is on record", id), Hint: "pvault cap ls lists the tasks; the id of a task is that of its run"}
}

// writeNew writes a proposal into a file that is not there yet: the reviewed file is
// changed by whoever reviews. It may hold personal values.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: name a new file, or apply the diff: pvault cap learn … | patch -p0", path)
	}
	if err != nil {
		return fmt.Errorf("write proposal: %w", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write proposal: %w", err)
	}
	return nil
}

// reportLearned says on the error stream what a reviewer has to know beside the text.
func (a *app) reportLearned(p *daemon.LearnResult, out string) {
	say := func(format string, args ...any) { fmt.Fprintln(a.err, visible(fmt.Sprintf(format, args...))) }
	if p.Diff == "" {
		say("the task file is already as narrow as what was done")
	}
	say("%d targets from %d runs; the run that used most made %d calls with %d bytes in %s; proposed with %d %% of headroom: %d calls in %s",
		len(p.Targets), len(p.Runs), p.Used.Calls, p.Used.Bytes, p.Used.Life, p.Room, p.Calls, p.Life)
	for _, w := range p.Wider {
		say("wider      %s grants more than the task file did", w)
	}
	for _, t := range p.Targets {
		if t.Untrusted+t.Unknown > 0 {
			say("untrusted  %s: %d of %d calls after untrusted data was read, %d of unknown origin; asks %s", t.Target, t.Untrusted, t.Calls, t.Unknown, strings.Join(append(t.Asks[:len(t.Asks):len(t.Asks)], none(t.Asks)...), ", "))
		}
	}
	const most = 50 // --json has all
	for i, r := range p.Refused {
		if i == most {
			say("refused    and %d more, see --json", len(p.Refused)-most)
			break
		}
		what := "not granted; --include-denied grants it"
		if r.Included {
			what = "granted, because --include-denied was given"
		}
		say("refused    %s: %s (%d calls, events %v): %s", r.Target, strings.TrimSpace(string(r.Reason)+" "+r.Where), r.Calls, r.Events, what)
	}
	for i, l := range p.LeftOut {
		if i == most {
			say("left out   and %d more, see --json", len(p.LeftOut)-most)
			break
		}
		say("left out   %s (%d calls, events %v): %s", l.Target, l.Calls, l.Events, l.Why)
	}
	for _, n := range p.Notes {
		say("note       %s", n)
	}
	if out != "" {
		say("written to %s; review it, then: pvault cap mint --task %s", filepath.Clean(out), filepath.Clean(out))
	}
}

func none(list []string) []string {
	if len(list) == 0 {
		return []string{"nobody"}
	}
	return nil
}
