package admin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/pilox/vault"
)

// maxBody bounds one request: a task file with its inputs, or arguments of a
// call, with room to spare.
const maxBody = vault.MaxArgsBytes + 1<<20

// An API serves the admin API. Every request must come over a connection whose peer
// is known.
type API struct {
	Backend Backend // required
	// PeerOf returns who is at the other end of the request's connection.
	// Required; a request without a peer is refused.
	PeerOf func(*http.Request) (Peer, bool)
	// MayUse says whether a uid may use the socket at all. Required.
	MayUse func(uid int) bool
	Log    *slog.Logger
	Now    func() time.Time // nil means time.Now

	challenges challenges
}

type peerKey struct{}

// Handler returns the API's routes, all behind the peer check.
func (s *API) Handler() http.Handler {
	s.challenges.now = s.Now
	if s.challenges.now == nil {
		s.challenges.now = time.Now
	}
	mux := http.NewServeMux()
	b := s.Backend
	mux.HandleFunc("GET /v1/status", reply(s, func(r *http.Request) (any, error) { return b.Status(r.Context()) }))
	mux.HandleFunc("POST /v1/challenge", reply(s, func(*http.Request) (any, error) { return s.challenges.issue(), nil }))

	mux.HandleFunc("POST /v1/tasks/open", take(s, func(r *http.Request, in TaskRequest) (any, error) {
		return b.OpenTask(r.Context(), peerFrom(r), in)
	}))
	mux.HandleFunc("POST /v1/tasks/mint", signed(s, func(r *http.Request, approver string, in TaskRequest) (any, error) {
		return b.MintTask(r.Context(), peerFrom(r), approver, in)
	}))
	mux.HandleFunc("GET /v1/tasks", reply(s, func(r *http.Request) (any, error) { return b.Tasks(r.Context()) }))
	mux.HandleFunc("POST /v1/tasks/{id}/close", reply(s, func(r *http.Request) (any, error) {
		return struct{}{}, b.CloseTask(r.Context(), vault.TaskID(r.PathValue("id")))
	}))
	mux.HandleFunc("POST /v1/revoke", take(s, func(r *http.Request, in RevokeRequest) (any, error) {
		return b.Revoke(r.Context(), peerFrom(r), in)
	}))

	mux.HandleFunc("GET /v1/status-list", reply(s, func(r *http.Request) (any, error) {
		return b.StatusList(r.Context(), r.URL.Query().Get("uri"))
	}))

	mux.HandleFunc("POST /v1/call", take(s, func(r *http.Request, in CallRequest) (any, error) {
		return b.Call(r.Context(), peerFrom(r), in)
	}))
	mux.HandleFunc("POST /v1/run", func(w http.ResponseWriter, r *http.Request) {
		var in RunRequest
		if err := decode(r, &in); err != nil {
			s.fail(w, r, err)
			return
		}
		stream(s, w, r, func(ctx context.Context, out func(Frame) error) error {
			return b.Run(ctx, peerFrom(r), in, out)
		})
	})

	mux.HandleFunc("GET /v1/approvals", reply(s, func(r *http.Request) (any, error) {
		return b.Approvals(r.Context())
	}))
	mux.HandleFunc("POST /v1/approvals/{id}", take(s, func(r *http.Request, answer []byte) (any, error) {
		return struct{}{}, b.Answer(r.Context(), r.PathValue("id"), answer)
	}))

	mux.HandleFunc("GET /v1/servers", reply(s, func(r *http.Request) (any, error) { return b.Servers(r.Context()) }))
	mux.HandleFunc("POST /v1/servers", func(w http.ResponseWriter, r *http.Request) {
		var in ServerRequest
		approver, err := s.signature(r, &in)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		stream(s, w, r, func(ctx context.Context, out func(Frame) error) error {
			server, err := b.AddServer(ctx, approver, in, out)
			if err != nil {
				return err
			}
			return out(Frame{Server: &server})
		})
	})
	mux.HandleFunc("GET /v1/servers/{name}/review", reply(s, func(r *http.Request) (any, error) {
		return b.ReviewServer(r.Context(), r.PathValue("name"))
	}))
	mux.HandleFunc("POST /v1/servers/{name}/review", signed(s, func(r *http.Request, approver string, in AcceptRequest) (any, error) {
		return b.AcceptServer(r.Context(), approver, r.PathValue("name"), in)
	}))
	mux.HandleFunc("DELETE /v1/servers/{name}", signed(s, func(r *http.Request, approver string, _ struct{}) (any, error) {
		return struct{}{}, b.RemoveServer(r.Context(), approver, r.PathValue("name"))
	}))

	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		from, err := strconv.ParseUint(q.Get("from"), 10, 64)
		if err != nil && q.Has("from") {
			s.fail(w, r, &Error{Code: "invalid", Message: "from: want an index"})
			return
		}
		stream(s, w, r, func(ctx context.Context, out func(Frame) error) error {
			return b.Tail(ctx, from, vault.TaskID(q.Get("run")), q.Has("follow"), q.Has("disclose"), out)
		})
	})
	mux.HandleFunc("GET /v1/decisions", func(w http.ResponseWriter, r *http.Request) {
		in, err := decisionsRequest(r.URL.Query())
		if err != nil {
			s.fail(w, r, err)
			return
		}
		stream(s, w, r, func(ctx context.Context, out func(Frame) error) error { return b.Decisions(ctx, in, out) })
	})
	mux.HandleFunc("GET /v1/events/{index}/proof", func(w http.ResponseWriter, r *http.Request) {
		index, err := strconv.ParseUint(r.PathValue("index"), 10, 64)
		if err != nil {
			s.fail(w, r, &Error{Code: "invalid", Message: "want an index"})
			return
		}
		proof, err := b.Prove(r.Context(), index)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.write(w, "text/plain; charset=utf-8", proof)
	})
	mux.HandleFunc("GET /v1/metrics", func(w http.ResponseWriter, r *http.Request) {
		var buf bytes.Buffer
		if err := b.Metrics(r.Context(), &buf); err != nil {
			s.fail(w, r, err)
			return
		}
		s.write(w, "text/plain; version=0.0.4; charset=utf-8", buf.Bytes())
	})
	mux.HandleFunc("GET /v1/samples", reply(s, func(r *http.Request) (any, error) { return b.Samples(r.Context()) }))
	mux.HandleFunc("POST /v1/anchor", reply(s, func(r *http.Request) (any, error) { return b.Anchor(r.Context()) }))
	mux.HandleFunc("GET /v1/export", func(w http.ResponseWriter, r *http.Request) {
		out := &lateWriter{w: w}
		in, err := exportRequest(r.URL.Query())
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if err := b.Export(r.Context(), in, out); err != nil {
			if out.started {
				panic(http.ErrAbortHandler) // half a bundle must not look like a whole one
			}
			s.fail(w, r, err)
		}
	})
	mux.HandleFunc("POST /v1/erase", signed(s, func(r *http.Request, approver string, in EraseRequest) (any, error) {
		return b.Erase(r.Context(), approver, in)
	}))
	return s.authenticated(mux)
}

