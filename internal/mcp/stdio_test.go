package mcp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
)

func TestStdioFindsTheEra(t *testing.T) {
	for _, c := range []struct {
		name, want, era string
		serve           func(n int32) func(*fakeProcess)
		spawned         int32
	}{
		{"a server without sessions is asked nothing more", "", Version20260728, always(modernServer(echo)), 1},
		{"a server with sessions refuses server/discover and gets initialize", "", Version20251125, always(legacyServer(echo)), 1},
		{"a client's earlier version is asked for first", Version20250618, Version20250618, always(legacyServer(echo)), 1},
		{"a server that knows no initialize is asked server/discover", Version20250618, Version20260728, always(modernServer(func(p *fakeProcess, m message) {
			if m.isCall() {
				p.say(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, m.id)
			}
		})), 1},
		{"a server that does not answer server/discover gets initialize", "", Version20251125, always(func(p *fakeProcess) {
			serve := legacyServer(echo)
			r, w := io.Pipe()
			go func() { // drop the first line
				br := bufio.NewReader(p.stdin)
				br.ReadString('\n')
				io.Copy(w, br)
				w.Close()
			}()
			serve(&fakeProcess{stdin: r, out: p.out})
		}), 1},
		{"a server that ends on server/discover is started again", "", Version20251125, func(n int32) func(*fakeProcess) {
			if n == 1 {
				return func(p *fakeProcess) { bufio.NewReader(p.stdin).ReadString('\n') }
			}
			return legacyServer(echo)
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h stdioHarness
				p, err := h.dial(t, c.want, c.serve)
				if err != nil {
					t.Fatal(err)
				}
				defer p.close()
				if p.era() != c.era || h.spawned.Load() != c.spawned || p.hello() == nil {
					t.Errorf("era %s after %d starts, want %s after %d", p.era(), h.spawned.Load(), c.era, c.spawned)
				}
			})
		})
	}
}

func TestStdioCallsShareOneProcess(t *testing.T) {
	for name, serve := range map[string]func(*fakeProcess){"with sessions": legacyServer(echo), "without": modernServer(echo)} {
		t.Run(name, func(t *testing.T) {
			var h stdioHarness
			p, err := h.dial(t, "", always(serve))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range 64 {
				wg.Go(func() {
					want := fmt.Sprintf(`"n":%d`, i)
					got, err := p.call(t.Context(), methodToolsCall, json.RawMessage("{"+want+"}"), requestMeta{progress: true}, &recorder{})
					if err != nil || !strings.Contains(string(got), want) {
						t.Errorf("call %d: %s %v", i, got, err)
					}
					if modern(p.era()) != strings.Contains(string(got), metaVersion) {
						t.Errorf("protocol _meta of another era: %s", got)
					}
				})
			}
			wg.Wait()
			if n := h.spawned.Load(); n != 1 {
				t.Errorf("%d processes", n)
			}
		})
	}
}

