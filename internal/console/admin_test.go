package console_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/pilox/vault/internal/console"
)

// A desk knows one question.
type desk struct {
	house
	got []byte
	err error
}

func (d *desk) Get(_ context.Context, id string) (console.Approval, error) {
	if id != "a-1" {
		return console.Approval{}, console.ErrNotFound
	}
	return console.Approval{ID: id, Signed: []byte("signed")}, d.err
}

func (d *desk) Submit(_ context.Context, b []byte) (console.Approval, error) {
	d.got = b
	return console.Approval{ID: "a-1", State: "allowed"}, d.err
}

// serve runs h on a Unix socket and returns a client for it.
func serve(t *testing.T, h http.Handler, withPeer bool) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener = l
	if withPeer {
		s.Config.ConnContext = console.ConnContext
	}
	s.Start()
	t.Cleanup(s.Close)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestAdmin(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no peer credentials on this system")
	}
	d := &desk{house: house{approvals: []console.Approval{{ID: "a-1"}}}}
	c := serve(t, console.Admin{Desk: d, PublicKey: []byte("key"), Link: func() string { return "/console/open?token=x" }}.Handler(), true)
	call := func(method, path string, b []byte) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://vault"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode, body(t, res)
	}
	for _, tt := range []struct {
		name, method, path string
		body               []byte
		err                error
		status             int
		want               string
	}{
		{"list", "GET", "/v1/approvals", nil, nil, 200, `"id":"a-1"`},
		{"key", "GET", "/v1/approvals/key", nil, nil, 200, `{"key":"a2V5"}`},
		{"show", "GET", "/v1/approvals/a-1", nil, nil, 200, `"question":"c2lnbmVk"`},
		{"show what is not there", "GET", "/v1/approvals/a-2", nil, nil, 404, "no such question"},
		{"answer", "POST", "/v1/approvals/a-1/answer", []byte("answer"), nil, 200, `"state":"allowed"`},
		{"an answer that does not count", "POST", "/v1/approvals/a-1/answer", []byte("x"), fmt.Errorf("%w: expired", console.ErrRefused), 409, "expired"},
		{"an answer when the ledger fails", "POST", "/v1/approvals/a-1/answer", []byte("x"), os.ErrDeadlineExceeded, 500, "internal"},
		{"an answer of a megabyte", "POST", "/v1/approvals/a-1/answer", make([]byte, 1<<20), nil, 400, "too large"},
		{"an answer by GET", "GET", "/v1/approvals/a-1/answer", nil, nil, 405, ""},
		{"a console link", "POST", "/v1/console/link", nil, nil, 200, "/console/open?token=x"},
		{"a console link by GET", "GET", "/v1/console/link", nil, nil, 405, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.err, d.got = tt.err, nil
			status, text := call(tt.method, tt.path, tt.body)
			if status != tt.status || !strings.Contains(text, tt.want) {
				t.Errorf("%d %s, want %d %s", status, text, tt.status, tt.want)
			}
			if tt.status == 200 && tt.name == "answer" && string(d.got) != "answer" {
				t.Errorf("the desk got %q", d.got)
			}
			if status == 500 && strings.Contains(text, "deadline") {
				t.Errorf("the cause is shown: %s", text)
			}
		})
	}
	d.house.approvals, d.err = nil, nil
	if _, text := call("GET", "/v1/approvals", nil); strings.TrimSpace(text) != "[]" {
		t.Errorf("no questions give %s", text)
	}
}

// Every route of the socket knows who calls.
func TestAdminPeers(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no peer credentials on this system")
	}
	for _, tt := range []struct {
		name     string
		uids     []int
		withPeer bool
		want     int
	}{
		{"our own user", nil, true, 200},
		{"another user", []int{os.Geteuid() + 1}, true, 403},
		{"nobody knows who", nil, false, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, console.Admin{Desk: new(desk), UIDs: tt.uids, Link: func() string { return "" }}.Handler(), tt.withPeer)
			for _, rt := range []string{"GET /v1/approvals", "GET /v1/approvals/key", "GET /v1/approvals/a-1", "POST /v1/approvals/a-1/answer", "POST /v1/console/link"} {
				method, path, _ := strings.Cut(rt, " ")
				req, err := http.NewRequestWithContext(t.Context(), method, "http://vault"+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if res.StatusCode != tt.want {
					t.Errorf("%s: %s, want %d", rt, res.Status, tt.want)
				}
			}
		})
	}
}

func TestPeerOf(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no peer credentials on this system")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := console.PeerFrom(r.Context())
		_ = json.NewEncoder(w).Encode(p)
	})
	res, err := serve(t, h, true).Get("http://vault/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var p console.Peer
	if err := json.NewDecoder(res.Body).Decode(&p); err != nil || p.UID != os.Getuid() || p.PID != os.Getpid() {
		t.Errorf("peer %+v %v, want uid %d pid %d", p, err, os.Getuid(), os.Getpid())
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := console.PeerOf(a); err == nil {
		t.Error("a pipe has a peer")
	}
}
