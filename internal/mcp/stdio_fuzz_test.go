package mcp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pilox/vault"
)

func FuzzReadLine(f *testing.F) {
	for _, s := range []string{"", "\n", "a\n", "a\r\n\n\nb\n", "abc", "\r\n", "a\rb\n", "12345678\n", "123456789\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		const limit = 8
		r := bufio.NewReaderSize(strings.NewReader(in), 16)
		var lines []string
		var err error
		for {
			var line []byte
			if line, err = readLine(r, limit); err != nil {
				break
			}
			if len(line) == 0 || len(line) > limit || strings.Contains(string(line), "\n") {
				t.Fatalf("line %q", line)
			}
			lines = append(lines, string(line))
		}
		var want []string
		rest := in
		for {
			line, after, found := strings.Cut(rest, "\n")
			line = strings.TrimSuffix(line, "\r")
			if !found || len(line) > limit {
				break
			}
			if rest = after; line != "" {
				want = append(want, line)
			}
		}
		if fmt.Sprint(lines) != fmt.Sprint(want) {
			t.Fatalf("%q gives %q, want %q (%v)", in, lines, want, err)
		}
	})
}

// What FuzzStdioServer holds: whatever a server writes in place of an answer, the
// call ends with a result, an error of the server or a denial, and nothing is left
// running.
func FuzzStdioServer(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":3,"result":{}}`,
		`{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"x"}}`,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3}}` + "\n" + `{"jsonrpc":"2.0","id":3,"result":{}}`,
		`{"jsonrpc":"2.0","id":"q","method":"roots/list"}`,
		`{"jsonrpc":"2.0","id":1,"method":"ping"}`, "x", "[]", "\n\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, out string) {
		synctest.Test(t, func(t *testing.T) {
			h := stdioHarness{max: 4096}
			p, err := h.dial(t, "", always(legacyServer(func(p *fakeProcess, m message) {
				if m.method == methodToolsCall {
					p.say("%s", out)
				}
			})))
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := p.call(ctx, methodToolsCall, nil, requestMeta{progress: true}, &recorder{})
			var d *vault.Denial
			var remote *RemoteError
			switch {
			case err == nil:
				if len(got) == 0 || got[0] != '{' {
					t.Fatalf("result %q", got)
				}
			case errors.As(err, &remote):
			case !errors.As(err, &d) || d.Executed != vault.ExecutedUnknown:
				t.Fatalf("%T %v", err, err)
			}
		})
	})
}

func BenchmarkStdioCall(b *testing.B) {
	cfg := StdioConfig{Spawn: func(context.Context, Instance) (Process, error) { return startFake(modernServer(echo)), nil }}
	p, err := DialStdio(cfg).dial(b.Context(), Instance{}, "", peerOptions{
		maxMessage: DefaultMaxResult, log: slog.New(slog.DiscardHandler), info: json.RawMessage(`{"name":"vault","version":"1"}`),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.close()
	params := json.RawMessage(`{"name":"echo","arguments":{"text":"hello"}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.call(b.Context(), methodToolsCall, params, requestMeta{}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