// What a hostile or broken server does to a call, and that the next one works.
func TestStdioServerThatMisbehaves(t *testing.T) {
	say := func(line string) func(*fakeProcess, message) {
		return func(p *fakeProcess, m message) { p.say("%s", strings.ReplaceAll(line, "ID", string(m.id))) }
	}
	for _, c := range []struct {
		name string
		do   func(p *fakeProcess, m message)
		code vault.Code
	}{
		{"crashes", func(p *fakeProcess, m message) { p.exit = errors.New("signal: segmentation fault"); p.Kill() }, vault.CodeUpstreamFailed},
		{"crashes in the middle of an answer", func(p *fakeProcess, m message) { io.WriteString(p.out, `{"jsonrpc":"2.0"`); p.Kill() }, vault.CodeUpstreamFailed},
		{"writes what is no JSON", say(`Server running on stdio`), vault.CodeUpstreamGarbage},
		{"writes JSON that is no message", say(`{"hello":1}`), vault.CodeUpstreamGarbage},
		{"answers with a result and an error", say(`{"jsonrpc":"2.0","id":ID,"result":{},"error":{}}`), vault.CodeUpstreamGarbage},
		{"answers with a key twice", say(`{"jsonrpc":"2.0","id":ID,"result":{"a":1,"a":2}}`), vault.CodeUpstreamGarbage},
		{"answers with a list", say(`[{"jsonrpc":"2.0","id":ID,"result":{}}]`), vault.CodeUpstreamGarbage},
		{"answers with an error that is none", say(`{"jsonrpc":"2.0","id":ID,"error":{}}`), vault.CodeUpstreamGarbage},
		{"answers 100 MB in one line", func(p *fakeProcess, m message) {
			chunk := make([]byte, 1<<20)
			for i := range chunk {
				chunk[i] = 'x'
			}
			for range 100 {
				if _, err := p.out.Write(chunk); err != nil {
					return
				}
			}
			t.Error("100 MB were read")
		}, vault.CodeUpstreamTooLarge},
		{"talks without end", func(p *fakeProcess, m message) {
			for p.say(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`) {
			}
		}, vault.CodeUpstreamTooLarge},
		{"answers what nobody asked, without end", func(p *fakeProcess, m message) {
			for p.say(`{"jsonrpc":"2.0","id":99999,"result":{}}`) {
			}
		}, vault.CodeUpstreamTooLarge},
		{"closes its output", func(p *fakeProcess, m message) { p.out.Close() }, vault.CodeUpstreamFailed},
		{"answers nothing", func(*fakeProcess, message) {}, vault.CodeUpstreamTimeout},
		{"answers another id", say(`{"jsonrpc":"2.0","id":99999,"result":{}}`), vault.CodeUpstreamTimeout},
		{"answers its id as a string", say(`{"jsonrpc":"2.0","id":"ID","result":{}}`), vault.CodeUpstreamTimeout},
		{"answers an error without an id", say(`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}`), vault.CodeUpstreamTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h stdioHarness
				bad := func(p *fakeProcess, m message) {
					if m.method == methodToolsCall {
						c.do(p, m)
						return
					}
					echo(p, m)
				}
				p, err := h.dial(t, "", always(legacyServer(bad)))
				if err != nil {
					t.Fatal(err)
				}
				defer p.close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err = p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{})
				d := denied(t, err, c.code, vault.ExecutedUnknown)
				if strings.Contains(d.Error(), "fault") || strings.Contains(d.Error(), "running") {
					t.Errorf("the agent sees what the server wrote: %v", d)
				}
				if _, err := p.call(t.Context(), methodToolsList, nil, requestMeta{}, &recorder{}); err != nil {
					t.Errorf("the next call: %v", err)
				}
			})
		})
	}
}

func TestStdioSecondAnswerIsDropped(t *testing.T) {
	p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
		p.say(`{"jsonrpc":"2.0","id":%s,"result":{"n":1}}`, m.id)
		p.say(`{"jsonrpc":"2.0","id":%s,"result":{"n":2}}`, m.id)
	}))
	for range 20 {
		got, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
		if err != nil || string(got) != `{"n":1}` {
			t.Fatalf("got %s %v", got, err)
		}
	}
}

func TestStdioServerThatNeverReadsIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h stdioHarness
		p, err := h.dial(t, "", func(n int32) func(*fakeProcess) {
			if n > 1 {
				return legacyServer(echo)
			}
			return func(p *fakeProcess) {
				r := bufio.NewReader(p.stdin)
				for _, answer := range []string{
					`{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}`,
					`{"jsonrpc":"2.0","id":2,"result":{"protocolVersion":"2025-11-25"}}`,
				} {
					r.ReadString('\n')
					p.say("%s", answer)
				}
				r.ReadString('\n')
				<-p.killed
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedUnknown)
		})
		synctest.Wait() // the first call's bytes are being written
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeUpstreamTimeout, vault.ExecutedNo)
		})
		wg.Go(func() { // still waits to be sent when the process is killed
			_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedNo)
		})
		wg.Wait()
		if _, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{}); err != nil {
			t.Errorf("the call after: %v", err)
		}
		if h.spawned.Load() != 2 || h.stray(noteToolsChanged) != 1 {
			t.Errorf("%d processes, %d list changes; want 2 and 1", h.spawned.Load(), h.stray(noteToolsChanged))
		}
	})
}

func TestStdioCrashFailsEveryCallInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
			if n++; n == 10 {
				p.Kill()
			}
		}))
		defer p.close()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
				denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedUnknown)
			})
		}
		wg.Wait()
	})
}

func TestStdioRestartsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h stdioHarness
		crash := always(legacyServer(func(p *fakeProcess, m message) { p.Kill() }))
		p, err := h.dial(t, "", crash)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		begin := time.Now()
		for range 6 {
			_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedUnknown)
		}
		if took := time.Since(begin); took != 1500*time.Millisecond {
			t.Errorf("pauses of %v, want 0, 100, 200, 400 and 800 ms", took)
		}
		_, err = p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
		if d := denied(t, err, vault.CodeServerDown, vault.ExecutedNo); d.Retry != vault.RetryAfter {
			t.Errorf("retry %s", d.Retry)
		}
		if h.spawned.Load() != 6 {
			t.Errorf("%d starts, want 6", h.spawned.Load())
		}
		time.Sleep(time.Minute) // of the fake clock
		_, err = p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
		denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedUnknown)
	})
}

func TestStdioStartThatFailsSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			serve func(*fakeProcess)
			code  vault.Code
		}{
			"ends at once":        {func(*fakeProcess) {}, vault.CodeServerDown},
			"prints a banner":     {func(p *fakeProcess) { p.say("Listening on port 3000") }, vault.CodeUpstreamGarbage},
			"never answers":       {func(p *fakeProcess) { io.Copy(io.Discard, p.stdin) }, vault.CodeServerDown},
			"speaks another time": {modernServer(echo), ""},
		} {
			var h stdioHarness
			p, err := h.dial(t, "", always(c.serve))
			if c.code == "" {
				if err != nil {
					t.Error(err)
				}
				p.close()
				continue
			}
			if err == nil {
				t.Errorf("%s: dialled", name)
				continue
			}
			denied(t, err, c.code, vault.ExecutedNo)
		}
		cfg := StdioConfig{Spawn: func(context.Context, Instance) (Process, error) {
			return nil, vault.NewDenial(vault.CodeSandboxGrade, "", nil)
		}}
		_, err := DialStdio(cfg).dial(t.Context(), Instance{}, "", peerOptions{maxMessage: 1 << 20, log: slog.New(slog.DiscardHandler)})
		denied(t, err, vault.CodeSandboxGrade, vault.ExecutedNo)
	})
}

func TestStdioNotificationsFindTheirCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first string
		var h stdioHarness
		p, err := h.dial(t, "", always(legacyServer(func(p *fakeProcess, m message) {
			if m.method == noteCancelled {
				return
			}
			token := string(member(orEmpty(member(m.params, "_meta")), "progressToken"))
			if first == "" {
				first = string(m.id)
				p.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"alone"}}`)
				return // stays in flight
			}
			p.say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}`, token)
			p.say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":777,"progress":1}}`)
			p.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"whose?"}}`)
			p.say(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
			p.say(`{"jsonrpc":"2.0","id":%s,"result":{}}`, m.id)
		})))
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		ctx, cancel := context.WithCancel(t.Context())
		var a, b recorder
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := p.call(ctx, methodToolsCall, nil, requestMeta{progress: true}, &a)
			denied(t, err, vault.CodeCancelled, vault.ExecutedUnknown)
		})
		synctest.Wait()
		if _, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{progress: true}, &b); err != nil {
			t.Error(err)
		}
		cancel()
		wg.Wait()
		if a.count() != 1 || !strings.Contains(a.notes[0], "alone") {
			t.Errorf("the first call got %q", a.notes)
		}
		if b.count() != 1 || !strings.HasPrefix(b.notes[0], noteProgress) {
			t.Errorf("the second call got %q", b.notes)
		}
		if h.stray(noteMessage) != 1 || h.stray(noteToolsChanged) != 1 || h.stray(noteProgress) != 0 {
			t.Error("what belongs to no call went elsewhere")
		}
	})
}

func TestStdioFloodIsDroppedAndTheReaderGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const flood = 10_000
		p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
			if m.method == methodToolsList {
				echo(p, m)
				return
			}
			token := member(member(m.params, "_meta"), "progressToken")
			for range flood {
				p.say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}`, token)
			}
			p.say(`{"jsonrpc":"2.0","id":%s,"result":{}}`, m.id)
		}))
		defer p.close()
		release := make(chan struct{})
		r := &recorder{onNote: func() error { <-release; return nil }}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{progress: true}, r); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		// The client of the first call takes nothing; others are served all the same.
		if _, err := p.call(t.Context(), methodToolsList, nil, requestMeta{}, &recorder{}); err != nil {
			t.Error(err)
		}
		close(release)
		wg.Wait()
		if n := r.count(); n > 2*inboxMessages {
			t.Errorf("%d notifications were kept, the bound is %d", n, inboxMessages)
		}
	})
}

func TestStdioRequestsOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan string, 10)
		serve := func(p *fakeProcess, m message) {
			switch {
			case m.isResponse():
				answers <- string(m.id) + string(m.result) + string(m.err)
			case m.method == methodToolsCall:
				p.say(`{"jsonrpc":"2.0","id":"p","method":"ping"}`)
				p.say(`{"jsonrpc":"2.0","id":"q","method":"roots/list"}`)
			case m.method == methodToolsList:
				echo(p, m)
			}
		}
		p := mustDial(t, legacyServer(serve))
		defer p.close()
		ctx, cancel := context.WithCancel(t.Context())
		r := &recorder{onServer: func(ctx context.Context, method string) (json.RawMessage, error) {
			return json.RawMessage(`{"roots":[]}`), nil
		}}
		var wg sync.WaitGroup
		wg.Go(func() { p.call(ctx, methodToolsCall, nil, requestMeta{}, r) })
		synctest.Wait()
		got := <-answers + <-answers
		if !strings.Contains(got, `"p"{}`) || !strings.Contains(got, `"q"{"roots":[]}`) {
			t.Errorf("with one call in flight: %s", got)
		}
		// With two in flight nobody can know whose it is.
		wg.Go(func() { p.call(ctx, methodToolsCall, nil, requestMeta{}, r) })
		synctest.Wait()
		got = <-answers + <-answers
		if !strings.Contains(got, `"p"{}`) || !strings.Contains(got, `"q"{"code":-32001`) {
			t.Errorf("with two calls in flight: %s", got)
		}
		cancel()
		wg.Wait()
		// A refusal does not carry its reason, and a call does not return while its
		// client is still being asked.
		var asked atomic.Bool
		r.onServer = func(ctx context.Context, _ string) (json.RawMessage, error) {
			<-ctx.Done()
			time.Sleep(time.Second) // of the fake clock
			asked.Store(true)
			return nil, errors.New("secret")
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.call(ctx, methodToolsCall, nil, requestMeta{}, r)
		if !asked.Load() {
			t.Error("call returned before the request of the server was over")
		}
		synctest.Wait()
		if got := <-answers + <-answers; strings.Contains(got, "secret") || !strings.Contains(got, `"q"{"code":-32001`) {
			t.Errorf("refused: %s", got)
		}
	})
}

func TestStdioCancelTellsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := make(chan string, 1)
		p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
			if m.method == noteCancelled {
				got <- string(member(m.params, "requestId"))
			}
			if m.method == methodToolsCall {
				got <- string(m.id)
			}
		}))
		defer p.close()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeCancelled, vault.ExecutedUnknown)
		})
		id := <-got
		cancel()
		wg.Wait()
		if c := <-got; c != id {
			t.Errorf("cancelled %s, want %s", c, id)
		}
	})
}

func TestStdioNotificationThatIsNotTakenEndsTheCall(t *testing.T) {
	p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
		if m.method == methodToolsCall {
			p.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{}}`)
		}
	}))
	_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{onNote: func() error { return vault.NewDenial(vault.CodeKilled, "", nil) }})
	denied(t, err, vault.CodeKilled, vault.ExecutedUnknown)
}

func TestStdioCallsInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := stdioHarness{cfg: StdioConfig{MaxCalls: 2}}
		p, err := h.dial(t, "", always(legacyServer(func(*fakeProcess, message) {})))
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{}) })
		}
		synctest.Wait()
		_, err = p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{})
		denied(t, err, vault.CodeBusy, vault.ExecutedNo)
		cancel()
		wg.Wait()
	})
}

func TestStdioStderrIsForTheOperatorOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustDial(t, legacyServer(func(p *fakeProcess, m message) {
			fmt.Fprintf(p.err, "\x1b[31mpanic: \u202edatabase is gone\x1b[0m\r\n%s\nlast", strings.Repeat("x", 3*stderrLine))
			p.Kill()
		}))
		defer p.close()
		_, err := p.call(t.Context(), methodToolsCall, nil, requestMeta{}, &recorder{})
		d := denied(t, err, vault.CodeUpstreamFailed, vault.ExecutedUnknown)
		if strings.Contains(d.Error(), "database") {
			t.Errorf("the agent sees standard error: %v", d)
		}
		if cause := fmt.Sprint(d.Err); !strings.Contains(cause, "[31mpanic: database is gone[0m") || strings.ContainsAny(cause, "\x1b\r\n\u202e") || len(cause) > 2*stderrLine {
			t.Errorf("the operator sees %q", cause)
		}
	})
}

func TestStdioCloseJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
		for _, serve := range []func(*fakeProcess){
			legacyServer(echo), // ends by itself
			func(p *fakeProcess) { legacyServer(echo)(p); <-p.killed }, // must be killed
		} {
			p := mustDial(t, serve)
			ctx, cancel := context.WithCancel(t.Context())
			p.close()
			p.close()
			_, err := p.call(ctx, methodToolsCall, nil, requestMeta{}, &recorder{})
			denied(t, err, vault.CodeServerDown, vault.ExecutedNo)
			cancel()
		}
	})
}
