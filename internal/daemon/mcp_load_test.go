package daemon_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// TestManyClients has clients of all versions work at the same time, over the
// socket and over TCP, on servers of both eras and in two tasks. Everyone gets the
// answers to their own calls, progress under their own token, and every call has
// one intent and one outcome.
func TestManyClients(t *testing.T) {
	const rounds = 12
	r := startDaemon(t, func(c *daemon.Config) { c.Listen.Bearer = true })
	r.addURL("modern", newOracle(t, true).url)
	r.addURL("legacy", newOracle(t, false).url)
	local, remote := r.mint(grantAll("modern", "legacy")), r.mintBound(grantAll("legacy", "modern"), "bearer")

	var wg sync.WaitGroup
	n := 0
	for _, version := range mcpVersions {
		for i, task := range []admin.Task{local, remote} {
			transport := r.endpoint(task)
			if i == 1 {
				transport = &sdk.StreamableClientTransport{Endpoint: "http://" + r.addr + "/mcp", HTTPClient: bearer(task)}
			}
			c := connect(t, transport, version)
			n++
			me := n * 1000
			wg.Go(func() { work(t, c, me, rounds) })
		}
	}
	wg.Wait()
	for _, task := range []admin.Task{local, remote} {
		calls := 0
		eventually(t, "an outcome for every intent", func() bool {
			calls = 0
			for _, phases := range r.phases(task.ID, vault.KindTool) {
				phases = slices.DeleteFunc(phases, func(p string) bool { return p == string(vault.PhaseReleased) })
				if len(phases) != 2 {
					return false
				}
				if phases[0] != string(vault.PhaseIntent) || phases[1] != string(vault.PhaseDone) {
					t.Fatalf("a call went through %v", phases)
				}
				calls++
			}
			return true
		})
		if want := len(mcpVersions) * rounds * 3; calls != want {
			t.Errorf("%d calls on record, want %d", calls, want)
		}
	}
}

// work makes three calls a round and checks that each answer is its own.
func work(t *testing.T, c *client, me, rounds int) {
	for i := range rounds {
		for _, server := range []string{"modern", "legacy"} {
			res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: server + "__add", Arguments: sum{me, i}})
			if err != nil || res.IsError {
				t.Errorf("%d: %v %q", me, err, textOf(res))
				return
			}
			if m, ok := res.StructuredContent.(map[string]any); !ok || m["sum"] != float64(me+i) {
				t.Errorf("%d got somebody else's answer: %v", me+i, res.StructuredContent)
			}
		}
		token := fmt.Sprint(me, "/", i)
		params := &sdk.CallToolParams{Name: "legacy__progress"}
		params.SetProgressToken(token)
		if res, err := c.CallTool(t.Context(), params); err != nil || res.IsError {
			t.Errorf("%s: %v %q", token, err, textOf(res))
			return
		}
		eventually(t, "progress under "+token, func() bool {
			tokens, _ := c.told()
			return len(tokens) == 3*(i+1) && slices.Equal(tokens[3*i:], []any{token, token, token})
		})
	}
}

// TestStopDuringCalls: a daemon that is stopped ends calls in flight, records how
// they ended, and starts again without open intents.
func TestStopDuringCalls(t *testing.T) {
	r := startDaemon(t, nil)
	oracles := map[string]*oracle{"modern": newOracle(t, true), "legacy": newOracle(t, false)}
	for name, o := range oracles {
		r.addURL(name, o.url)
	}
	task := r.mint(grantAll("modern", "legacy"))
	var wg sync.WaitGroup
	for _, version := range mcpVersions {
		for name := range oracles {
			// Without retries: a client that keeps trying would hold up the test.
			c := connect(t, &sdk.StreamableClientTransport{Endpoint: "http://vault/mcp", HTTPClient: r.overSocket(task), MaxRetries: -1}, version)
			wg.Go(func() {
				if res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: name + "__hang"}); err == nil && !res.IsError {
					t.Errorf("a call that was cut gave %q", textOf(res))
				}
			})
		}
	}
	count := func(phase vault.Phase) (n int) {
		for _, phases := range r.phases(task.ID, vault.KindTool) {
			if slices.Contains(phases, string(phase)) {
				n++
			}
		}
		return n
	}
	eventually(t, "all calls are in flight", func() bool { return count(vault.PhaseIntent) == 2*len(mcpVersions) })
	begin := time.Now()
	r.stop()
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("stopping took %v", took)
	}
	wg.Wait()
	for _, o := range oracles {
		for range mcpVersions {
			select {
			case <-o.cancelled:
			case <-time.After(10 * time.Second):
				t.Fatal("a server was not told that its call ended")
			}
		}
	}
	r.start()
	if n := count(vault.PhaseCancelled); n != 2*len(mcpVersions) {
		t.Errorf("%d of %d calls are recorded as cancelled, %d as unknown", n, 2*len(mcpVersions), count(vault.PhaseUnknown))
	}
	// The capability outlives the daemon.
	res, err := connect(t, r.endpoint(task), "2025-06-18").CallTool(t.Context(), &sdk.CallToolParams{Name: "modern__add", Arguments: sum{1, 2}})
	if err != nil || res.IsError {
		t.Errorf("after the restart: %v %q", err, textOf(res))
	}
}

// TestSessionsBelongToTheirTask: a session id is no credential. Under another
// task's token it is not found.
func TestSessionsBelongToTheirTask(t *testing.T) {
	r := startDaemon(t, nil)
	r.addURL("oracle", newOracle(t, false).url)
	mine, yours := r.mint(grantAll("oracle")), r.mint(grantAll("oracle")+"# another file\n")
	c := connect(t, r.endpoint(mine), "2025-11-25")
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://vault/mcp", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Mcp-Session-Id", c.ID())
		req.Header.Set("Accept", "text/event-stream")
		resp, err := r.overSocket(yours).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s of another task's session: %s", method, resp.Status)
		}
	}
	if _, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: sum{1, 2}}); err != nil {
		t.Errorf("the session does not work any more: %v", err)
	}
}
