package mcp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/pilox/vault"
)

// read takes lines from the process until it ends or breaks the protocol.
func (c *stdioConn) read() error {
	r := bufio.NewReaderSize(c.proc.Stdout(), 32<<10)
	unasked := 0 // messages since the last answer that was waited for
	for {
		line, err := readLine(r, c.max)
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the server closed its output")
		case err != nil:
			return fmt.Errorf("read from the server: %w", err)
		}
		m, err := scanMessage(line)
		if err != nil {
			return fmt.Errorf("the server wrote %q: %w", visible(line[:min(len(line), 200)]), err)
		}
		if m.isResponse() && c.response(m) {
			unasked = 0
			continue
		}
		// A server that talks without end keeps us busy without end.
		if unasked++; unasked > maxUnasked {
			return errFlood
		}
		switch {
		case m.isResponse():
		case m.isCall():
			c.request(m)
		default:
			c.notification(m)
		}
	}
}

// response gives an answer to its call. One for a call that is over, or that never
// was, is counted and dropped: it can be late, and it cannot be for anybody else.
func (c *stdioConn) response(m message) (taken bool) {
	if s := c.find(m.id); s != nil {
		select {
		case s.reply <- m:
			return true
		default: // a second answer
		}
	}
	if c.lateAnswers.Add(1) == 1 {
		c.log.Warn("a stdio server answered a request that nobody waits for; further ones are not logged")
	}
	return false
}

// find returns the call with the id raw, or nil.
func (c *stdioConn) find(raw json.RawMessage) *stdioCall {
	if raw == nil {
		return nil
	}
	id, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || strconv.FormatInt(id, 10) != string(raw) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[id]
}

// only returns the call in flight if there is exactly one, not counting the
// handshake and listening streams.
func (c *stdioConn) only() *stdioCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found *stdioCall
	for _, s := range c.calls {
		if s.method == methodListen || s.in == nil {
			continue
		}
		if found != nil {
			return nil
		}
		found = s
	}
	return found
}

// notification finds out whose a notification is. Progress names its call, and so
// do notifications of a listening stream. A log message has no call on stdio: it
// belongs to the only one in flight, or to nobody.
func (c *stdioConn) notification(m message) {
	var s *stdioCall
	switch m.method {
	case noteProgress:
		if s = c.find(member(orEmpty(m.params), "progressToken")); s == nil {
			return // its call is over
		}
	case noteMessage:
		s = c.only()
	case noteCancelled:
		return // of a request of the server; the answer to it is not waited for
	default:
		s = c.find(member(orEmpty(member(orEmpty(m.params), "_meta")), metaListenID))
	}
	if s == nil || s.in == nil {
		c.stray(m.method, m.params)
		return
	}
	s.push(m)
}

func orEmpty(object json.RawMessage) json.RawMessage {
	if object == nil || object[0] != '{' {
		return json.RawMessage("{}")
	}
	return object
}

// push queues a notification for the goroutine that waits in call.
func (s *stdioCall) push(m message) {
	s.mu.Lock()
	if size := len(m.params) + len(m.method); len(s.inbox) >= inboxMessages || len(s.inbox) > 0 && s.bytes+size > DefaultMaxResult {
		s.dropped++
	} else {
		s.inbox = append(s.inbox, m)
		s.bytes += size
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// deliver passes on what is in the inbox, in order.
func (s *stdioCall) deliver(ctx context.Context) error {
	s.mu.Lock()
	batch := s.inbox
	s.inbox, s.bytes = nil, 0
	s.mu.Unlock()
	for _, m := range batch {
		if err := s.in.notify(ctx, m.method, m.params); err != nil {
			if ctx.Err() != nil {
				return interrupted(ctx, vault.ExecutedUnknown, "pass on a notification")
			}
			d := maybeSent(vault.CodeCancelled, fmt.Errorf("pass on a notification: %w", err))
			if why, ok := errors.AsType[*vault.Denial](err); ok {
				d.Reason, d.HowToAsk = why.Reason, why.HowToAsk
			}
			return d
		}
	}
	return nil
}

// request answers a request of the server. It goes to the call in flight if there
// is exactly one: with several, a guess could show one task's question to another.
func (c *stdioConn) request(m message) {
	if m.method == methodPing {
		c.reply(appendResult(nil, m.id, []byte("{}")))
		return
	}
	refuse := func(code int, text string) {
		c.reply(appendErrorObject(nil, m.id, errorObject(code, text, nil)))
	}
	if modern(c.era()) {
		refuse(codeMethodNotFound, "this protocol version has no requests of the server")
		return
	}
	c.mu.Lock()
	busy := c.requests >= maxServerRequests
	if !busy {
		c.requests++
	}
	c.mu.Unlock()
	if busy {
		refuse(codeRefused, "too many requests of the server at once")
		return
	}
	done := func() {
		c.mu.Lock()
		c.requests--
		c.mu.Unlock()
	}
	s := c.only()
	if s == nil || !s.begin(c) {
		done()
		refuse(codeRefused, "no single call is in flight that this request could belong to")
		return
	}
	go func() {
		defer s.wg.Done()
		defer done()
		result, err := s.in.request(s.ctx, m.method, m.params)
		var remote *RemoteError
		switch {
		case err == nil:
			c.reply(appendResult(nil, m.id, result))
		case errors.As(err, &remote):
			c.reply(appendErrorObject(nil, m.id, remote.Raw))
		default:
			refuse(codeRefused, "refused")
		}
	}()
}

// begin counts a request of the server to the call, unless the call is over.
func (s *stdioCall) begin(c *stdioConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[s.id] != s {
		return false
	}
	s.wg.Add(1)
	return true
}
