package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// The load of pvault bench speaks HTTP/1.1 by hand: a client library would cost
// about as much as the gateway, on the same cores.

// An httpHead is what the stub and the load need of the head of a message.
type httpHead struct {
	status int    // of an answer
	length int    // Content-Length, -1 without
	method string // Mcp-Method of a request
}

var errHTTP = errors.New("not the HTTP that was expected")

// read reads up to the empty line.
func (h *httpHead) read(r *bufio.Reader) error {
	h.status, h.length = 0, -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return nil
		}
		if first {
			if rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 ")); ok && len(rest) >= 3 {
				if h.status, err = strconv.Atoi(string(rest[:3])); err != nil {
					return errHTTP
				}
			}
			continue
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return errHTTP
		}
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if h.length, err = strconv.Atoi(string(value)); err != nil || h.length < 0 {
				return errHTTP
			}
		case bytes.EqualFold(name, []byte("Mcp-Method")):
			if string(value) != h.method { // the same one all the time costs nothing
				h.method = string(value)
			}
		}
	}
}

// A wire is one kept-alive connection of the load.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
	head httpHead
	body []byte
	stop func() bool
}

// dialWire connects. When ctx ends, so do the requests on the connection.
func dialWire(ctx context.Context, addr string) (*wire, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &wire{conn: c, r: bufio.NewReaderSize(c, 16<<10), stop: context.AfterFunc(ctx, func() { c.Close() })}, nil
}

func (w *wire) close() {
	w.stop()
	w.conn.Close()
}

// maxAnswer bounds an answer: the stub's is small, and so must what comes of it be.
const maxAnswer = 1 << 20

// send writes one whole request and reads the answer's body, which is good until
// the next send.
func (w *wire) send(request []byte) ([]byte, error) {
	if _, err := w.conn.Write(request); err != nil {
		return nil, err
	}
	if err := w.head.read(w.r); err != nil {
		return nil, err
	}
	n := w.head.length
	if n < 0 || n > maxAnswer {
		return nil, errHTTP
	}
	if cap(w.body) < n {
		w.body = make([]byte, n)
	}
	w.body = w.body[:n]
	if _, err := io.ReadFull(w.r, w.body); err != nil {
		return nil, err
	}
	if w.head.status != 200 {
		return nil, fmt.Errorf("status %d: %s", w.head.status, w.body)
	}
	return w.body, nil
}

var (
	isError = []byte(`"isError":true`)
	isFail  = []byte(`"error":{`)
)

// call is send for a tool call that must succeed.
func (w *wire) call(request []byte) error {
	body, err := w.send(request)
	if err != nil {
		return err
	}
	if bytes.Contains(body, isError) || bytes.Contains(body, isFail) {
		return fmt.Errorf("the call was refused: %s", body)
	}
	return nil
}
