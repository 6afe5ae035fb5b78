package daemon_test

import (
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/daemon"
)

const askTask = `
version: 1
purpose: Add with permission
principal: user:tester@example.com
life: 1h
tools: {oracle.add: {args: any, ask: leads}}
budgets: {calls: 100}
`

// answer waits for questions and answers those that are open.
func (r *rig) answer(t *testing.T, allow bool) {
	t.Helper()
	status, err := r.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a question is shown", func() bool {
		answered := false
		list, err := r.admin.Approvals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			if a.State != "open" {
				continue
			}
			signed, err := r.approver.Answer(a.Question, status.ApprovalKey, allow)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.admin.Answer(t.Context(), a.ID, signed); err != nil {
				t.Fatal(err)
			}
			answered = true
		}
		return answered
	})
}

// TestAskOverMCP: a call that needs a person waits for the answer; a client that
// got pending instead retries under the same call id and finds it; the approval is
// good for that call and no other.
func TestAskOverMCP(t *testing.T) {
	for _, version := range []string{"2026-07-28", "2025-06-18"} {
		t.Run("a client of "+version, func(t *testing.T) {
			r := startDaemon(t, func(c *daemon.Config) {
				c.Approvals.Wait = 2 * time.Second
				c.Approvals.Groups = map[string][]string{"leads": {"key:" + approverName}}
			})
			r.addURL("oracle", newOracle(t, true).url)
			c := connect(t, r.endpoint(r.mint(askTask)), version)
			call := func(id string, b int) (*sdk.CallToolResult, *vault.Denial) {
				p := &sdk.CallToolParams{Name: "add", Arguments: sum{40, b}}
				if id != "" {
					p.Meta = sdk.Meta{"dev.pilox.vault/call_id": id}
				}
				res, err := c.CallTool(t.Context(), p)
				return res, denialOf(t, res, err)
			}

			var wg sync.WaitGroup
			wg.Go(func() {
				if res, d := call("", 2); d != nil || res.IsError {
					t.Errorf("allowed while it waits: %v", d)
				}
			})
			r.answer(t, true)
			wg.Wait()

			if _, d := call("mine", 3); d == nil || d.Verdict != "pending" || d.Retry != vault.RetrySameCallID || d.Executed != vault.ExecutedNo {
				t.Fatalf("nobody answers: %+v", d)
			}
			r.answer(t, true)
			if _, d := call("mine", 4); d == nil || d.Executed != vault.ExecutedNo {
				t.Errorf("the approval was taken for other arguments: %+v", d)
			}
			if _, d := call("mine", 3); d != nil {
				t.Errorf("the retry after the answer: %+v", d)
			}
			if _, d := call("again", 3); d == nil || d.Verdict != "pending" {
				t.Errorf("the approval was used twice: %+v", d)
			}
			r.answer(t, false)
			if _, d := call("again", 3); d == nil || d.Reason.Code != vault.CodeApprovalDenied {
				t.Errorf("after a no: %+v", d)
			}
		})
	}
}
