package admin

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// house is a backend that has one approver and unregisters servers. Whatever else
// is asked of it panics.
type house struct {
	Backend
	key     ed25519.PublicKey
	removed []string // approver and name
}

func (h *house) Approver(name string) ([]byte, bool) { return h.key, name == "lead" }

func (h *house) RemoveServer(_ context.Context, approver, name string) error {
	h.removed = append(h.removed, approver+" "+name)
	return nil
}

var lead = ed25519.NewKeyFromSeed([]byte(strings.Repeat("l", ed25519.SeedSize)))

func newHouse(peer func(*http.Request) (Peer, bool), now func() time.Time) (*house, http.Handler) {
	h := &house{key: lead.Public().(ed25519.PublicKey)}
	api := &API{Backend: h, PeerOf: peer, MayUse: func(uid int) bool { return uid == 1000 }, Log: slog.New(slog.DiscardHandler), Now: now}
	return h, api.Handler()
}

func ours(*http.Request) (Peer, bool) { return Peer{UID: 1000, PID: 7}, true }

// ask serves one request and returns its status and body.
func ask(h http.Handler, r *http.Request) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// TestPeers: no route answers somebody who may not use the socket, a browser, or
// nobody in particular.
func TestPeers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		peer   func(*http.Request) (Peer, bool)
		host   string
		origin string
		want   int
	}{
		{"our own user", ours, "vault", "", 200},
		{"another user", func(*http.Request) (Peer, bool) { return Peer{UID: 1001}, true }, "vault", "", 403},
		{"nobody knows who", func(*http.Request) (Peer, bool) { return Peer{}, false }, "vault", "", 403},
		{"our own user without a peer", func(*http.Request) (Peer, bool) { return Peer{UID: 1000}, false }, "vault", "", 403},
		{"a page in a browser", ours, "vault", "http://vault", 403},
		{"a name that was rebound", ours, "localhost", "", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, h := newHouse(tt.peer, nil)
			routes := []string{"POST /v1/challenge"}
			if tt.want != http.StatusOK { // then nothing reaches the backend
				routes = append(routes, "GET /v1/status", "POST /v1/tasks/open", "POST /v1/tasks/mint", "GET /v1/tasks",
					"POST /v1/tasks/t-1/close", "POST /v1/revoke", "POST /v1/call", "POST /v1/run", "GET /v1/approvals",
					"POST /v1/approvals/a-1", "GET /v1/servers", "POST /v1/servers", "GET /v1/servers/s/review",
					"POST /v1/servers/s/review", "DELETE /v1/servers/s", "GET /v1/events", "GET /v1/events/0/proof",
					"GET /v1/export", "GET /nothing")
			}
			for _, route := range routes {
				method, path, _ := strings.Cut(route, " ")
				r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
				r.Host = tt.host
				if tt.origin != "" {
					r.Header.Set("Origin", tt.origin)
				}
				if status, text := ask(h, r); status != tt.want {
					t.Errorf("%s: %d %s, want %d", route, status, text, tt.want)
				}
			}
		})
	}
}

// TestSignature: what needs an approver happens once for each signature over exactly
// this request, and else not at all.
func TestSignature(t *testing.T) {
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("o", ed25519.SeedSize)))
	for _, tt := range []struct {
		name     string
		approver string
		key      ed25519.PrivateKey
		signed   string // path that was signed
		body     string // that was signed; {} is sent
		wait     time.Duration
		times    int
		want     string
	}{
		{"signed by the approver", "lead", lead, "/v1/servers/crm", "{}", 0, 1, "lead crm"},
		{"sent again with the same signature", "lead", lead, "/v1/servers/crm", "{}", 0, 2, "lead crm"},
		{"signed just in time", "lead", lead, "/v1/servers/crm", "{}", challengeLife, 1, "lead crm"},
		{"signed too late", "lead", lead, "/v1/servers/crm", "{}", challengeLife + 1, 1, ""},
		{"without a name", "", lead, "/v1/servers/crm", "{}", 0, 1, ""},
		{"by somebody unknown", "deputy", lead, "/v1/servers/crm", "{}", 0, 1, ""},
		{"by another key", "lead", other, "/v1/servers/crm", "{}", 0, 1, ""},
		{"for another server", "lead", lead, "/v1/servers/files", "{}", 0, 1, ""},
		{"for another body", "lead", lead, "/v1/servers/crm", `{"a":1}`, 0, 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
			house, h := newHouse(ours, func() time.Time { return now })
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/challenge", nil)
			r.Host = "vault"
			_, text := ask(h, r)
			var challenge string
			if err := json.Unmarshal([]byte(text), &challenge); err != nil {
				t.Fatal(err)
			}
			now = now.Add(tt.wait)
			sig := ed25519.Sign(tt.key, signedBytes(challenge, "DELETE", tt.signed, []byte(tt.body)))
			for range tt.times {
				r := httptest.NewRequestWithContext(t.Context(), "DELETE", "/v1/servers/crm", strings.NewReader("{}"))
				r.Host = "vault"
				r.Header.Set(headerApprover, tt.approver)
				r.Header.Set(headerChallenge, challenge)
				r.Header.Set(headerSignature, base64.StdEncoding.EncodeToString(sig))
				status, text := ask(h, r)
				if tt.want == "" && (status != http.StatusForbidden || !strings.Contains(text, "approver_required")) {
					t.Errorf("answered %d %s", status, text)
				}
			}
			if got := strings.Join(house.removed, ", "); got != tt.want {
				t.Errorf("removed %q, want %q", got, tt.want)
			}
		})
	}
}

// TestChallengesAreBounded: who asks for many pushes out its own oldest.
func TestChallengesAreBounded(t *testing.T) {
	c := challenges{now: time.Now}
	last := ""
	for range 10 * maxChallenges {
		last = c.issue()
	}
	if len(c.open) > maxChallenges {
		t.Errorf("%d challenges are open", len(c.open))
	}
	if !c.use(last) || c.use(last) {
		t.Error("the newest challenge is not good for exactly one use")
	}
}
