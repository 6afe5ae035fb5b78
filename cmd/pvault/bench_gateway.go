package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// benchTask grants the one tool with three constraints.
const benchTask = `version: 1
purpose: Measure how long a call through the gateway takes
principal: user:bench@example.com
life: 1h
tools:
  stub.` + benchTool + `:
    args:
      path: {subpath: /srv/invoices}
      max: {integer: [1, 1000]}
      encoding: {one_of: [utf-8, latin-1]}
budgets: {calls: 1000000000}
labels: {may_read: [finance]}
`

// benchRules are a policy as a company might have it.
const benchRules = `package vault.toolcall

default decision := {"effect": "deny", "reasons": [{"code": "default", "msg": "no rule", "rule": "default"}]}

decision := {"effect": "deny", "reasons": deny} if count(deny) > 0

decision := {"effect": "allow"} if {
	count(deny) == 0
	input.call.server in {"stub", "mail"}
}

deny contains {"code": "destructive", "msg": "never", "rule": "destructive"} if {
	input.call.tool in {"drop_table", "delete_volume"}
}

deny contains {"code": "tainted", "msg": "untrusted data", "rule": "tainted"} if {
	input.data.labels.integrity == "web"
	not input.call.read_only
}
`

// A benchRig is a running gateway with a stub behind it and an agent before it.
type benchRig struct {
	dir    string
	stub   string // host:port
	agent  *benchAgent
	pids   []int // of the daemon and the stub
	yard   *daemon.Yardstick
	cancel context.CancelFunc
	wait   []func() error
}

// newBenchRig starts everything in a directory of its own below dir.
func newBenchRig(ctx context.Context, dir string, policy bool) (r *benchRig, err error) {
	dir, err = os.MkdirTemp(dir, "pvault-bench-")
	if err != nil {
		return nil, err
	}
	r = &benchRig{dir: dir}
	ctx, r.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if err := r.configure(policy); err != nil {
		return r, err
	}
	url, err := r.start(ctx, "bench-stub")
	if err != nil {
		return r, fmt.Errorf("start the stub: %w", err)
	}
	url = strings.TrimSpace(url)
	r.stub = strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/mcp")
	key, err := daemon.CreateApprover(filepath.Join(dir, "data", "approvers"), "default", nil)
	if err != nil {
		return r, fmt.Errorf("make approver %s: %w", key.Name, err)
	}
	if _, err := r.start(ctx, "up", "--config", filepath.Join(dir, "vault.yaml")); err != nil {
		return r, fmt.Errorf("start the daemon: %w%s", err, r.tail("up.log"))
	}
	if err := r.register(ctx, url); err != nil {
		return r, fmt.Errorf("set up the task: %w%s", err, r.tail("up.log"))
	}
	r.yard, err = daemon.NewYardstick(ctx, dir)
	return r, err
}

// configure writes vault.yaml, and the policy if there is to be one. The stub is
// remote, so no sandbox has a part in what is measured and none is demanded.
func (r *benchRig) configure(policy bool) error {
	conf := "version: 1\ndata: " + filepath.Join(r.dir, "data") + "\nlisten: {http: '127.0.0.1:0'}\nsandbox: {min_grade: none}\n"
	if policy {
		conf += "policy:\n  bundles: [{name: main, dir: policy, unsigned: true}]\n  hooks: [{at: tool.call, query: data.vault.toolcall.decision}]\n"
		if err := os.Mkdir(filepath.Join(r.dir, "policy"), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.dir, "policy", "bench.rego"), []byte(benchRules), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(r.dir, "vault.yaml"), []byte(conf), 0o600)
}

// start runs this program with args and returns the first line it prints. Its log
// goes to a file that is named for the command.
func (r *benchRig) start(ctx context.Context, args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir}
	log, err := os.Create(filepath.Join(r.dir, args[0]+".log"))
	if err != nil {
		return "", err
	}
	cmd.Stderr = log
	in, err := cmd.StdinPipe() // held open: the stub ends with it
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", errors.Join(err, log.Close())
	}
	r.pids = append(r.pids, cmd.Process.Pid)
	reader := bufio.NewReader(out)
	line, err := reader.ReadString('\n')
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, reader) // a full pipe would stop it
	}()
	r.wait = append(r.wait, func() error {
		in.Close()
		<-drained
		_ = cmd.Wait() // stopped by a signal: its exit status says nothing
		return log.Close()
	})
	if err != nil {
		return "", fmt.Errorf("it ended before it was ready: %w", err)
	}
	return line, nil
}