// decisionsRequest reads the query that [DecisionsRequest.query] writes.
func decisionsRequest(q url.Values) (r DecisionsRequest, err error) {
	r.Run, r.Follow = vault.TaskID(q.Get("run")), q.Has("follow")
	if q.Has("from") {
		if r.From, err = strconv.ParseUint(q.Get("from"), 10, 64); err != nil {
			return r, &Error{Code: "invalid", Message: "from: want an index"}
		}
	}
	if q.Has("since") {
		if r.Since, err = time.Parse(time.RFC3339Nano, q.Get("since")); err != nil {
			return r, &Error{Code: "invalid", Message: "since: want a time in RFC 3339"}
		}
	}
	return r, nil
}

func (r *DecisionsRequest) query() url.Values {
	q := url.Values{"from": {strconv.FormatUint(r.From, 10)}}
	if r.Run != "" {
		q.Set("run", string(r.Run))
	}
	if !r.Since.IsZero() {
		q.Set("since", r.Since.Format(time.RFC3339Nano))
	}
	if r.Follow {
		q.Set("follow", "")
	}
	return q
}

// exportRequest reads the query that [ExportRequest.query] writes.
func exportRequest(q url.Values) (ExportRequest, error) {
	r := ExportRequest{Run: vault.TaskID(q.Get("run")), Disclose: q.Has("disclose"), Redact: q["redact"]}
	r.Only.Field = q.Get("field")
	for name, to := range map[string]*uint64{"since": &r.Since, "index": &r.Only.Index} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		var err error
		if *to, err = strconv.ParseUint(text, 10, 64); err != nil {
			return ExportRequest{}, &Error{Code: "invalid", Message: name + ": want a number of records"}
		}
	}
	return r, nil
}

func (r *ExportRequest) query() url.Values {
	q := url.Values{}
	if r.Run != "" {
		q.Set("run", string(r.Run))
	}
	if r.Disclose {
		q.Set("disclose", "")
	}
	if len(r.Redact) > 0 {
		q["redact"] = r.Redact
	}
	if r.Since > 0 {
		q.Set("since", strconv.FormatUint(r.Since, 10))
	}
	if r.Only.Field != "" {
		q.Set("field", r.Only.Field)
		q.Set("index", strconv.FormatUint(r.Only.Index, 10))
	}
	return q
}

// A lateWriter sends the header of a bundle with its first byte, so that an error
// before it can still be an error.
type lateWriter struct {
	w       http.ResponseWriter
	started bool
}

