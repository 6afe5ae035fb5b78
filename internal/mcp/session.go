package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// A session is one client of the era that has sessions, from initialize to DELETE.
type session struct {
	id           string
	key          string // of the caller it belongs to
	version      string
	capabilities json.RawMessage
	listener     *listener
	done         chan struct{} // closed when the session ends

	mu       sync.Mutex // guards what follows
	used     time.Time
	logLevel string
	next     int                                // number of the next request to the client
	expected map[string]chan clientAnswer       // requests to the client
	running  map[string]context.CancelCauseFunc // calls of the client, by id as canonical JSON
	streams  map[string]*reply                  // that can be resumed, by name
	order    []string                           // names in streams, oldest first
	ended    bool
}

// A clientAnswer is what a client answered to a request of a server.
type clientAnswer struct {
	result json.RawMessage
	err    error
}

const (
	// maxRunning bounds the calls of one session in flight.
	maxRunning = 256
	// maxStreams bounds the response streams of one session that can be resumed.
	maxStreams = 16
)

// idleSince returns when the session was last used, and whether nothing runs in it.
func (s *session) idleSince() (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used, len(s.running) == 0
}

func (s *session) level() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logLevel
}

func (s *session) setLevel(level string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logLevel = level
}

// expect registers a request to the client and returns its id.
func (s *session) expect() (string, <-chan clientAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	id := "v-" + strconv.Itoa(s.next)
	c := make(chan clientAnswer, 1)
	s.expected[id] = c
	return id, c
}

func (s *session) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.expected, id)
}

// answered hands the client's answer to whoever waits for it. An answer nobody asked
// for is dropped.
func (s *session) answered(id json.RawMessage, msg vault.Value) {
	name, ok := plainString(id)
	if !ok {
		return
	}
	s.mu.Lock()
	c := s.expected[name]
	delete(s.expected, name)
	s.mu.Unlock()
	if c == nil {
		return
	}
	if result := msg.Get("result"); result.Kind() == vault.Object {
		c <- clientAnswer{result: []byte(result.Raw())}
		return
	}
	e, err := remoteError([]byte(msg.Get("error").Raw()))
	if err != nil {
		c <- clientAnswer{err: vault.NewDenial(vault.CodeRequestMalformed, "", err)}
		return
	}
	c <- clientAnswer{err: e}
}

var errClientCancelled = errors.New("the client cancelled the call")

// cancel ends the call with the id.
func (s *session) cancel(id string) {
	s.mu.Lock()
	stop := s.running[id]
	s.mu.Unlock()
	if stop != nil {
		stop(errClientCancelled)
	}
}

// begin registers a call. It reports false if the id is in flight or too many are.
func (s *session) begin(id string, stop context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.running[id]; ok || s.ended || len(s.running) >= maxRunning {
		return false
	}
	s.running[id] = stop
	return true
}

func (s *session) finished(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, id)
}

// keep makes a stream findable for a client that comes back.
func (s *session) keep(name string, r *reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == maxStreams {
		delete(s.streams, s.order[0])
		s.order = s.order[1:]
	}
	s.streams[name] = r
	s.order = append(s.order, name)
}

// close ends everything that waits on the session.
func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	close(s.done)
	for _, stop := range s.running {
		stop(errClientCancelled)
	}
}

// A sessionTable holds the open sessions.
type sessionTable struct {
	cfg *FrontConfig

	mu   sync.Mutex // guards byID
	byID map[string]*session
}

func newSessionTable(cfg *FrontConfig) *sessionTable {
	return &sessionTable{cfg: cfg, byID: make(map[string]*session)}
}