// tail returns the end of a log, for an error.
func (r *benchRig) tail(name string) string {
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil || len(b) == 0 {
		return ""
	}
	return "\n" + strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// register puts the stub behind the gateway and mints a task that is bound to a
// fresh key.
func (r *benchRig) register(ctx context.Context, url string) error {
	conf := daemon.Config{Data: filepath.Join(r.dir, "data")}
	if err := conf.Complete(func(string) string { return "" }); err != nil {
		return err
	}
	client := admin.NewClient(conf.Socket())
	defer client.Close()
	approver, err := daemon.OpenApprover(filepath.Join(conf.Data, "approvers"), "default", nil)
	if err != nil {
		return err
	}
	defer approver.Close()
	doc, err := daemon.Registration{Source: url, Integrity: "org", Holds: "private[finance]", TrustAnnotations: true, Loopback: true}.Encode()
	if err != nil {
		return err
	}
	server, err := client.AddServer(ctx, admin.ServerRequest{Name: "stub", Registration: doc}, "default", approver, func(string) {})
	if err != nil {
		return fmt.Errorf("register the stub: %w", err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	task, err := client.MintTask(ctx, admin.TaskRequest{File: []byte(benchTask), Agent: "bench", Bind: "key:" + base64.RawURLEncoding.EncodeToString(public)}, "default", approver)
	if err != nil {
		return fmt.Errorf("mint the task: %w", err)
	}
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	r.agent = &benchAgent{addr: status.HTTP, token: task.Token, target: vault.Target{Name: benchTool}}
	if err := r.agent.target.Server.UnmarshalText([]byte(server.ID)); err != nil {
		return fmt.Errorf("server id: %w", err)
	}
	var gateway capability.Key
	if err := gateway.UnmarshalText([]byte(status.SessionKey)); err != nil {
		return fmt.Errorf("session key: %w", err)
	}
	return r.agent.openSession(ctx, gateway, private)
}

// close stops the processes and removes what they wrote.
func (r *benchRig) close() error {
	r.cancel()
	var errs []error
	for _, f := range r.wait {
		errs = append(errs, f())
	}
	if r.yard != nil {
		errs = append(errs, r.yard.Close())
	}
	errs = append(errs, os.RemoveAll(r.dir))
	return errors.Join(errs...)
}

// A latency is what one connection sees: the gateway, the stub alone and one
// durable write, in turn, so that all three meet the same machine.
type latency struct{ gateway, stub, write times }

// latency measures rounds rounds after a tenth as many that do not count.
func (r *benchRig) latency(ctx context.Context, rounds int) (l latency, err error) {
	gateway, err := dialWire(ctx, r.agent.addr)
	if err != nil {
		return l, err
	}
	defer gateway.close()
	stub, err := dialWire(ctx, r.stub)
	if err != nil {
		return l, err
	}
	defer stub.close()
	direct := stubRequest(r.stub)
	var b []byte
	for i := range rounds + rounds/10 {
		if b, err = r.agent.request(b[:0]); err != nil {
			return l, err
		}
		var took [3]time.Duration
		for j, step := range [...]func() error{
			func() error { return gateway.call(b) },
			func() error { return stub.call(direct) },
			func() error { return r.yard.Write(ctx, 1) },
		} {
			start := time.Now()
			if err := step(); err != nil {
				return l, err
			}
			took[j] = time.Since(start)
		}
		if i >= rounds/10 {
			l.gateway, l.stub, l.write = append(l.gateway, took[0]), append(l.stub, took[1]), append(l.write, took[2])
		}
	}
	return l, nil
}

// gatewayArea measures one call through the whole gateway.
func (b *bench) gatewayArea(ctx context.Context) error {
	if err := b.gatewayRun(ctx, true); err != nil {
		return err
	}
	return b.gatewayRun(ctx, false)
}

// Sizes of a run of the gateway area.
const (
	gatewayRounds = 3000
	gatewayConns  = 32
	gatewayTime   = 5 * time.Second
	gatewayAhead  = 30_000 // requests made before the clock starts, 2 KB each: enough for the goal
)

func (b *bench) gatewayRun(ctx context.Context, policy bool) (err error) {
	b.progress("gateway: start a stub, a daemon and a task" + map[bool]string{true: "", false: ", without policy"}[policy])
	r, err := newBenchRig(ctx, b.dir, policy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	idle := resident(r.pids[1])
	b.progress(fmt.Sprintf("gateway: %d calls on one connection", gatewayRounds))
	l, err := r.latency(ctx, gatewayRounds)
	if err != nil {
		return err
	}
	base := l.stub.percentile(50) + l.write.percentile(50)
	if !policy {
		b.add("gateway.no_policy.p50", l.gateway.percentile(50), unitTime, "the stub and one durable write", base, 0)
		return nil
	}
	b.progress(fmt.Sprintf("gateway: %d connections for %v", gatewayConns, gatewayTime))
	stub, _, err := stubRate(ctx, r.stub, gatewayConns, time.Second)
	if err != nil {
		return err
	}
	if _, _, err := r.agent.rate(ctx, gatewayConns, time.Second, nil); err != nil { // warm up
		return err
	}
	ahead, err := r.agent.requests(gatewayAhead)
	if err != nil {
		return err
	}
	watch := watchMemory(ctx, r.pids[1])
	pids := append(slices.Clone(r.pids), os.Getpid())
	used := make([]time.Duration, len(pids))
	for i, pid := range pids {
		used[i] = -cpuOf(pid)
	}
	rate, calls, err := r.agent.rate(ctx, gatewayConns, gatewayTime, ahead)
	var sum time.Duration
	for i, pid := range pids {
		used[i] = (used[i] + cpuOf(pid)) / time.Duration(max(calls, 1))
		sum += used[i]
	}
	memory := watch()
	if err != nil {
		return err
	}
	b.add("gateway.added.p50", l.gateway.percentile(50)-base, unitTime, "the stub and one durable write, p50", base, 400_000)
	b.add("gateway.added.p99", l.gateway.percentile(99)-base, unitTime, "the stub and one durable write, p50", base, 0)
	b.add("gateway.p50", l.gateway.percentile(50), unitTime, "the stub alone", l.stub.percentile(50), 800_000)
	b.add("gateway.rate", rate, unitRate, "the stub alone", stub, 5_000)
	b.add("gateway.cpu", float64(sum), unitTime, "the stub and the load alone", float64(sum-used[1]), 400_000)
	b.add("gateway.rss", memory, unitSize, "before the first call", idle, 60_000_000)
	return nil
}
