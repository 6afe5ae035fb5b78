package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

const metaPrefix = "io.modelcontextprotocol/"

// A benchAgent makes tool calls as an agent would: each with arguments of its own,
// an id, and the proof of its session.
type benchAgent struct {
	addr    string // host:port of the gateway
	token   string
	target  vault.Target
	session *capability.Session
	calls   atomic.Uint64
}

// openSession opens the session that calls are proven in.
func (g *benchAgent) openSession(ctx context.Context, gateway capability.Key, key ed25519.PrivateKey) error {
	chain, err := capability.ParseText(g.token)
	if err != nil {
		return err
	}
	g.session = &capability.Session{Chain: chain, Key: key, Gateway: gateway}
	opening, err := g.session.Open()
	if err != nil {
		return err
	}
	w, err := dialWire(ctx, g.addr)
	if err != nil {
		return err
	}
	defer w.close()
	body := base64.RawURLEncoding.EncodeToString(opening)
	answer, err := w.send([]byte("POST /session HTTP/1.1\r\nHost: " + g.addr + "\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body))
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(string(answer))
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	return g.session.Finish(raw)
}

// request appends the next request to b. It is made before the clock starts.
func (g *benchAgent) request(b []byte) ([]byte, error) {
	n := g.calls.Add(1)
	text := fmt.Sprintf(`{"encoding":"utf-8","max":200,"path":"/srv/invoices/2026/%04d.txt"}`, n%10_000)
	args, err := vault.ParseArgs([]byte(text))
	if err != nil {
		return nil, err
	}
	call := &vault.Call{ID: fmt.Sprintf("b-%012d", n), Kind: vault.KindTool, Target: g.target, Args: args}
	if err := g.session.Sign(call); err != nil {
		return nil, err
	}
	cred := &call.Credential
	b = append(append(b, "POST /mcp HTTP/1.1\r\nHost: "...), g.addr...)
	b = append(append(b, "\r\nAuthorization: Bearer "...), g.token...)
	b = append(b, "\r\nVault-Seq: "...)
	b = strconv.AppendUint(b, cred.Seq, 10)
	for _, h := range [...]struct {
		name  string
		value []byte
	}{{"Vault-Session", cred.Session}, {"Vault-Mac", cred.MAC}, {"Vault-Nonce", cred.Nonce}} {
		b = append(append(append(b, "\r\n"...), h.name...), ": "...)
		b = base64.RawURLEncoding.AppendEncode(b, h.value)
	}
	return appendToolCall(b, text, `,"dev.pilox.vault/call_id":"`+call.ID+`"`), nil
}

// stubRequest is the same request to the stub itself.
func stubRequest(addr string) []byte {
	return appendToolCall([]byte("POST /mcp HTTP/1.1\r\nHost: "+addr), `{"encoding":"utf-8","max":200,"path":"/srv/invoices/2026/0001.txt"}`, "")
}

// appendToolCall appends the headers that every tool call has, and the body.
func appendToolCall(b []byte, args, meta string) []byte {
	const version = "2026-07-28"
	const open = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + benchTool + `","arguments":`
	const metaOpen = `,"_meta":{"` + metaPrefix + `protocolVersion":"` + version + `","` + metaPrefix + `clientCapabilities":{},"` + metaPrefix + `clientInfo":{"name":"bench","version":"1"}`
	b = append(b, "\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream"+
		"\r\nMcp-Protocol-Version: "+version+"\r\nMcp-Method: tools/call\r\nMcp-Name: "+benchTool+"\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(open)+len(args)+len(metaOpen)+len(meta)+len(`}}}`)), 10)
	b = append(append(b, "\r\n\r\n"+open...), args...)
	return append(append(append(b, metaOpen...), meta...), `}}}`...)
}

// times are durations that were measured one by one.
type times []time.Duration

// percentile returns the value below which p of 100 lie, in nanoseconds.
func (t times) percentile(p int) float64 {
	if len(t) == 0 {
		return 0
	}
	s := slices.Clone(t)
	slices.Sort(s)
	return float64(s[min(len(s)*p/100, len(s)-1)])
}

// requests makes n requests ahead of their time.
func (g *benchAgent) requests(n int) ([][]byte, error) {
	list := make([][]byte, n)
	for i := range list {
		var err error
		if list[i], err = g.request(nil); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// rate calls from conns connections for the time d and returns the calls per
// second. It takes the requests that were made ahead, and makes more if they do
// not last.
func (g *benchAgent) rate(ctx context.Context, conns int, d time.Duration, ahead [][]byte) (float64, uint64, error) {
	var next atomic.Int64
	return parallel(ctx, conns, d, g.addr, func(w *wire, b []byte) ([]byte, error) {
		if i := int(next.Add(1)) - 1; i < len(ahead) {
			return b, w.call(ahead[i])
		}
		b, err := g.request(b)
		if err != nil {
			return b, err
		}
		return b, w.call(b)
	})
}

// stubRate is rate without the gateway.
func stubRate(ctx context.Context, addr string, conns int, d time.Duration) (float64, uint64, error) {
	request := stubRequest(addr)
	return parallel(ctx, conns, d, addr, func(w *wire, b []byte) ([]byte, error) { return b, w.call(request) })
}

// parallel runs step on conns connections until d is over. step gets its buffer back.
func parallel(ctx context.Context, conns int, d time.Duration, addr string, step func(*wire, []byte) ([]byte, error)) (float64, uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wires := make([]*wire, conns)
	for i := range wires {
		w, err := dialWire(ctx, addr)
		if err != nil {
			return 0, 0, err
		}
		defer w.close()
		wires[i] = w
	}
	var done atomic.Uint64
	errs := make([]error, conns)
	var wg sync.WaitGroup
	start := time.Now()
	for i, w := range wires {
		wg.Go(func() {
			var b []byte
			for time.Since(start) < d {
				if b, errs[i] = step(w, b[:0]); errs[i] != nil {
					cancel() // one failure makes the number worthless
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	return float64(done.Load()) / took.Seconds(), done.Load(), errors.Join(errs...)
}