// open makes a session. A caller that has too many loses the one it did not use for
// longest, which open returns: clients that crash leave sessions behind, and one that finds
// its session gone initializes again.
func (t *sessionTable) open(key string, c *client) (opened, evicted *session, _ *vault.Denial) {
	s := &session{
		id:           strings.TrimPrefix(vault.NewCallID(), "c-"),
		key:          key,
		version:      c.version,
		capabilities: c.capabilities,
		done:         make(chan struct{}),
		used:         t.cfg.Now(),
		expected:     make(map[string]chan clientAnswer),
		running:      make(map[string]context.CancelCauseFunc),
		streams:      make(map[string]*reply),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := 0
	var oldest *session
	for _, other := range t.byID {
		if other.key != key {
			continue
		}
		mine++
		if used, idle := other.idleSince(); idle {
			if oldest == nil {
				oldest = other
			} else if since, _ := oldest.idleSince(); used.Before(since) {
				oldest = other
			}
		}
	}
	full := mine >= t.cfg.MaxSessions
	if full && oldest == nil || len(t.byID) >= 32*t.cfg.MaxSessions {
		d := vault.NewDenial(vault.CodeBusy, "", errors.New("too many sessions"))
		d.Retry = vault.RetryAfter
		return nil, nil, d
	}
	if full {
		delete(t.byID, oldest.id)
		evicted = oldest
	}
	t.byID[s.id] = s
	return s, evicted, nil
}

// find returns a session of the caller. Another caller's session does not exist for it.
func (t *sessionTable) find(id, key string) *session {
	t.mu.Lock()
	s := t.byID[id]
	t.mu.Unlock()
	if s == nil || s.key != key {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = t.cfg.Now()
	return s
}

func (t *sessionTable) remove(id, key string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byID[id]
	if s == nil || s.key != key {
		return nil
	}
	delete(t.byID, id)
	return s
}

// expire removes the sessions nobody used for longer than the idle time.
func (t *sessionTable) expire() []*session {
	limit := t.cfg.Now().Add(-t.cfg.SessionIdle)
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*session
	for id, s := range t.byID {
		if used, idle := s.idleSince(); idle && used.Before(limit) {
			delete(t.byID, id)
			out = append(out, s)
		}
	}
	return out
}

func (t *sessionTable) closeAll() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*session, 0, len(t.byID))
	for _, s := range t.byID {
		out = append(out, s)
	}
	clear(t.byID)
	return out
}

// runLegacy runs a call of a session. The call outlives the connection; the client
// cancels it with a notification.
func (f *Front) runLegacy(q *request, p *prepared) {
	ctx, stop := context.WithCancelCause(context.WithoutCancel(q.r.Context()))
	defer stop(nil)
	id := string(q.id)
	if !q.session.begin(id, stop) {
		f.fail(q, badRequest(codeInvalidRequest, "this id is in flight, or too many calls are"))
		return
	}
	defer q.session.finished(id)
	out := newReply(q)
	// Only tools run for long enough to be worth resuming.
	if q.session.version >= Version20251125 && p.call.Kind == vault.KindTool {
		name := strings.TrimPrefix(vault.NewCallID(), "c-")
		q.session.keep(name, out)
		out.resumable(name)
	}
	gone := context.AfterFunc(q.r.Context(), func() { out.detach(q.w) })
	defer gone()
	res, err := f.cfg.Gateway.Handle(q.with(ctx), p.call, out)
	f.conclude(q, p, out, res, err)
}

// resume continues a response stream after the event last. It reports false if
// there is no such stream.
func (f *Front) resume(w http.ResponseWriter, r *http.Request, s *session, last string) bool {
	name, number, ok := strings.Cut(last, "_")
	seen, err := strconv.Atoi(number)
	if !ok || err != nil {
		return false
	}
	s.mu.Lock()
	out := s.streams[name]
	s.mu.Unlock()
	if out == nil {
		return false
	}
	over := out.attach(w, seen)
	select {
	case <-over:
	case <-r.Context().Done():
	case <-s.done:
	}
	out.detach(w)
	return true
}

// subscription subscribes to a resource or ends that. Both are calls of their own.
func (f *Front) subscription(q *request) {
	if f.cfg.Upstreams == nil {
		f.notFound(q)
		return
	}
	view := q.caller.View
	if view == nil {
		view = NewView(nil)
	}
	p, fail := f.makeCall(q, view)
	if fail != nil {
		f.refused(q, fail)
		f.fail(q, fail)
		return
	}
	target := p.call.Target
	if q.method == methodUnsubscribe {
		// Ending one's own subscription has no effect beyond the edge.
		f.listeners.unsubscribe(q.session.listener, target)
		f.unwatched(target)
		f.answer(q, []byte("{}"))
		return
	}
	out := newReply(q)
	res, err := f.cfg.Gateway.Handle(q.with(q.r.Context()), p.call, out)
	if err == nil && !res.Refused && !res.Withheld {
		if !f.listeners.subscribe(q.session.listener, target) {
			err = vault.NewDenial(vault.CodeBusy, "", errors.New("too many subscriptions"))
		}
	}
	f.conclude(q, p, out, res, err)
}

// Expire ends idle sessions. The daemon calls it from time to time.
func (f *Front) Expire() {
	for _, s := range f.sessions.expire() {
		f.ended(s)
	}
}
