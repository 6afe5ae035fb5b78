package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// A Gateway decides a call and has its effect.
type Gateway interface {
	Handle(ctx context.Context, call *vault.Call, out vault.Stream) (vault.Result, error)
}

// A Caller is what authentication found out about a request.
type Caller struct {
	// Key is a stable name of the caller. Sessions and parked requests belong to
	// it and are not found under another one. Empty is refused.
	Key string
	// Credential is the chain, and the binding that the transport proves. Proofs
	// that stand in Vault-* headers are filled in by the front.
	Credential vault.Credential
	// View is what the caller's task may see. Nil shows nothing.
	View *View
	// Over is closed when the caller's authority is revoked: its listening streams
	// end. Nil never is.
	Over <-chan struct{}
}

// FrontConfig says how a Front works.
type FrontConfig struct {
	// Gateway gets every call. It must not be nil.
	Gateway Gateway
	// Authenticate finds out who calls, before the body is read. An error refuses
	// the request; a *vault.Denial in it is shown. It must not be nil.
	Authenticate func(*http.Request) (Caller, error)
	// Upstreams is told when a session ends and reports updated resources. Nil if
	// calls go elsewhere; then there are no subscriptions.
	Upstreams *Upstreams
	// Challenge is the WWW-Authenticate header of a request that is not authenticated.
	// Empty means Bearer.
	Challenge string
	// Hosts are the Host and Origin values to accept, in lower case, with or without port.
	// Nil accepts the loopback names only.
	Hosts []string
	// Name and Version introduce the gateway to clients. Empty means vault and 1.
	Name, Version string
	// Instructions go to clients that ask. Empty sends none.
	Instructions string
	// MaxBody bounds a request body in bytes. Zero means 4 MiB, the bound of canonical arguments.
	MaxBody int64
	// MaxSessions bounds open sessions and listening streams of one caller, and 32 times as many in
	// all. Zero means 64: more than an agent with all its children opens.
	MaxSessions int
	// SessionIdle ends a session nobody used for so long. Zero means 30 minutes.
	SessionIdle time.Duration
	// ParkFor is how long a call waits for input that it asked of a client of the
	// era without sessions. Zero means 5 minutes.
	ParkFor time.Duration
	// Refused is told of an authenticated request that was refused before it became
	// a call. Nil tells nobody.
	Refused func(context.Context, *vault.Credential, *vault.Denial)
	// Log is for what went wrong. Nil discards.
	Log *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// A Front is the endpoint that agents talk to: an http.Handler for MCP over
// Streamable HTTP in both eras. Make one with [NewFront] and end it with [Front.Close].
type Front struct {
	cfg       FrontConfig
	info      serverInfo
	sessions  *sessionTable
	parked    *parkingLot
	listeners *listenerTable
	ctx       context.Context // ends with Close; parent of what outlives a request
	stop      context.CancelFunc
}

// NewFront returns a Front, or an error if cfg lacks what it must have.
func NewFront(cfg FrontConfig) (*Front, error) {
	if cfg.Gateway == nil || cfg.Authenticate == nil {
		return nil, errors.New("mcp front: Gateway and Authenticate must be set")
	}
	if cfg.Name == "" {
		cfg.Name = "vault"
	}
	if cfg.Challenge == "" {
		cfg.Challenge = "Bearer"
	}
	if cfg.Version == "" {
		cfg.Version = "1"
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = vault.MaxArgsBytes
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 64
	}
	if cfg.SessionIdle == 0 {
		cfg.SessionIdle = 30 * time.Minute
	}
	if cfg.ParkFor == 0 {
		cfg.ParkFor = 5 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	f := &Front{cfg: cfg}
	f.ctx, f.stop = context.WithCancel(context.Background()) //nolint:forbidigo // the life of the front, which Close ends
	f.sessions = newSessionTable(&f.cfg)
	f.parked = newParkingLot()
	f.listeners = newListenerTable()
	if cfg.Upstreams != nil {
		cfg.Upstreams.onUpdated(f.resourceUpdated)
	}
	return f, nil
}

// Close ends all sessions, listening streams and parked calls. Requests in flight
// end with their own contexts.
func (f *Front) Close() {
	f.stop()
	f.parked.close()
	for _, s := range f.sessions.closeAll() {
		f.ended(s)
	}
	f.listeners.closeAll()
}

// ended cleans up after a session that was removed from the table.
func (f *Front) ended(s *session) {
	s.close()
	f.listeners.drop(s.listener)
	if f.cfg.Upstreams != nil {
		f.cfg.Upstreams.endSession(s.id)
	}
}

// ServeHTTP serves one HTTP request.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowedHost(r.Host, f.cfg.Hosts) || !allowedOrigin(r.Header, f.cfg.Hosts) {
		http.Error(w, "this Host or Origin is not served here", http.StatusForbidden)
		return
	}
	caller, err := f.cfg.Authenticate(r)
	if err == nil && caller.Key == "" {
		err = vault.NewDenial(vault.CodeCapabilityMissing, "", nil)
	}
	if err != nil {
		d := vault.DenialOf(err)
		f.cfg.Log.InfoContext(r.Context(), "mcp request not authenticated", "code", d.Reason.Code, "cause", d.Err)
		w.Header().Set("Www-Authenticate", f.cfg.Challenge)
		writeJSON(w, http.StatusUnauthorized, appendErrorObject(nil, nil, denialObject(d)))
		return
	}
	if err := credential(r.Header, &caller.Credential); err != nil {
		f.reject(w, r, &caller, http.StatusBadRequest, nil, codeInvalidRequest, err.Error())
		return
	}
	switch r.Method {
	case http.MethodPost:
		f.post(w, r, caller)
	case http.MethodGet:
		f.get(w, r, caller)
	case http.MethodDelete:
		f.delete(w, r, caller)
	default:
		w.Header().Set("Allow", "POST, GET, DELETE")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}

// post serves one JSON-RPC message.
func (f *Front) post(w http.ResponseWriter, r *http.Request, caller Caller) {
	if mediaType(r.Header.Get("Content-Type")) != "application/json" {
		f.reject(w, r, &caller, http.StatusUnsupportedMediaType, nil, codeInvalidRequest, "Content-Type must be application/json")
		return
	}
	jsonOK, streamOK, streamFirst := accepts(r.Header["Accept"])
	if !jsonOK || !streamOK {
		f.reject(w, r, &caller, http.StatusNotAcceptable, nil, codeInvalidRequest, "Accept must have application/json and text/event-stream")
		return
	}
	body := bodies.get()
	defer bodies.put(body)
	if err := body.read(http.MaxBytesReader(w, r.Body, f.cfg.MaxBody), r.ContentLength, int(f.cfg.MaxBody)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			f.reject(w, r, &caller, http.StatusRequestEntityTooLarge, nil, codeInvalidRequest, fmt.Sprintf("the body is larger than %d bytes", f.cfg.MaxBody))
		}
		return // else the client is gone
	}
	req := &request{w: w, r: r, caller: caller, stream: streamFirst}
	if d := req.decode(body.b); d != nil {
		f.undecodable(req, body.b, d)
		return
	}
	if fail := f.classify(req); fail != nil {
		f.reject(w, r, &caller, fail.status, req.id, fail.code, fail.text, fail.data)
		return
	}
	f.dispatch(req)
}

