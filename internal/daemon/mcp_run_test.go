package daemon_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
)

// agentScript is an agent that has nothing but the address it was given: it makes
// one call of each era, then tries the ways around the gateway.
const agentScript = `
const url = process.env.PVAULT_URL + '/mcp';
const accept = {'content-type': 'application/json', 'accept': 'application/json, text/event-stream'};
const post = (headers, message) => fetch(url, {method: 'POST', headers: {...accept, ...headers}, body: JSON.stringify({jsonrpc: '2.0', ...message})});
const data = async r => { const t = await r.text(); return JSON.parse(t.startsWith('{') ? t : t.match(/^data: (.*)$/m)[1]); };
const fails = async f => { try { await f(); return false; } catch { return true; } };
(async () => {
  const out = {env: Object.keys(process.env).sort()};
  const meta = {'io.modelcontextprotocol/protocolVersion': '2026-07-28', 'io.modelcontextprotocol/clientCapabilities': {}};
  out.modern = await data(await post({'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/call', 'mcp-name': 'add'},
    {id: 1, method: 'tools/call', params: {_meta: meta, name: 'add', arguments: {A: 2, B: 3}}}));
  const hello = await post({}, {id: 1, method: 'initialize', params: {protocolVersion: '2025-06-18', capabilities: {}, clientInfo: {name: 'a', version: '1'}}});
  await hello.text();
  const session = {'mcp-session-id': hello.headers.get('mcp-session-id'), 'mcp-protocol-version': '2025-06-18'};
  await (await post(session, {method: 'notifications/initialized'})).text();
  out.legacy = await data(await post(session, {id: 2, method: 'tools/call', params: {name: 'add', arguments: {A: 20, B: 30}}}));
  out.token = (await post({...session, authorization: 'Bearer ' + process.argv[2]}, {id: 3, method: 'tools/call', params: {name: 'fail', arguments: {}}})).status;
  out.direct = await fails(() => fetch(process.argv[1]));
  out.daemon = await fails(() => fetch('http://' + process.argv[3] + '/mcp'));
  out.admin = (await fetch(process.env.PVAULT_URL + '/v1/status')).status;
  console.log(JSON.stringify(out));
})();
`

// TestAgentInJail runs an agent in a jail under a task: it needs no token, the
// socket it was given is its authority, and there is no other way out.
func TestAgentInJail(t *testing.T) {
	r := startJailed(t)
	o := newOracle(t, true)
	r.addURL("oracle", o.url)
	task := r.mint("version: 1\npurpose: Add\nprincipal: user:tester@example.com\nlife: 1h\ntools: {oracle.add: {args: any}}\nbudgets: {calls: 10}\n")
	other := r.mint("version: 1\npurpose: Fail\nprincipal: user:tester@example.com\nlife: 1h\ntools: {oracle.fail: {args: any}}\nbudgets: {calls: 10}\n")
	var stdout, stderr strings.Builder
	code := -1
	err := r.admin.Run(t.Context(), admin.RunRequest{Token: task.Token, Argv: []string{"node", "-e", agentScript, o.url, other.Token, r.addr}}, func(f admin.Frame) error {
		stdout.Write(f.Stdout)
		stderr.Write(f.Stderr)
		if f.Exit != nil {
			code = *f.Exit
		}
		return nil
	})
	if err != nil || code != 0 {
		t.Fatalf("run: %v, exit code %d\n%s%s", err, code, stdout.String(), stderr.String())
	}
	var got struct {
		Env            []string
		Modern, Legacy struct {
			Result struct{ StructuredContent struct{ Sum int } }
		}
		Token, Admin   int
		Direct, Daemon bool
	}
	if err := json.Unmarshal([]byte(stdout.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	if got.Modern.Result.StructuredContent.Sum != 5 || got.Legacy.Result.StructuredContent.Sum != 50 {
		t.Errorf("the calls gave %s", stdout.String())
	}
	if !got.Direct || !got.Daemon || got.Admin == 200 {
		t.Errorf("the agent got around the gateway: %s", stdout.String())
	}
	if len(got.Env) != 1 {
		t.Errorf("the agent's environment has %v", got.Env)
	}
	// Somebody else's token in the request changes nothing: it is not looked at.
	for _, rec := range r.records(other.ID) {
		if rec.Leaf.Class == string(vault.ClassCall) {
			t.Errorf("the agent used another task: %+v", rec.Leaf)
		}
	}
	done := 0
	for _, rec := range r.records(task.ID) {
		if rec.Leaf.Phase == string(vault.PhaseDone) && rec.Leaf.Tool == "add" {
			done++
			if rec.Leaf.Proof != string(vault.ProofChannel) {
				t.Errorf("record %d says proof %q", rec.Leaf.Index, rec.Leaf.Proof)
			}
		}
	}
	if done != 2 {
		t.Errorf("%d calls on record", done)
	}
}
