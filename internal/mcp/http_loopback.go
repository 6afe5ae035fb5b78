package mcp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A loopback is an http.RoundTripper for a server on this machine, in plain
// HTTP/1.1. net/http hands each request to two goroutines of the connection, which
// over loopback takes as long as the request itself; here the caller writes and
// reads. It never sends a request twice.
type loopback struct {
	addr string

	mu       sync.Mutex // guards what follows
	idle     []*loopConn
	sweeping bool // a timer runs that closes what is idle for too long
}

const (
	// maxIdle and idleFor bound the connections kept open: as many as a task may
	// have calls in flight, for less than servers commonly keep them.
	maxIdle = 256
	idleFor = 50 * time.Second
	// maxHead bounds the head of an answer in bytes, maxInterim the 1xx answers before it.
	maxHead    = 64 << 10
	maxInterim = 5
)

// A loopConn is one connection. It belongs to one request at a time.
type loopConn struct {
	net.Conn
	r     *bufio.Reader
	left  int64 // bytes that may still be read
	out   []byte
	since time.Time // idle since
}

// Read reads from the connection within the bound that is set.
func (c *loopConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the head of the answer is too large")
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// alive reports whether an idle connection can take a request: the server has
// neither closed it nor said anything unasked.
func (c *loopConn) alive() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok || c.r.Buffered() > 0 {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && quiet
}

// get returns an idle connection or a new one.
func (l *loopback) get(ctx context.Context) (*loopConn, error) {
	for {
		l.mu.Lock()
		n := len(l.idle)
		if n == 0 {
			l.mu.Unlock()
			break
		}
		c := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.mu.Unlock()
		if time.Since(c.since) < idleFor && c.alive() {
			return c, nil
		}
		_ = c.Close() // there is nothing on it
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	c := &loopConn{Conn: conn}
	c.r = bufio.NewReader(c)
	return c, nil
}

// put keeps a connection for the next request.
func (l *loopback) put(c *loopConn) {
	c.since = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) >= maxIdle {
		_ = c.Close() // there is nothing on it
		return
	}
	l.idle = append(l.idle, c)
	if !l.sweeping {
		l.sweeping = true
		time.AfterFunc(idleFor, l.sweep)
	}
}

// sweep closes what was idle for too long, oldest first, and comes back for the rest.
func (l *loopback) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.idle) > 0 && time.Since(l.idle[0].since) >= idleFor {
		_ = l.idle[0].Close() // there is nothing on it
		l.idle = slices.Delete(l.idle, 0, 1)
	}
	if l.sweeping = len(l.idle) > 0; l.sweeping {
		time.AfterFunc(idleFor, l.sweep)
	}
}

// RoundTrip sends one request and returns the answer once its head has arrived.
func (l *loopback) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if req.Body != nil {
		defer req.Body.Close()
	}
	c, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	// A deadline in the past ends what the connection waits for.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	resp, err := c.roundTrip(req)
	if err != nil {
		stop()
		return nil, errors.Join(err, c.Close())
	}
	resp.Body = &loopBody{l: l, c: c, body: resp.Body, stop: stop, last: resp.Close, over: resp.Body == http.NoBody}
	return resp, nil
}

// roundTrip writes the request in one piece and reads the head of the answer.
func (c *loopConn) roundTrip(req *http.Request) (*http.Response, error) {
	var err error
	if c.out, err = appendHead(c.out[:0], req); err != nil {
		return nil, err
	}
	if req.Body != nil {
		b := buffer{c.out}
		if err := b.read(io.LimitReader(req.Body, req.ContentLength), -1, 0); err != nil {
			return nil, fmt.Errorf("read request body: %w", err)
		}
		c.out = b.b
	}
	_, err = c.Write(c.out)
	if cap(c.out) > maxHead {
		c.out = nil // a large request must not keep its memory for good
	}
	if err != nil {
		return nil, err
	}
	for range maxInterim {
		c.left = maxHead
		resp, err := http.ReadResponse(c.r, req)
		if err != nil {
			return nil, err
		}
		c.left = math.MaxInt64 // whoever reads the body bounds it
		if resp.StatusCode >= 200 {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	return nil, errors.New("the server answers with interim answers only")
}

// appendHead appends the request line and the headers.
func appendHead(b []byte, req *http.Request) ([]byte, error) {
	b = append(append(b, req.Method...), ' ')
	b = append(append(b, req.URL.RequestURI()...), " HTTP/1.1\r\nHost: "...)
	b = append(b, req.Host...)
	if req.Body != nil {
		b = strconv.AppendInt(append(b, "\r\nContent-Length: "...), req.ContentLength, 10)
	}
	for name, values := range req.Header {
		for _, v := range values {
			if strings.ContainsAny(name, "\r\n\x00: ") || strings.ContainsAny(v, "\r\n\x00") {
				return nil, fmt.Errorf("header %q has a value that no header can have", name)
			}
			b = append(append(b, "\r\n"...), name...)
			b = append(append(b, ": "...), v...)
		}
	}
	return append(b, "\r\n\r\n"...), nil
}

// A loopBody is the body of an answer. At its end the connection is free again.
type loopBody struct {
	l    *loopback
	c    *loopConn
	body io.ReadCloser
	stop func() bool
	last bool // the server closes after this answer
	over bool // all of it was read
	done bool
}

// Read reads the body.
func (b *loopBody) Read(p []byte) (int, error) {
	if b.done {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.body.Read(p)
	if errors.Is(err, io.EOF) {
		b.over = true
	}
	return n, err
}

// Close gives the connection back, or closes it if anything can still be on it.
func (b *loopBody) Close() error {
	if b.done {
		return nil
	}
	b.done = true
	// A context that ended has set, or is about to set, a deadline.
	if b.stop() && b.over && !b.last {
		b.l.put(b.c)
		return nil
	}
	return b.c.Close()
}
