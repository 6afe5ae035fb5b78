package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/pilox/vault"
)

// post sends one message as a Streamable HTTP request. Reading the answer is the
// caller's.
func (s *shim) post(ctx context.Context, m message, line []byte) (*http.Response, error) {
	// A body that can be read once only: net/http must not send it again.
	body := io.NopCloser(bytes.NewReader(line))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.URL, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(line))
	s.headers(req)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	s.methodHeaders(req.Header, m)
	return s.cfg.Client.Do(req)
}

// headers adds what every request to the daemon carries.
func (s *shim) headers(req *http.Request) {
	for name, values := range s.cfg.Header {
		req.Header[http.CanonicalHeaderKey(name)] = append([]string(nil), values...)
	}
}

// methodHeaders adds what the era of a message repeats in headers.
func (s *shim) methodHeaders(h http.Header, m message) {
	params := orEmpty(m.params)
	version, _ := plainString(member(orEmpty(member(params, "_meta")), metaVersion))
	s.mu.Lock()
	defer s.mu.Unlock()
	if version != "" && m.isCall() {
		s.modern = true
	}
	if version == "" && s.modern && s.session == "" && !m.isCall() {
		version = allVersions[0] // a notification need not say it
	}
	if version == "" {
		if s.session != "" && m.method != methodInitialize {
			h.Set(headerSession, s.session)
			h.Set(headerVersion, s.version)
		}
		return
	}
	h.Set(headerVersion, encodeHeader(version))
	if m.method != "" {
		h.Set(headerMethod, encodeHeader(m.method))
	}
	field := nameParam(m.method)
	if field == "" {
		return
	}
	name, ok := plainString(member(params, field))
	if !ok {
		return // the daemon says what is wrong
	}
	h.Set(headerName, encodeHeader(name))
	if m.method != methodToolsCall || len(s.bindings[name]) == 0 {
		return
	}
	args, err := vault.ParseValue(member(params, "arguments"))
	if err != nil {
		return // likewise
	}
	for i := range s.bindings[name] {
		b := &s.bindings[name][i]
		if v, ok, bad := b.value(args.Root()); ok && !bad {
			h.Set(headerParam+b.header, encodeHeader(v))
		}
	}
}

// listen opens the stream for what the daemon has to say outside of any request. It
// ends with the session.
func (s *shim) listen(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	old := s.unlisten
	s.unlisten = cancel
	session, version := s.session, s.version
	s.mu.Unlock()
	if old != nil {
		old()
	}
	if session == "" {
		cancel()
		return
	}
	s.wg.Go(func() {
		defer cancel()
		pause := time.Second
		last := ""
		for {
			again, err := s.stream(ctx, session, version, &last)
			if !again || ctx.Err() != nil {
				return
			}
			s.cfg.Log.DebugContext(ctx, "the stream of the daemon ended, opening it again", "cause", err, "pause", pause)
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
			pause = min(2*pause, 30*time.Second)
		}
	})
}

// stream relays one listening stream and reports whether to open another.
func (s *shim) stream(ctx context.Context, session, version string, last *string) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.URL, nil)
	if err != nil {
		return false, err
	}
	s.headers(req)
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set(headerSession, session)
	req.Header.Set(headerVersion, version)
	if *last != "" {
		req.Header.Set(headerLastID, *last)
	}
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || mediaType(resp.Header.Get("Content-Type")) != "text/event-stream" {
		// It has no such stream, or no such session any more.
		return resp.StatusCode >= 500, fmt.Errorf("listen: %s", resp.Status)
	}
	return true, relayEvents(resp.Body, s.cfg.MaxMessage, last, func(raw []byte) error {
		if _, err := scanMessage(raw); err != nil {
			return err
		}
		return s.write(raw)
	})
}

// endSession tells the daemon that the client is gone. It must happen although
// everything else has stopped.
func (s *shim) endSession(ctx context.Context) {
	s.mu.Lock()
	session, version := s.session, s.version
	s.session = ""
	if s.unlisten != nil {
		s.unlisten()
	}
	s.mu.Unlock()
	if session == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second) // nobody should have to wait for more at exit
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, s.cfg.URL, nil)
	if err != nil {
		return
	}
	s.headers(req)
	req.Header.Set(headerSession, session)
	req.Header.Set(headerVersion, version)
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		s.cfg.Log.DebugContext(ctx, "the session was not ended", "cause", err)
		return
	}
	resp.Body.Close()
}

// relayEvents gives the message of each event to fn until the stream ends, which is
// no error. last, if not nil, follows the event ids.
func relayEvents(r io.Reader, limit int, last *string, fn func([]byte) error) error {
	events := newEventReader(r, limit)
	for {
		ev, err := events.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if last != nil && ev.id != "" {
			*last = ev.id
		}
		if len(ev.data) == 0 {
			continue // a mark to resume at
		}
		if err := fn(ev.data); err != nil {
			return err
		}
	}
}

// readAll reads a body of at most limit bytes.
func readAll(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		return nil, fmt.Errorf("the answer is larger than %d bytes", limit)
	}
	return b, err
}

// notConnected reports whether err says that no connection came about, so that
// nothing can have been sent.
func notConnected(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