// reject answers with a JSON-RPC error for a request that is not as it should be.
func (f *Front) reject(w http.ResponseWriter, r *http.Request, c *Caller, status int, id json.RawMessage, code int, text string, data ...[]byte) {
	f.cfg.Log.DebugContext(r.Context(), "mcp request rejected", "status", status, "text", text)
	if f.cfg.Refused != nil {
		f.cfg.Refused(r.Context(), &c.Credential, vault.NewDenial(vault.CodeRequestMalformed, "", errors.New(text)))
	}
	var d []byte
	if len(data) > 0 {
		d = data[0]
	}
	writeJSON(w, status, appendErrorObject(nil, id, errorObject(code, text, d)))
}

// undecodable answers a body that is no strict JSON-RPC request. A tool call gets
// its denial in the shape that models read, if the body can be understood so far.
func (f *Front) undecodable(req *request, body []byte, d *vault.Denial) {
	if f.cfg.Refused != nil {
		f.cfg.Refused(req.r.Context(), &req.caller.Credential, d)
	}
	m, err := scanMessage(body)
	if err == nil && m.method == methodToolsCall && m.id != nil && strings.HasPrefix(string(d.Reason.Code), "args.") {
		result := denialResult(d, false, modern(req.r.Header.Get(headerVersion)))
		writeJSON(req.w, http.StatusOK, appendResult(nil, m.id, result))
		return
	}
	code := codeInvalidRequest
	if d.Reason.Code == vault.CodeArgsMalformed {
		code = codeParse
	}
	writeJSON(req.w, http.StatusBadRequest, appendErrorObject(nil, m.id, errorObject(code, d.Error(), denialJSON(d))))
}

