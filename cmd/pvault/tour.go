package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (a *app) tour() *cobra.Command {
	var widen bool
	c := &cobra.Command{
		Use:   "tour",
		Short: "See it work: 60 seconds, no account, no model, no Docker",
		Long: `Run a real MCP server behind a throw-away Vault, with a puppet agent that obeys every
instruction it reads. Each step says what was expected and what was seen; the exit code
is 0 only if every step went as told. Nothing outside a temporary directory is touched.`,
		Example: example("pvault tour", "pvault tour --json"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := &tour{app: a, widen: widen}
			err := t.run(cmd.Context())
			if perr := t.report(err); perr != nil {
				return perr
			}
			if len(t.steps) > 0 && !t.ok() {
				return &exit{code: exitDiffers, err: errors.Join(errors.New("a step did not go as told"), err)}
			}
			return err
		},
	}
	c.Flags().BoolVar(&widen, "widen", false, "grant the agent more than the story does, to see the tour fail")
	return c
}

// A tourStep is one step of the story.
type tourStep struct {
	Name     string      `json:"step"`
	What     string      `json:"what"`
	Expected tourVerdict `json:"expected"`
	Seen     tourVerdict `json:"seen"`
	Event    *uint64     `json:"event,omitempty"` // ledger index that records it
	Note     string      `json:"note,omitempty"`
	OK       bool        `json:"ok"`
	TookMS   int64       `json:"took_ms"`
}

type tourVerdict struct {
	Verdict string `json:"verdict"` // allow, deny, pending, error, or an answer of audit verify
	Reason  string `json:"reason,omitempty"`
}

func (v tourVerdict) String() string {
	if v.Reason == "" {
		return v.Verdict
	}
	return v.Verdict + " (" + v.Reason + ")"
}

// A tour is one run of the story.
type tour struct {
	app   *app
	widen bool

	dir      string
	daemon   *daemon.Daemon
	client   *admin.Client
	approver *daemon.Approver
	story    *story
	task     admin.Task
	question admin.Approval
	answer   []byte
	bundle   []byte
	key      string

	steps []tourStep
	start time.Time
}

func (t *tour) ok() bool {
	for _, s := range t.steps {
		if !s.OK {
			return false
		}
	}
	return len(t.steps) > 0
}

// run tells the story. An error means that a step could not be tried at all.
func (t *tour) run(ctx context.Context) (err error) {
	t.start = time.Now()
	if t.dir, err = os.MkdirTemp("", "pvault-tour-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	for _, step := range []struct {
		name, what string
		want       tourVerdict
		run        func(context.Context, *tourStep) error
	}{
		{"start", "start a daemon on embedded defaults and try to break out of its sandbox", tourVerdict{Verdict: "allow"}, t.up},
		{"server", "install a real MCP server into a pinned read-only tree and start it in the sandbox", tourVerdict{Verdict: "allow"}, t.server},
		{"mint", "mint the capability of one task, signed by a throw-away approver", tourVerdict{Verdict: "allow"}, t.mint},
		{"read", "the agent reads what its task grants", tourVerdict{Verdict: "allow"}, t.read},
		{"injection", "what it read tells it to read something else, and it obeys", tourVerdict{"deny", string(vault.CodeCapabilityArgument)}, t.outside},
		{"egress", "it obeys further and sends the data to a host on the internet", tourVerdict{"deny", string(vault.CodeCapabilityTarget)}, t.egress},
		{"sandbox", "a program under pvault run tries files, network and programs directly", tourVerdict{Verdict: "deny", Reason: "sandbox"}, t.sandbox},
		{"step-up", "it makes a change after reading untrusted text: a person has to answer", tourVerdict{"pending", string(vault.CodeApprovalRequired)}, t.ask},
		{"approve", "the approver signs exactly these bytes; the same call goes through", tourVerdict{Verdict: "allow"}, t.approve},
		{"replay", "the approval is handed in again", tourVerdict{"deny", string(vault.CodeApprovalInvalid)}, t.replay},
		{"revoke", "the operator stops the task: the next call is refused", tourVerdict{"deny", string(vault.CodeCapabilityRevoked)}, t.revoke},
		{"verify", "close the task, export its evidence, verify it offline with the pinned key", tourVerdict{Verdict: "ok"}, t.verify},
		{"tamper", "flip one byte of one record and verify again", tourVerdict{Verdict: "altered"}, t.tamper},
	} {
		s := tourStep{Name: step.name, What: step.what, Expected: step.want}
		began := time.Now()
		if err := step.run(ctx, &s); err != nil {
			return fmt.Errorf("step %s: %w", step.name, err)
		}
		s.TookMS = time.Since(began).Milliseconds()
		s.OK = s.Seen == s.Expected
		t.steps = append(t.steps, s)
		t.tell(&s)
	}
	return nil
}

// tell prints one step as it ends.
func (t *tour) tell(s *tourStep) {
	if t.app.json {
		return
	}
	mark := t.app.green("ok  ")
	if !s.OK {
		mark = t.app.red("FAIL")
	}
	event := ""
	if s.Event != nil {
		event = fmt.Sprintf("  event %d", *s.Event)
	}
	fmt.Fprintf(t.app.out, "%s %2d %-10s %s\n          %s%s\n", mark, len(t.steps), s.Name, s.What, s.Seen, t.app.dim(event))
	if !s.OK {
		fmt.Fprintf(t.app.out, "          expected %s\n", s.Expected)
	}
	for line := range strings.Lines(s.Note) {
		fmt.Fprintf(t.app.out, "          %s\n", t.app.dim(strings.TrimRight(line, "\n")))
	}
}

// report prints the end of the story, or all of it as JSON.
func (t *tour) report(err error) error {
	took := time.Since(t.start)
	if !t.app.json {
		if t.ok() && err == nil {
			fmt.Fprintf(t.app.out, "\nevery step went as told, in %v\n", took.Round(100*time.Millisecond))
		}
		return nil
	}
	out := struct {
		Server string     `json:"server"`
		Steps  []tourStep `json:"steps"`
		OK     bool       `json:"ok"`
		TookMS int64      `json:"took_ms"`
		Error  string     `json:"error,omitempty"`
	}{Steps: t.steps, OK: t.ok() && err == nil, TookMS: took.Milliseconds()}
	if t.story != nil {
		out.Server = t.story.source
	}
	if err != nil {
		out.Error = err.Error()
	}
	return t.app.print(out, nil)
}

func (t *tour) close() error {
	var errs []error
	if t.approver != nil {
		t.approver.Close()
	}
	if t.client != nil {
		t.client.Close()
	}
	if t.daemon != nil {
		errs = append(errs, t.daemon.Close())
	}
	// Installed trees are read-only; make them removable.
	_ = filepath.WalkDir(t.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) //nolint:gosec // it is about to be removed
		}
		return nil
	})
	return errors.Join(append(errs, os.RemoveAll(t.dir))...)
}
