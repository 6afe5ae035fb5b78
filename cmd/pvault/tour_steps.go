package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (t *tour) up(ctx context.Context, s *tourStep) error {
	conf := daemon.Config{
		Data:      filepath.Join(t.dir, "data"),
		Listen:    daemon.Listen{HTTP: "127.0.0.1:0"},
		Approvals: daemon.Approvals{Wait: 50 * time.Millisecond},
		Sandbox:   daemon.Sandbox{MinGrade: "none"}, // the tour shows what this host gives, whatever that is
		Log:       daemon.Log{Level: "error"},
	}
	if err := conf.Complete(t.app.getenv); err != nil {
		return err
	}
	approvers := filepath.Join(conf.Data, "approvers")
	if err := os.MkdirAll(conf.Data, 0o700); err != nil {
		return err
	}
	if _, err := daemon.CreateApprover(approvers, "tour", nil); err != nil {
		return err
	}
	var err error
	if t.approver, err = daemon.OpenApprover(approvers, "tour", nil); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(t.app.err, &slog.HandlerOptions{Level: slog.LevelError}))
	if t.daemon, err = daemon.Open(ctx, conf, log); err != nil {
		return err
	}
	if err := t.daemon.Listen(ctx); err != nil {
		return err
	}
	t.client = admin.NewClient(conf.Socket())
	status, err := t.client.Status(ctx)
	if err != nil {
		return err
	}
	t.key = status.LedgerKey // an auditor writes this down; here it is the pinned key
	s.Seen.Verdict = "allow"
	first := uint64(0)
	s.Event = &first
	s.Note = fmt.Sprintf("this host gives sandbox grade %s; the approver key is thrown away with the tour and has no passphrase", status.Grade)
	return nil
}

func (t *tour) server(ctx context.Context, s *tourStep) error {
	var err error
	if t.story, err = t.chooseStory(ctx); err != nil {
		return err
	}
	doc, err := t.story.registration.Encode()
	if err != nil {
		return err
	}
	var lines []string
	server, err := t.client.AddServer(ctx, admin.ServerRequest{Name: "demo", Registration: doc}, "tour", t.approver, func(line string) {
		lines = append(lines, line)
		t.app.progress(line)
	})
	if err != nil {
		return err
	}
	s.Seen.Verdict = "allow"
	s.Event, err = t.lastEvent(ctx)
	s.Note = fmt.Sprintf("%s: %d tools pinned, server id %s", t.story.source, len(server.Tools), server.ID[:16])
	return err
}

func (t *tour) mint(ctx context.Context, s *tourStep) error {
	file := filepath.Join(t.dir, "task.yaml")
	if err := os.WriteFile(file, []byte(t.story.taskFile(t.widen)), 0o600); err != nil {
		return err
	}
	text, inputs, err := daemon.ReadTask(file)
	if err != nil {
		return err
	}
	r := admin.TaskRequest{File: text, Inputs: inputs, Agent: "puppet"}
	if _, err := t.client.OpenTask(ctx, r); err == nil {
		return errors.New("a task file that nobody approved was opened")
	}
	if t.task, err = t.client.MintTask(ctx, r, "tour", t.approver); err != nil {
		return err
	}
	s.Seen.Verdict = "allow"
	s.Event, err = t.lastEvent(ctx)
	s.Note = fmt.Sprintf("%s for %s; bound to this user, ends %s", t.task.Agent, t.task.Principal, t.task.Expires.Format(time.TimeOnly))
	return err
}

// call makes one call as the agent and notes what came of it.
func (t *tour) call(ctx context.Context, s *tourStep, r admin.CallRequest) (admin.CallAnswer, error) {
	r.Token = t.task.Token
	a, err := t.client.Call(ctx, r)
	if err != nil {
		return a, err
	}
	s.Event = a.Event
	switch {
	case a.Denial != nil:
		s.Seen = tourVerdict{a.Denial.Verdict, string(a.Denial.Reason.Code)}
		s.Event = a.Denial.Event
		s.Note = a.Denial.Error()
	case a.IsError:
		s.Seen = tourVerdict{"error", textOf(a.Result)}
	default:
		s.Seen = tourVerdict{Verdict: "allow"}
	}
	return a, nil
}

func (t *tour) tool(name string, args map[string]any) admin.CallRequest {
	raw, err := json.Marshal(args)
	if err != nil {
		raw = nil // strings only: cannot happen, and empty arguments are refused
	}
	return admin.CallRequest{Kind: vault.KindTool, Server: "demo", Name: name, Args: raw}
}

func (t *tour) read(ctx context.Context, s *tourStep) error {
	a, err := t.call(ctx, s, t.tool(t.story.read, t.story.inside))
	if err == nil && s.Seen.Verdict == "allow" {
		s.Note = textOf(a.Result)
	}
	return err
}

func (t *tour) outside(ctx context.Context, s *tourStep) error {
	_, err := t.call(ctx, s, t.tool(t.story.read, t.story.outside))
	return err
}

func (t *tour) egress(ctx context.Context, s *tourStep) error {
	_, err := t.call(ctx, s, admin.CallRequest{Kind: vault.KindEgress, Name: "collect.example", Args: json.RawMessage(`{"method":"POST","path":"/","body":"the invoices"}`)})
	return err
}

