package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/pilox/vault"
)

// answer reads the answer to request id.
func (p *httpPeer) answer(ctx context.Context, id string, resp *http.Response, in inbound) (json.RawMessage, error) {
	switch kind := mediaType(resp.Header.Get("Content-Type")); {
	case kind == "text/event-stream" && resp.StatusCode == http.StatusOK:
		return p.answerStream(ctx, id, resp, in)
	case kind == "application/json":
		return p.answerJSON(ctx, id, resp)
	}
	return nil, p.statusError(resp)
}

// statusError makes a denial of an answer that is no JSON-RPC.
func (p *httpPeer) statusError(resp *http.Response) error {
	cause := fmt.Errorf("status %d with content type %q", resp.StatusCode, resp.Header.Get("Content-Type"))
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return failed(vault.CodeUpstreamGarbage, cause)
	case http.StatusNotFound:
		if p.session != "" {
			p.lost.Store(true)
			return down(errors.New("the server ended the session"))
		}
	}
	return failed(vault.CodeUpstreamFailed, cause)
}

func (p *httpPeer) answerJSON(ctx context.Context, id string, resp *http.Response) (json.RawMessage, error) {
	if resp.ContentLength > int64(p.opts.maxMessage) {
		return nil, failed(vault.CodeUpstreamTooLarge, nil)
	}
	var b buffer
	if resp.ContentLength >= 0 {
		b.b = make([]byte, 0, resp.ContentLength+1)
	} else {
		b.b = make([]byte, 0, 4<<10)
	}
	if err := b.read(io.LimitReader(resp.Body, int64(p.opts.maxMessage)+1), -1, 0); err != nil {
		return nil, transportError(ctx, err)
	}
	if len(b.b) > p.opts.maxMessage {
		return nil, failed(vault.CodeUpstreamTooLarge, nil)
	}
	m, err := scanMessage(b.b)
	if err != nil {
		if resp.StatusCode >= 400 {
			return nil, p.statusError(resp)
		}
		return nil, failed(vault.CodeUpstreamGarbage, err)
	}
	// Servers answer requests they could not read without an id.
	if !m.isResponse() || string(m.id) != id && !(m.id == nil && m.err != nil && resp.StatusCode >= 400) {
		return nil, failed(vault.CodeUpstreamGarbage, errors.New("answer to another request"))
	}
	if resp.StatusCode == http.StatusNotFound && p.session != "" && m.id == nil {
		return nil, p.statusError(resp)
	}
	return outcomeOf(m)
}

// outcomeOf returns the result of a response, or its error.
func outcomeOf(m message) (json.RawMessage, error) {
	if m.err == nil {
		return m.result, nil
	}
	e, err := remoteError(m.err)
	if err != nil {
		return nil, failed(vault.CodeUpstreamGarbage, err)
	}
	return nil, e
}

// appendAnswer returns the response to a request of a server. The reason of a
// refusal is not the server's business.
func appendAnswer(id []byte, result json.RawMessage, err error) []byte {
	if err == nil {
		return appendResult(nil, id, result)
	}
	if e, ok := errors.AsType[*RemoteError](err); ok {
		return appendErrorObject(nil, id, e.Raw)
	}
	return appendErrorObject(nil, id, errorObject(codeMethodNotFound, "refused", nil))
}
