package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pilox/vault"
)

const (
	// maxFrames bounds the notifications of one call. Progress is sent a few times a
	// second at most.
	maxFrames = 10_000
	// maxResumes bounds how often one answer's stream is picked up again.
	maxResumes = 5
	// maxRetryWait bounds the wait a server asks for between streams.
	maxRetryWait = 5 * time.Second
)

// answerStream reads events until the answer to id comes. A stream of the era with
// sessions that ends early is resumed if the server gave it event ids.
func (p *httpPeer) answerStream(ctx context.Context, id string, resp *http.Response, in inbound) (json.RawMessage, error) {
	frames := 0
	events := newEventReader(resp.Body, p.opts.maxMessage)
	for resumed := 0; ; resumed++ {
		raw, done, err := p.readEvents(ctx, id, events, in, &frames)
		if done || err != nil {
			return raw, err
		}
		if modern(p.version) || events.lastID == "" || resumed == maxResumes {
			return nil, failed(vault.CodeUpstreamFailed, errors.New("the stream ended without an answer"))
		}
		again, err := p.resume(ctx, events)
		if err != nil {
			return nil, err
		}
		defer func() { _ = again.Body.Close() }() // nothing was written to it
		lastID := events.lastID
		events = newEventReader(again.Body, p.opts.maxMessage)
		events.lastID = lastID
	}
}

// resume asks for the rest of a stream.
func (p *httpPeer) resume(ctx context.Context, events *eventReader) (*http.Response, error) {
	select {
	case <-time.After(min(events.retry, maxRetryWait)):
	case <-ctx.Done():
		return nil, failed(vault.CodeCancelled, context.Cause(ctx))
	}
	resp, err := p.do(ctx, http.MethodGet, nil, http.Header{"Accept": acceptSSE, headerLastID: {events.lastID}})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || mediaType(resp.Header.Get("Content-Type")) != "text/event-stream" {
		drain(resp)
		return nil, failed(vault.CodeUpstreamFailed, fmt.Errorf("status %d when resuming a stream", resp.StatusCode))
	}
	return resp, nil
}

// readEvents reads one stream. done says that the answer came.
func (p *httpPeer) readEvents(ctx context.Context, id string, events *eventReader, in inbound, frames *int) (_ json.RawMessage, done bool, _ error) {
	for {
		ev, err := events.next()
		switch {
		case errors.Is(err, errEventTooLarge):
			return nil, false, failed(vault.CodeUpstreamTooLarge, err)
		case ctx.Err() != nil:
			return nil, false, failed(vault.CodeCancelled, context.Cause(ctx))
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, false, nil
		case err != nil:
			return nil, false, transportError(ctx, err)
		case len(ev.data) == 0:
			continue // the event that primes resumption
		}
		m, err := scanMessage(ev.data)
		if err != nil {
			return nil, false, failed(vault.CodeUpstreamGarbage, err)
		}
		if m.isResponse() {
			if string(m.id) != id {
				return nil, false, failed(vault.CodeUpstreamGarbage, errors.New("answer to another request"))
			}
			m.result, m.err = bytes.Clone(m.result), bytes.Clone(m.err)
			raw, err := outcomeOf(m)
			return raw, true, err
		}
		if *frames++; *frames > maxFrames {
			return nil, false, failed(vault.CodeUpstreamTooLarge, errors.New("too many notifications"))
		}
		if err := p.incoming(ctx, &m, in); err != nil {
			return nil, false, err
		}
	}
}

// incoming handles what a server sends on its own.
func (p *httpPeer) incoming(ctx context.Context, m *message, in inbound) error {
	if !m.isCall() {
		return in.notify(ctx, m.method, bytes.Clone(m.params))
	}
	if modern(p.version) {
		return failed(vault.CodeUpstreamGarbage, errors.New("a request on a stream of the era without sessions"))
	}
	id := bytes.Clone(m.id)
	if m.method == methodPing {
		return p.post(ctx, "", appendResult(nil, id, []byte("{}")))
	}
	result, err := in.request(ctx, m.method, bytes.Clone(m.params))
	return p.post(ctx, "", appendAnswer(id, result, err))
}
