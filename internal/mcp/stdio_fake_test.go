package mcp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pilox/vault"
)

// A fakeProcess is a server inside the test, on pipes that end when it is killed.
type fakeProcess struct {
	stdin          *io.PipeReader
	stdinW         *io.PipeWriter
	stdout, stderr *io.PipeReader
	out, err       *io.PipeWriter
	killed         chan struct{}
	once           sync.Once
	wg             sync.WaitGroup
	exit           error
}

// startFake runs serve as a process.
func startFake(serve func(p *fakeProcess)) *fakeProcess {
	p := &fakeProcess{killed: make(chan struct{})}
	p.stdin, p.stdinW = io.Pipe()
	p.stdout, p.out = io.Pipe()
	p.stderr, p.err = io.Pipe()
	p.wg.Go(func() {
		serve(p)
		p.out.Close()
		p.err.Close()
		p.stdin.Close()
	})
	return p
}

func (p *fakeProcess) Stdin() io.WriteCloser { return p.stdinW }
func (p *fakeProcess) Stdout() io.Reader     { return p.stdout }
func (p *fakeProcess) Stderr() io.Reader     { return p.stderr }
func (p *fakeProcess) Wait() error           { p.wg.Wait(); return p.exit }
func (p *fakeProcess) Kill() error {
	p.once.Do(func() {
		close(p.killed)
		p.stdin.CloseWithError(errors.New("killed"))
		p.out.Close()
		p.err.Close()
	})
	return nil
}

// say writes one line; it is false when nobody reads any more.
func (p *fakeProcess) say(format string, args ...any) bool {
	_, err := fmt.Fprintf(p.out, format+"\n", args...)
	return err == nil
}

// each gives every message that arrives to fn.
func (p *fakeProcess) each(fn func(m message)) {
	r := bufio.NewReader(p.stdin)
	for {
		line, err := readLine(r, 1<<20)
		if err != nil {
			return
		}
		m, err := scanMessage(line)
		if err != nil {
			panic(err) // what we send must be right
		}
		fn(m)
	}
}

// legacyServer answers the handshake of the era with sessions and gives the rest to fn.
func legacyServer(fn func(p *fakeProcess, m message)) func(*fakeProcess) {
	return func(p *fakeProcess) {
		p.each(func(m message) {
			switch m.method {
			case methodDiscover:
				p.say(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, m.id)
			case methodInitialize:
				version, _ := plainString(member(m.params, "protocolVersion"))
				p.say(`{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":%q,"capabilities":{},"serverInfo":{"name":"fake","version":"1"}}}`, m.id, version)
			case noteInitialized, noteCancelled:
				if m.method == noteCancelled {
					fn(p, m)
				}
			default:
				fn(p, m)
			}
		})
	}
}

// modernServer is the same for the era without sessions.
func modernServer(fn func(p *fakeProcess, m message)) func(*fakeProcess) {
	return func(p *fakeProcess) {
		p.each(func(m message) {
			if m.method == methodDiscover {
				p.say(`{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{},"serverInfo":{"name":"fake","version":"1"},"resultType":"complete"}}`, m.id)
				return
			}
			fn(p, m)
		})
	}
}

func echo(p *fakeProcess, m message) {
	if m.isCall() {
		p.say(`{"jsonrpc":"2.0","id":%s,"result":{"params":%s}}`, m.id, m.params)
	}
}

// recorder is an inbound that keeps what it gets.
type recorder struct {
	mu       sync.Mutex
	notes    []string
	onNote   func() error
	onServer func(ctx context.Context, method string) (json.RawMessage, error)
}

func (r *recorder) notify(_ context.Context, method string, params json.RawMessage) error {
	r.mu.Lock()
	r.notes = append(r.notes, method+string(params))
	r.mu.Unlock()
	if r.onNote != nil {
		return r.onNote()
	}
	return nil
}

func (r *recorder) request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	if r.onServer == nil {
		return nil, errors.New("refused for a secret reason")
	}
	return r.onServer(ctx, method)
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.notes)
}

// stdioHarness dials servers made by serve and counts them.
type stdioHarness struct {
	spawned atomic.Int32
	strays  sync.Map
	cfg     StdioConfig
	log     *slog.Logger
	max     int
}

func (h *stdioHarness) dial(t *testing.T, want string, serve func(n int32) func(*fakeProcess)) (peer, error) {
	t.Helper()
	h.cfg.Spawn = func(context.Context, Instance) (Process, error) {
		return startFake(serve(h.spawned.Add(1))), nil
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.max == 0 {
		h.max = DefaultMaxResult
	}
	p, err := DialStdio(h.cfg).dial(t.Context(), Instance{}, want, peerOptions{
		maxMessage: h.max, log: h.log, info: json.RawMessage(`{"name":"vault","version":"1"}`),
		stray: func(method string, _ json.RawMessage) {
			n, _ := h.strays.LoadOrStore(method, new(atomic.Int32))
			n.(*atomic.Int32).Add(1)
		},
	})
	if err == nil {
		t.Cleanup(func() { p.close() })
	}
	return p, err
}

func (h *stdioHarness) stray(method string) int32 {
	n, ok := h.strays.Load(method)
	if !ok {
		return 0
	}
	return n.(*atomic.Int32).Load()
}

func always(serve func(*fakeProcess)) func(int32) func(*fakeProcess) {
	return func(int32) func(*fakeProcess) { return serve }
}

func mustDial(t *testing.T, serve func(*fakeProcess)) peer {
	t.Helper()
	p, err := new(stdioHarness).dial(t, "", always(serve))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// denied checks that err is a denial with this code and execution.
func denied(t *testing.T, err error, code vault.Code, executed vault.Executed) *vault.Denial {
	t.Helper()
	d, ok := errors.AsType[*vault.Denial](err)
	if !ok || d.Reason.Code != code || d.Executed != executed {
		t.Errorf("got %v (%+v), want %s executed %s", err, d, code, executed)
		return vault.NewDenial("", "", nil)
	}
	return d
}