func (l *lateWriter) Write(p []byte) (int, error) {
	if !l.started {
		l.started = true
		l.w.Header().Set("Content-Type", "application/zip")
	}
	return l.w.Write(p)
}

// authenticated admits only requests whose connection has a known peer that may
// use the socket. Host must be "vault", so that no browser trick reaches it.
func (s *API) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := s.PeerOf(r)
		if !ok || !s.MayUse(peer.UID) {
			s.fail(w, r, &Error{Code: string(vault.CodeProof), Message: "this user may not use the admin socket"})
			return
		}
		if r.Host != "vault" || r.Header.Get("Origin") != "" {
			s.fail(w, r, &Error{Code: string(vault.CodeProof), Message: "not a request of pvault"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	})
}

func peerFrom(r *http.Request) Peer {
	p, _ := r.Context().Value(peerKey{}).(Peer)
	return p
}

func reply(s *API, f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.write(w, "application/json", b)
	}
}

func take[T any](s *API, f func(*http.Request, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		if err := decode(r, &in); err != nil {
			s.fail(w, r, err)
			return
		}
		reply(s, func(r *http.Request) (any, error) { return f(r, in) })(w, r)
	}
}

func signed[T any](s *API, f func(*http.Request, string, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		approver, err := s.signature(r, &in)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		reply(s, func(r *http.Request) (any, error) { return f(r, approver, in) })(w, r)
	}
}

// signature decodes the body into in and returns the approver who signed it.
func (s *API) signature(r *http.Request, in any) (string, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", &Error{Code: "invalid", Message: "request body: " + err.Error()}
	}
	name := r.Header.Get(headerApprover)
	if name == "" {
		return "", &Error{Code: "approver_required", Message: "this needs the signature of an approver", Hint: "pvault init makes an approver key"}
	}
	key, ok := s.Backend.Approver(name)
	sig, err := base64.StdEncoding.DecodeString(r.Header.Get(headerSignature))
	if !ok || err != nil {
		return "", &Error{Code: "approver_required", Message: "unknown approver or malformed signature", Hint: "pvault init makes an approver key; a daemon that is running knows it after a restart"}
	}
	if err := s.challenges.verify(key, r.Header.Get(headerChallenge), r.Method, r.URL.Path, body, sig); err != nil {
		return "", &Error{Code: "approver_required", Message: err.Error()}
	}
	return name, unmarshal(body, in)
}

func decode(r *http.Request, in any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return &Error{Code: "invalid", Message: "request body: " + err.Error()}
	}
	return unmarshal(body, in)
}

// unmarshal is strict: an unknown member or trailing data is an error.
func unmarshal(body []byte, in any) error {
	if len(body) == 0 {
		body = []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(in); err != nil {
		return &Error{Code: "invalid", Message: "request body: " + err.Error()}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &Error{Code: "invalid", Message: "request body: trailing data"}
	}
	return nil
}

// stream answers with one JSON frame a line; an error is the last frame.
func stream(s *API, w http.ResponseWriter, r *http.Request, f func(context.Context, func(Frame) error) error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // a leaf is exact bytes
	lock := make(chan struct{}, 1)
	out := func(fr Frame) error {
		lock <- struct{}{}
		defer func() { <-lock }()
		if err := enc.Encode(fr); err != nil {
			return err
		}
		return rc.Flush()
	}
	if err := f(r.Context(), out); err != nil && r.Context().Err() == nil {
		s.Log.DebugContext(r.Context(), "admin request refused", "path", r.URL.Path, "err", err)
		_ = out(Frame{Error: public(err)}) // the reader is gone if this fails
	}
}

func (s *API) write(w http.ResponseWriter, contentType string, b []byte) {
	w.Header().Set("Content-Type", contentType)
	if _, err := w.Write(b); err != nil {
		s.Log.Debug("admin answer not delivered", "err", err)
	}
}

// public turns err into what the operator sees. The operator is on the same
// host and may see causes.
func public(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		msg := d.Error()
		if d.Err != nil {
			msg += " (" + d.Err.Error() + ")"
		}
		return &Error{Code: string(d.Reason.Code), Message: msg, Hint: d.HowToAsk}
	}
	return &Error{Code: "internal", Message: err.Error()}
}

func (s *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := public(err)
	status := http.StatusBadRequest
	switch e.Code {
	case "internal":
		status = http.StatusInternalServerError
	case "not_found":
		status = http.StatusNotFound
	case "approver_required", string(vault.CodeProof):
		status = http.StatusForbidden
	case string(vault.CodeLedger):
		status = http.StatusServiceUnavailable
	}
	s.Log.DebugContext(r.Context(), "admin request refused", "path", r.URL.Path, "err", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]*Error{"error": e}) // the reader is gone if this fails
}
