package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// A reply is the way back to the client for one request: one JSON body, or from
// the first frame on an SSE stream. It is the vault.Stream of the call.
//
// In the era with sessions a lost connection is no cancellation: frames are kept,
// and a client that comes back with Last-Event-ID gets those it missed.
type reply struct {
	id    json.RawMessage
	token json.RawMessage // the client's progress token, nil if it wants none
	q     *request

	mu     sync.Mutex // guards what follows
	w      http.ResponseWriter
	sse    bool
	over   bool
	frames [][]byte      // kept for a client that comes back
	kept   int           // bytes in frames
	name   string        // of the stream, empty if it cannot be resumed
	moved  chan struct{} // closed when another connection takes over, or at the end
}

// maxKept bounds the bytes kept for one stream that may be resumed.
const maxKept = 1 << 20

func newReply(q *request) *reply {
	r := &reply{id: q.id, q: q, w: q.w}
	if q.client.progress {
		r.token = []byte(q.params.Get("_meta").Get("progressToken").Raw())
	}
	return r
}

// Notify sends one notification of the call. Those with no meaning for a client
// of this call are dropped.
func (r *reply) Notify(ctx context.Context, method string, params json.RawMessage) error {
	switch method {
	case noteProgress:
		if r.token == nil {
			return nil
		}
		params = replaceMember(params, "progressToken", r.token)
	case noteMessage:
		if modern(r.q.client.version) && r.q.client.logLevel == "" {
			return nil
		}
	default:
		return nil
	}
	return r.send(appendRequest(nil, "", method, params))
}

// Request sends a request of the server to the client and waits for the answer.
func (r *reply) Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	s := r.q.session
	if s == nil {
		// The era without sessions has no requests on a stream; see parkedCall.
		return nil, vault.NewDenial(vault.CodeCapabilityTarget, "", fmt.Errorf("the client did not declare %s", method))
	}
	if !r.q.client.has(method) {
		return nil, vault.NewDenial(vault.CodeCapabilityTarget, "", fmt.Errorf("the client did not declare %s", method))
	}
	id, answer := s.expect()
	defer s.forget(id)
	if err := r.send(appendRequest(nil, strconv.Quote(id), method, params)); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return a.result, a.err
	case <-ctx.Done():
		return nil, vault.NewDenial(vault.CodeCancelled, "", context.Cause(ctx))
	case <-s.done:
		return nil, vault.NewDenial(vault.CodeCancelled, "", nil)
	}
}

// open turns the reply into an SSE stream. mu is held.
func (r *reply) open() {
	if r.sse {
		return
	}
	r.sse = true
	if r.w == nil {
		return
	}
	startSSE(r.w)
}

// startSSE writes the head of an event stream.
func startSSE(w http.ResponseWriter) {
	h := w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = noStore
	h["X-Accel-Buffering"] = []string{"no"} // a proxy that buffers would hold progress back
	w.WriteHeader(http.StatusOK)
}

// resumable makes the reply a stream that can be resumed under name, and opens it with the
// event that tells the client so (2025-11-25, SEP-1699).
func (r *reply) resumable(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.name = name
	r.moved = make(chan struct{})
	r.open()
	r.write([]byte("id: "+name+"_0\nretry: 1000\ndata:\n\n"), true)
}

// send writes one message as an event.
func (r *reply) send(msg []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return vault.NewDenial(vault.CodeCancelled, "", nil)
	}
	r.open()
	r.event(msg)
	return nil
}

// event frames a message and writes or keeps it. mu is held.
func (r *reply) event(msg []byte) {
	b := make([]byte, 0, len(msg)+64)
	if r.name != "" {
		b = append(append(append(b, "id: "...), r.name...), '_')
		b = append(strconv.AppendInt(b, int64(len(r.frames)+1), 10), '\n')
		if r.kept += len(msg); r.kept <= maxKept {
			r.frames = append(r.frames, msg)
		}
	}
	b = append(append(append(b, "data: "...), msg...), '\n', '\n')
	r.write(b, true)
}

// writeTimeout bounds one write to a client that does not read.
const writeTimeout = 30 * time.Second

// write sends bytes if there is a connection. A client that is gone is noticed by
// its context, or comes back. mu is held.
func (r *reply) write(b []byte, flush bool) {
	if r.w == nil {
		return
	}
	rc := http.NewResponseController(r.w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	if _, err := r.w.Write(b); err != nil {
		r.w = nil
		return
	}
	if flush {
		_ = rc.Flush()
	}
	_ = rc.SetWriteDeadline(time.Time{})
}

// finish writes the answer: an error object or a result object.
func (r *reply) finish(status int, failure, result []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.over = true
	if r.moved != nil {
		defer close(r.moved)
	}
	out := bodies.get()
	defer bodies.put(out)
	if failure != nil {
		out.b = appendErrorObject(out.b, r.id, failure)
	} else {
		out.b = appendResult(out.b, r.id, result)
	}
	if r.q.stream && failure == nil {
		r.open()
	}
	if r.sse {
		msg := out.b
		if r.name != "" {
			msg = append([]byte(nil), msg...)
		}
		r.event(msg)
		return
	}
	if r.w != nil {
		writeJSON(r.w, status, out.b)
	}
}

// attach continues a stream on another connection after the frames it has seen, and
// returns a channel that is closed when the stream is over or moves on.
func (r *reply) attach(w http.ResponseWriter, seen int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	startSSE(w)
	r.w = w
	for i := max(seen, 0); i < len(r.frames); i++ {
		b := fmt.Appendf(nil, "id: %s_%d\ndata: %s\n\n", r.name, i+1, r.frames[i])
		r.write(b, true)
	}
	if r.over {
		done := make(chan struct{})
		close(done)
		return done
	}
	return r.moved
}

// detach takes the connection away if it is still w's.
func (r *reply) detach(w http.ResponseWriter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == w {
		r.w = nil
	}
}

// replaceMember returns a copy of an object with one member set.
func replaceMember(object json.RawMessage, name string, val []byte) json.RawMessage {
	b := append(appendQuoted([]byte{'{'}, name), ':')
	b = append(b, val...)
	_ = members(object, func(key, v []byte) error {
		if string(key) != name {
			b = append(appendQuoted(append(b, ','), string(key)), ':')
			b = append(b, v...)
		}
		return nil
	})
	return append(b, '}')
}