// sandbox runs this program as a guest that tries the ways out, see probe.go.
func (t *tour) sandbox(ctx context.Context, s *tourStep) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	status, err := t.client.Status(ctx)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	err = t.client.Run(ctx, admin.RunRequest{Token: t.task.Token, Argv: []string{self, "probe", "--file", t.story.secret, "--connect", status.HTTP}}, func(f admin.Frame) error {
		out.Write(f.Stdout)
		return nil
	})
	if err != nil {
		return err
	}
	s.Seen = tourVerdict{"deny", "sandbox"}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "OPEN ") {
			s.Seen = tourVerdict{Verdict: "allow", Reason: strings.TrimSpace(line)}
		}
	}
	if out.Len() == 0 {
		s.Seen = tourVerdict{Verdict: "error", Reason: "the probe said nothing"}
	}
	s.Note = out.String()
	s.Event, err = t.lastEvent(ctx)
	return err
}

const writeID = "tour-write-1"

func (t *tour) ask(ctx context.Context, s *tourStep) error {
	r := t.tool(t.story.write, t.story.change)
	r.ID = writeID
	if _, err := t.call(ctx, s, r); err != nil {
		return err
	}
	list, err := t.client.Approvals(ctx)
	if err != nil {
		return err
	}
	if len(list) != 1 {
		s.Note = fmt.Sprintf("%d questions are open, want 1", len(list))
		return nil
	}
	t.question = list[0]
	s.Note = reasonsOf(t.question.Text)
	s.Event, err = t.lastEvent(ctx)
	return err
}

// reasonsOf takes from a rendered question why it was asked.
func reasonsOf(text string) string {
	_, rest, ok := strings.Cut(text, "ASKED BECAUSE\n")
	if !ok {
		return ""
	}
	reasons, _, _ := strings.Cut(rest, "\n\n")
	return reasons
}

func (t *tour) approve(ctx context.Context, s *tourStep) error {
	if t.question.ID == "" {
		s.Seen.Verdict = "nothing was asked"
		return nil
	}
	status, err := t.client.Status(ctx)
	if err != nil {
		return err
	}
	if _, err := daemon.RenderQuestion(t.question.Question, ed25519.PublicKey(status.ApprovalKey)); err != nil {
		return err
	}
	if t.answer, err = t.approver.Answer(t.question.Question, status.ApprovalKey, true); err != nil {
		return err
	}
	if err := t.client.Answer(ctx, t.question.ID, t.answer); err != nil {
		return err
	}
	r := t.tool(t.story.write, t.story.change)
	r.ID = writeID
	_, err = t.call(ctx, s, r)
	return err
}

func (t *tour) replay(ctx context.Context, s *tourStep) error {
	if t.question.ID == "" {
		s.Seen.Verdict = "nothing was asked"
		return nil
	}
	err := t.client.Answer(ctx, t.question.ID, t.answer)
	refused, ok := errors.AsType[*admin.Error](err)
	switch {
	case err == nil:
		s.Seen.Verdict = "allow"
		return nil
	case !ok:
		return err
	}
	s.Seen = tourVerdict{"deny", refused.Code}
	// The same change under a new call id finds no approval either: it asks again.
	again, err := t.client.Call(ctx, func() admin.CallRequest {
		r := t.tool(t.story.write, t.story.change)
		r.Token = t.task.Token
		return r
	}())
	if err != nil {
		return err
	}
	if again.Denial == nil || again.Denial.Verdict != "pending" {
		s.Seen = tourVerdict{Verdict: "allow", Reason: "the change ran again without a new answer"}
	}
	s.Note = refused.Message + "; the same change under a new call id asks again"
	s.Event, err = t.lastEvent(ctx)
	return err
}

func (t *tour) revoke(ctx context.Context, s *tourStep) error {
	if _, err := t.client.Revoke(ctx, admin.RevokeRequest{What: "task", ID: string(t.task.ID), Why: "the tour ends it"}); err != nil {
		return err
	}
	_, err := t.call(ctx, s, t.tool(t.story.read, t.story.inside))
	return err
}

func (t *tour) verify(ctx context.Context, s *tourStep) error {
	if err := t.client.CloseTask(ctx, t.task.ID); err != nil {
		return err
	}
	var err error
	if t.bundle, err = t.client.Export(ctx, admin.ExportRequest{Run: t.task.ID}); err != nil {
		return err
	}
	report, err := evidence.VerifyBytes(t.bundle, evidence.Options{Keys: []string{t.key}, Run: t.task.ID})
	if err != nil {
		return err
	}
	s.Seen.Verdict = string(report.Problem)
	s.Note = fmt.Sprintf("%d records, intact %v, complete %v, key pinned %v; anchored by nobody yet: %s", report.Records, report.Intact, report.Complete, report.Pinned, report.Window)
	s.Event, err = t.lastEvent(ctx)
	return err
}

func (t *tour) tamper(_ context.Context, s *tourStep) error {
	marker := []byte(`"phase":"intent"`)
	at := bytes.Index(t.bundle, marker)
	if at < 0 {
		return errors.New("the bundle holds no intent")
	}
	forged := bytes.Clone(t.bundle)
	forged[at+len(`"phase":"`)] ^= 0x04 // intent becomes mntent
	report, err := evidence.VerifyBytes(forged, evidence.Options{Keys: []string{t.key}, Run: t.task.ID})
	if err != nil {
		return err
	}
	s.Seen.Verdict = string(report.Problem)
	if report.Record != nil {
		s.Event = report.Record
		s.Note = fmt.Sprintf("record %d is named; audit verify would exit with %d", *report.Record, report.Exit)
	}
	return nil
}

// lastEvent returns the index of the newest event.
func (t *tour) lastEvent(ctx context.Context) (*uint64, error) {
	status, err := t.client.Status(ctx)
	if err != nil || status.Ledger == 0 {
		return nil, err
	}
	last := status.Ledger - 1
	return &last, nil
}
