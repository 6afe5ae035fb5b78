package mcp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// rawServer answers each connection with serve, and counts connections.
func rawServer(t *testing.T, serve func(n int64, c net.Conn, r *bufio.Reader)) (*loopback, *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var conns atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(n int64) {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			}(conns.Add(1))
		}
	}()
	return &loopback{addr: l.Addr().String()}, &conns
}

func loopRequest(ctx context.Context, l *loopback, body string) (string, error) {
	req := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: l.addr, Path: "/mcp"}, Host: l.addr, Header: http.Header{"X-A": {"b"}},
		Body: &bodyReader{Reader: *bytes.NewReader([]byte(body)), buf: &buffer{}}, ContentLength: int64(len(body)),
	}
	resp, err := l.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, b), err
}

func TestLoopback(t *testing.T) {
	answer := func(c net.Conn, r *bufio.Reader, head, body string) bool {
		req, err := http.ReadRequest(r)
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, err = io.WriteString(c, head+"\r\n\r\n"+body)
		return err == nil
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2"
	for _, tt := range []struct {
		name  string
		serve func(n int64, c net.Conn, r *bufio.Reader)
		want  []string // of requests one after the other; "" is an error
		conns int64
	}{
		{"a connection is used again", func(_ int64, c net.Conn, r *bufio.Reader) {
			for answer(c, r, ok, "hi") {
			}
		}, []string{"200 hi", "200 hi", "200 hi"}, 1},
		{"chunks are put together, and the connection is used again", func(_ int64, c net.Conn, r *bufio.Reader) {
			for answer(c, r, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "1\r\nh\r\n1\r\ni\r\n0\r\n\r\n") {
			}
		}, []string{"200 hi", "200 hi"}, 1},
		{"interim answers are skipped", func(_ int64, c net.Conn, r *bufio.Reader) {
			for answer(c, r, "HTTP/1.1 103 Early Hints\r\n\r\n"+ok, "hi") {
			}
		}, []string{"200 hi", "200 hi"}, 1},
		{"endless interim answers are an error", func(_ int64, c net.Conn, r *bufio.Reader) {
			answer(c, r, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20)+ok, "hi")
		}, []string{""}, 1},
		{"a server that says it closes is believed", func(_ int64, c net.Conn, r *bufio.Reader) {
			for answer(c, r, ok+"\r\nConnection: close", "hi") {
			}
		}, []string{"200 hi", "200 hi"}, 2},
		{"a server that closes without a word is noticed before the next request", func(_ int64, c net.Conn, r *bufio.Reader) {
			answer(c, r, ok, "hi")
		}, []string{"200 hi", "200 hi"}, 2},
		{"an answer nobody asked for spoils the connection", func(_ int64, c net.Conn, r *bufio.Reader) {
			for answer(c, r, ok, "hi"+ok+"\r\n\r\nno") {
			}
		}, []string{"200 hi", "200 hi"}, 2},
		{"a head without an end is refused", func(_ int64, c net.Conn, r *bufio.Reader) {
			answer(c, r, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 2*maxHead), "")
		}, []string{""}, 1},
		{"garbage is refused", func(_ int64, c net.Conn, r *bufio.Reader) {
			answer(c, r, "220 smtp.example ESMTP", "")
		}, []string{""}, 1},
		{"a body that ends early is an error, and nothing is sent again", func(_ int64, c net.Conn, r *bufio.Reader) {
			answer(c, r, "HTTP/1.1 200 OK\r\nContent-Length: 20", "hi")
		}, []string{""}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, conns := rawServer(t, tt.serve)
			for i, want := range tt.want {
				got, err := loopRequest(t.Context(), l, `{"n":1}`)
				if want == "" != (err != nil) || err == nil && got != want {
					t.Fatalf("request %d: %q, %v; want %q", i, got, err, want)
				}
				if i < len(tt.want)-1 && tt.conns > 1 {
					waitClosed(t, l)
				}
			}
			if conns.Load() != tt.conns {
				t.Errorf("%d connections, want %d", conns.Load(), tt.conns)
			}
		})
	}
}

// waitClosed waits until what the server did to an idle connection has arrived.
func waitClosed(t *testing.T, l *loopback) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) == 0 {
		return
	}
	for l.idle[0].alive() {
		if t.Context().Err() != nil {
			t.Fatal("the connection stays alive")
		}
	}
}

func TestLoopbackCancel(t *testing.T) {
	for _, tt := range []struct{ name, head string }{
		{"before the head of the answer", ""},
		{"in the middle of the body", "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l, _ := rawServer(t, func(_ int64, c net.Conn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(c, tt.head)
				cancel()
				_, _ = io.Copy(io.Discard, r) // until the other side hangs up
			})
			if got, err := loopRequest(ctx, l, "{}"); err == nil {
				t.Errorf("answered %q", got)
			}
			if len(l.idle) != 0 {
				t.Error("the connection is kept")
			}
		})
	}
}

func TestLoopbackHeader(t *testing.T) {
	for _, v := range []string{"a\r\nX-Evil: 1", "a\nb", "a\x00b"} {
		req := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/mcp", nil)
		req.Header = http.Header{"X-Secret": {v}}
		if b, err := appendHead(nil, req); err == nil {
			t.Errorf("%q became %q", v, b)
		}
	}
}

func TestLoopbackNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lb := &loopback{addr: l.Addr().String()}
	l.Close()
	_, err = loopRequest(t.Context(), lb, "{}")
	if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "dial" {
		t.Errorf("err = %v, want a dial error, which says that nothing was sent", err)
	}
}
