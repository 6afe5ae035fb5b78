package console

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
)

// Errors that a [Desk] answers with.
var (
	// ErrNotFound means that there is no such question.
	ErrNotFound = errors.New("no such question")
	// ErrRefused means that an answer does not count. Errors that wrap it are shown
	// to the approver as they are.
	ErrRefused = errors.New("answer refused")
)

// A Desk is what the admin routes need to show and answer questions.
type Desk interface {
	Approvals
	// Get returns one question, or ErrNotFound.
	Get(ctx context.Context, id string) (Approval, error)
	// Submit takes in an answer that an approver key signed. It wraps ErrRefused
	// or ErrNotFound if the answer does not count.
	Submit(ctx context.Context, answer []byte) (Approval, error)
}

// maxAnswer bounds the body of an answer, which has four short fields.
const maxAnswer = 4 << 10

// An Admin serves approvals on a Unix socket. Peer credentials let its user read;
// an answer must carry the signature of an approver key, whoever sends it.
type Admin struct {
	Desk      Desk
	PublicKey []byte // Ed25519 key that questions are signed with, for approvers to verify

	// Link makes a one-time console link, see [Console.Link]. Nil means that there
	// is no console.
	Link func() string

	// UIDs are the users who may connect. Empty means the daemon's own and root.
	UIDs   []int
	Logger *slog.Logger // nil means silence
}

// Handler serves
//
//	GET  /v1/approvals              [Approval…]
//	GET  /v1/approvals/key          {"key": base64}
//	GET  /v1/approvals/{id}         Approval
//	POST /v1/approvals/{id}/answer  the signed answer as body; Approval
//	POST /v1/console/link           {"path": path and query of a one-time link}
//
// The server must have been given [ConnContext]; without peer credentials every
// request is refused with 401, and with those of another user with 403.
func (a Admin) Handler() http.Handler {
	if a.Logger == nil {
		a.Logger = slog.New(slog.DiscardHandler)
	}
	if len(a.UIDs) == 0 {
		a.UIDs = []int{os.Geteuid(), 0}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/approvals", a.list)
	mux.HandleFunc("GET /v1/approvals/key", a.key)
	mux.HandleFunc("GET /v1/approvals/{id}", a.show)
	mux.HandleFunc("POST /v1/approvals/{id}/answer", a.answer)
	if a.Link != nil {
		mux.HandleFunc("POST /v1/console/link", a.link)
	}
	return RequirePeer(mux, a.UIDs...)
}

func (a Admin) list(w http.ResponseWriter, r *http.Request) {
	all, err := a.Desk.Pending(r.Context())
	if all == nil {
		all = []Approval{}
	}
	a.reply(w, r, all, err)
}

func (a Admin) key(w http.ResponseWriter, r *http.Request) {
	a.reply(w, r, map[string][]byte{"key": a.PublicKey}, nil)
}

func (a Admin) link(w http.ResponseWriter, r *http.Request) {
	a.reply(w, r, map[string]string{"path": a.Link()}, nil)
}

func (a Admin) show(w http.ResponseWriter, r *http.Request) {
	one, err := a.Desk.Get(r.Context(), r.PathValue("id"))
	a.reply(w, r, one, err)
}

func (a Admin) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
	if err != nil {
		http.Error(w, "the answer is too large or did not arrive", http.StatusBadRequest)
		return
	}
	one, err := a.Desk.Submit(r.Context(), body)
	a.reply(w, r, one, err)
}

// reply writes v, or what an approver may know of err.
func (a Admin) reply(w http.ResponseWriter, r *http.Request, v any, err error) {
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case errors.Is(err, ErrNotFound):
		http.Error(w, ErrNotFound.Error(), http.StatusNotFound)
		return
	case errors.Is(err, ErrRefused):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case err != nil:
		a.Logger.ErrorContext(r.Context(), "admin: approvals", "err", err)
		http.Error(w, "an internal error; the log says more", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.Logger.DebugContext(r.Context(), "admin: answer not sent", "err", err)
	}
}

// RequirePeer lets requests of the given users through, as the kernel names them.
func RequirePeer(next http.Handler, uids ...int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := PeerFrom(r.Context())
		switch {
		case !ok:
			http.Error(w, "no peer credentials: connect by the Unix socket", http.StatusUnauthorized)
		case !slices.Contains(uids, peer.UID):
			http.Error(w, "this socket is another user's", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
