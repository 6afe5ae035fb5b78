package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// approverName is the approver that every test daemon has. Its key has no
// passphrase, because scrypt would cost each test a second.
const approverName = "default"

// A rig is a real daemon with its listeners, and an operator and an approver who
// talk to it the way pvault does.
type rig struct {
	t        *testing.T
	conf     daemon.Config
	daemon   *daemon.Daemon
	admin    *admin.Client
	approver *daemon.Approver
	dir      string // scratch directory, outside the data directory
	addr     string // of the loopback listener
	logs     *logBuffer
}

// startDaemon starts a daemon on fresh directories. mutate may be nil; it changes
// the configuration before it is completed. The daemon is closed with the test,
// and a failure to close fails it.
//
// The least grade is none, so that tests of everything but the sandbox run on
// every host; tests of the sandbox ask for more.
func startDaemon(t *testing.T, mutate func(*daemon.Config)) *rig {
	t.Helper()
	// Not t.TempDir: the name of the test would make the socket's path too long.
	dir, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	conf := daemon.Config{
		Data:    filepath.Join(dir, "data"),
		Listen:  daemon.Listen{HTTP: "127.0.0.1:0"},
		Sandbox: daemon.Sandbox{MinGrade: "none"},
	}
	if mutate != nil {
		mutate(&conf)
	}
	if err := conf.Complete(os.Getenv); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(conf.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	approvers := filepath.Join(conf.Data, "approvers")
	if _, err := daemon.CreateApprover(approvers, approverName, nil); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, conf: conf, dir: filepath.Join(dir, "work"), logs: new(logBuffer)}
	if err := os.Mkdir(r.dir, 0o755); err != nil { // guests of another uid may look into it
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if r.approver, err = daemon.OpenApprover(approvers, approverName, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.approver.Close)
	r.start()
	t.Cleanup(r.stop)
	return r
}

// start opens the daemon on the rig's data, also after stop.
func (r *rig) start() {
	r.t.Helper()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(r.t.Output(), r.logs), &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := daemon.Open(r.t.Context(), r.conf, log)
	if err != nil {
		r.t.Fatal(err)
	}
	r.daemon = d
	if err := d.Listen(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.admin = admin.NewClient(r.conf.Socket())
	s, err := r.admin.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = s.HTTP
}

// stop closes the daemon. It may be called twice.
func (r *rig) stop() {
	if r.daemon == nil {
		return
	}
	r.admin.Close()
	if err := r.daemon.Close(); err != nil {
		r.t.Errorf("close daemon: %v", err)
	}
	r.daemon = nil
}

// addServer registers a server, and fails the test if that does not work.
func (r *rig) addServer(name string, reg daemon.Registration) admin.Server {
	r.t.Helper()
	s, err := r.tryAddServer(name, reg)
	if err != nil {
		r.t.Fatalf("add server %s: %v", name, err)
	}
	return s
}

func (r *rig) tryAddServer(name string, reg daemon.Registration) (admin.Server, error) {
	doc, err := reg.Encode()
	if err != nil {
		return admin.Server{}, err
	}
	return r.admin.AddServer(r.t.Context(), admin.ServerRequest{Name: name, Registration: doc}, approverName, r.approver,
		func(line string) { r.t.Log(line) })
}

// addURL registers a loopback server whose answers are the organisation's own and
// public, so that the flow rules have nothing to say about them.
func (r *rig) addURL(name, url string) admin.Server {
	r.t.Helper()
	return r.addServer(name, daemon.Registration{Source: url, Loopback: true, Integrity: "org", Holds: "public"})
}

// mint opens a task from a task file for this uid.
func (r *rig) mint(file string) admin.Task {
	r.t.Helper()
	return r.mintBound(file, "peer")
}

// mintBound opens a task whose capability is bound as bind says.
func (r *rig) mintBound(file, bind string) admin.Task {
	r.t.Helper()
	t, err := r.admin.MintTask(r.t.Context(), admin.TaskRequest{File: []byte(file), Bind: bind}, approverName, r.approver)
	if err != nil {
		r.t.Fatalf("mint: %v\n%s", err, file)
	}
	return t
}

// call makes one tool call over the admin socket.
func (r *rig) call(task admin.Task, server, name, args string) admin.CallAnswer {
	r.t.Helper()
	a, err := r.admin.Call(r.t.Context(), admin.CallRequest{Token: task.Token, Kind: vault.KindTool, Server: server, Name: name, Args: json.RawMessage(args)})
	if err != nil {
		r.t.Fatalf("call %s.%s: %v", server, name, err)
	}
	return a
}

// bearer returns an HTTP client that sends the token of task with every request.
// Only tasks bound to bearer or key can use it over TCP.
func bearer(task admin.Task) *http.Client {
	return &http.Client{Transport: authorised{task.Token, http.DefaultTransport}}
}

// overSocket returns an HTTP client that reaches the admin socket with the token
// of task. The URL to use is http://vault/mcp.
func (r *rig) overSocket(task admin.Task) *http.Client {
	return &http.Client{Transport: authorised{task.Token, r.admin.HTTP.Transport}}
}

type authorised struct {
	token string
	next  http.RoundTripper
}

func (a authorised) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+a.token)
	return a.next.RoundTrip(r)
}

// A record is one event as pvault audit tail --json prints it.
type record struct {
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
		Grade   string        `json:"grade"`
		Proof   string        `json:"proof"`
		Intent  *uint64       `json:"intent_idx"`
		Debits  []vault.Debit `json:"debits"`
		Refund  bool          `json:"refund"`
		SameUID bool          `json:"same_uid"`
	} `json:"leaf"`
	Fields map[string]string `json:"fields"`
}

// records returns the events of a run, or all of them if run is empty.
func (r *rig) records(run vault.TaskID) []record {
	r.t.Helper()
	var out []record
	err := r.admin.Tail(r.t.Context(), 0, run, false, true, func(raw json.RawMessage) error {
		var rec record
		if err := json.Unmarshal(raw, &rec); err != nil {
			return err
		}
		out = append(out, rec)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// phases returns the phases of the calls of one kind of a run, by call id.
func (r *rig) phases(run vault.TaskID, kind vault.Kind) map[string][]string {
	r.t.Helper()
	out := map[string][]string{}
	for _, rec := range r.records(run) {
		if rec.Leaf.Class == string(vault.ClassCall) && rec.Leaf.Kind == string(kind) {
			out[rec.Leaf.Call] = append(out[rec.Leaf.Call], rec.Leaf.Phase)
		}
	}
	return out
}

// eventually waits until cond holds, for what overtakes the answer of a request.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// removeAll removes dir, of which installed trees are read-only.
func removeAll(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// A logBuffer keeps what the daemon logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// timeout returns a context of the test that ends after d.
func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
