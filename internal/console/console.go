// Package console is the edge for people: a page on the loopback listener that
// shows what waits for an approver and what happened lately, and the approval
// routes of the admin API on the Unix socket.
//
// It owns who may look (a one-time link, a session cookie, peer credentials) and
// what a browser is allowed to do with the pages. It decides nothing: an approval
// is given by an approver key, which no browser and no socket peer has. Start with
// [New] and [Guard].
//
// It promises: every route authenticates; a request with a foreign Host, Origin or
// Sec-Fetch-Site is refused on every route, before authentication; a link opens one
// session; no page runs a script or loads anything from elsewhere; nothing on HTTP
// changes state but opening and closing one's own session.
//
// It does not protect a session from other programs of the same user, nor from
// other servers on the same host name: browsers send cookies to every port. That
// is why reading is all a session is good for.
package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"time"
)

// Approvals is what the page needs of the desk.
type Approvals interface {
	// Pending returns the questions that people can answer now, most urgent first.
	Pending(ctx context.Context) ([]Approval, error)
}

// Events is what the page needs of the ledger.
type Events interface {
	// Recent returns up to limit events, newest first.
	Recent(ctx context.Context, limit int) ([]Event, error)
}

// An Approval is one question as it is shown.
type Approval struct {
	ID string

	State   string
	Expires time.Time
	Text    string   // what is asked, rendered from the signed question
	Allowed []string // ids of approvers who said yes so far
}

// An Event is one line of the ledger, without sensitive fields.
type Event struct {
	Index   uint64
	Time    time.Time
	Class   string
	Phase   string
	Verdict string
	Reason  string
	Task    string
	Call    string
	Target  string
}

// A Config is what a [Console] needs. Approvals, Events and Hosts are required.
type Config struct {
	Approvals Approvals
	Events    Events
	Hosts     []string         // values of Host that are this listener: 127.0.0.1:7700, localhost:7700
	Now       func() time.Time // nil means time.Now
	Logger    *slog.Logger     // nil means silence
}

// maxEvents bounds the events on the page: what fits a screen or three.
const maxEvents = 100

//go:embed static
var static embed.FS

// A Console serves the page. It is safe for concurrent use.
type Console struct {
	approvals Approvals
	events    Events
	hosts     []string
	now       func() time.Time
	log       *slog.Logger
	page      *template.Template
	style     []byte
	sessions  sessions
}

// New returns a console that nobody has a link to.
func New(c Config) (*Console, error) {
	if c.Approvals == nil || c.Events == nil || len(c.Hosts) == 0 {
		return nil, errors.New("console: approvals, events and hosts are required")
	}
	page, err := template.ParseFS(static, "static/page.html")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	style, err := static.ReadFile("static/style.css")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	out := &Console{approvals: c.Approvals, events: c.Events, hosts: c.Hosts, now: c.Now, log: c.Logger, page: page, style: style}
	if out.now == nil {
		out.now = time.Now
	}
	if out.log == nil {
		out.log = slog.New(slog.DiscardHandler)
	}
	return out, nil
}

// Link returns the path and query of a one-time link that opens a session. It is
// good for ten minutes.
func (c *Console) Link() string { return "/console/open?token=" + c.sessions.link(c.now()) }

// Handler serves every path below /console/.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /console/open", c.open)
	mux.Handle("GET /console/{$}", c.authenticated(c.index))
	mux.Handle("GET /console/style.css", c.authenticated(c.css))
	mux.Handle("POST /console/close", c.authenticated(c.close))
	// What does not exist is told apart from what does only after authentication.
	mux.Handle("/console/", c.authenticated(http.NotFound))
	return Guard(secure(mux), c.hosts...)
}

// secure sets the headers that keep a page from being more than a page.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		// The link's token stands in a URL. Not no-referrer: with that, browsers send
		// Origin: null with our own form.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// authenticated lets a request through that carries the cookie of a live session.
func (c *Console) authenticated(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie(cookieName)
		if err != nil || !c.sessions.live(cookie.Value, c.now()) {
			http.Error(w, "no session: open the one-time link that pvault up printed, or a new one from the admin socket", http.StatusUnauthorized)
			return
		}
		next(w, r)
	})
}

// open trades a one-time link for a session.
func (c *Console) open(w http.ResponseWriter, r *http.Request) {
	token, ok := c.sessions.open(r.URL.Query().Get("token"), c.now())
	if !ok {
		http.Error(w, "this link was used, has expired, or is not one: get a new one from the admin socket", http.StatusUnauthorized)
		return
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // loopback without TLS would never get a Secure cookie back
		Name: cookieName, Value: token, Path: "/console/", MaxAge: int(sessionLife.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	c.log.InfoContext(r.Context(), "console session opened", "remote", r.RemoteAddr)
	http.Redirect(w, r, "/console/", http.StatusSeeOther)
}

// close ends the session of the request.
func (c *Console) close(w http.ResponseWriter, r *http.Request) {
	// Browsers send Origin with every POST; what does not is no page of ours.
	if r.Header.Get("Origin") == "" {
		http.Error(w, "a POST without Origin is refused", http.StatusForbidden)
		return
	}
	if cookie, err := r.Cookie(cookieName); err == nil {
		c.sessions.close(cookie.Value)
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/console/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil}) //nolint:gosec // as in open
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "The session is closed.")
}

func (c *Console) css(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	if _, err := w.Write(c.style); err != nil {
		c.log.DebugContext(r.Context(), "style not sent", "err", err)
	}
}

// index shows the page. A part that cannot be read is said to be missing: an empty
// list would look like peace.
func (c *Console) index(w http.ResponseWriter, r *http.Request) {
	var data struct {
		Now                       time.Time
		Approvals                 []Approval
		Events                    []Event
		ApprovalsLost, EventsLost bool
	}
	data.Now = c.now().UTC()
	var err error
	if data.Approvals, err = c.approvals.Pending(r.Context()); err != nil {
		data.ApprovalsLost = true
		c.log.ErrorContext(r.Context(), "console: approvals not read", "err", err)
	}
	if data.Events, err = c.events.Recent(r.Context(), maxEvents); err != nil {
		data.EventsLost = true
		c.log.ErrorContext(r.Context(), "console: events not read", "err", err)
	}
	var page bytes.Buffer
	if err := c.page.Execute(&page, data); err != nil {
		c.log.ErrorContext(r.Context(), "console: page not rendered", "err", err)
		http.Error(w, "the page cannot be shown; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if _, err := page.WriteTo(w); err != nil {
		c.log.DebugContext(r.Context(), "page not sent", "err", err)
	}
}