// get opens the stream of a session for what the server side has to say unasked,
// or resumes a response stream.
func (f *Front) get(w http.ResponseWriter, r *http.Request, caller Caller) {
	if _, ok, _ := accepts(r.Header["Accept"]); !ok {
		http.Error(w, "Accept must have text/event-stream", http.StatusNotAcceptable)
		return
	}
	if modern(r.Header.Get(headerVersion)) || r.Header.Get(headerSession) == "" {
		w.Header().Set("Allow", "POST")
		http.Error(w, "GET needs a session of an earlier protocol version", http.StatusMethodNotAllowed)
		return
	}
	s := f.sessions.find(r.Header.Get(headerSession), caller.Key)
	if s == nil {
		http.Error(w, "no such session", http.StatusNotFound)
		return
	}
	if last := r.Header.Get(headerLastID); last != "" {
		if f.resume(w, r, s, last) {
			return
		}
	}
	f.serveListener(w, r, s.listener, caller.Over)
}

// delete ends a session.
func (f *Front) delete(w http.ResponseWriter, r *http.Request, caller Caller) {
	s := f.sessions.remove(r.Header.Get(headerSession), caller.Key)
	if s == nil {
		http.Error(w, "no such session", http.StatusNotFound)
		return
	}
	f.ended(s)
	w.WriteHeader(http.StatusNoContent)
}

// writeJSON writes a complete JSON answer.
func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // JSON by its type; a client that is gone needs no answer
}

// Header values that every answer shares; net/http does not change them.
var (
	jsonType = []string{"application/json"}
	noStore  = []string{"no-store"}
)

// denialJSON is the wire form of a denial.
func denialJSON(d *vault.Denial) []byte {
	b, err := json.Marshal(d)
	if err != nil { // its fields are strings and numbers
		return []byte("null")
	}
	return b
}

// denialObject is a JSON-RPC error that carries a denial.
func denialObject(d *vault.Denial) []byte {
	return errorObject(codeRefused, d.Error(), denialJSON(d))
}

// denialResult is the tool result for a denial: text for the model, _meta for
// programs. Clients validate structuredContent against an outputSchema even on
// errors, so it is there only without one.
func denialResult(d *vault.Denial, hasOutputSchema, modernEra bool) []byte {
	wire := denialJSON(d)
	b := appendQuoted([]byte(`{"content":[{"type":"text","text":`), d.Error())
	b = append(b, `}],"isError":true`...)
	if modernEra {
		b = append(b, `,"resultType":"complete"`...)
	}
	if !hasOutputSchema {
		b = append(append(b, `,"structuredContent":{"denial":`...), wire...)
		b = append(b, '}')
	}
	b = appendQuoted(append(b, `,"_meta":{`...), vault.DenialKey)
	b = append(append(b, ':'), wire...)
	return append(b, '}', '}')
}

// versionData is the data of an UnsupportedProtocolVersion error.
func versionData(requested string) []byte {
	b := []byte(`{"supported":[`)
	for i, v := range allVersions {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendQuoted(b, v)
	}
	return append(appendQuoted(append(b, `],"requested":`...), requested), '}')
}
