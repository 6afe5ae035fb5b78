package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// A permissive is a gateway that allows everything and goes straight to the servers.
type permissive struct {
	up    *Upstreams
	calls atomic.Int64

	mu   sync.Mutex
	last *vault.Call
}

func (g *permissive) Handle(ctx context.Context, call *vault.Call, out vault.Stream) (vault.Result, error) {
	g.calls.Add(1)
	g.mu.Lock()
	g.last = call
	g.mu.Unlock()
	return g.up.Run(ctx, &vault.Facts{Call: call, Grant: &vault.Grant{Tenant: "t", Task: "task"}}, out)
}

func (g *permissive) lastCall() *vault.Call {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// A rig is a front and upstreams with one caller who may do everything.
type rig struct {
	t       testing.TB
	front   *Front
	up      *Upstreams
	gateway *permissive
	server  *httptest.Server
	view    atomic.Pointer[View]
	relist  chan vault.ServerID
	wg      sync.WaitGroup
}

// testID names a server of the tests.
func testID(name string) vault.ServerID {
	return vault.ServerID(vault.Hash("test-server", []byte(name)))
}

// newRig builds a rig in front of the servers with the given URLs by name.
func newRig(t testing.TB, urls map[string]string) *rig {
	t.Helper()
	r := &rig{t: t, relist: make(chan vault.ServerID, 64)}
	r.up = NewUpstreams(UpstreamsConfig{
		Permit: func(context.Context, *vault.Facts, int, string, json.RawMessage) error { return nil },
		Changed: func(id vault.ServerID, _ vault.Kind) {
			select {
			case r.relist <- id:
			default:
			}
		},
	})
	r.gateway = &permissive{up: r.up}
	var err error
	r.front, err = NewFront(FrontConfig{
		Gateway:   r.gateway,
		Upstreams: r.up,
		Authenticate: func(req *http.Request) (Caller, error) {
			key := "caller"
			switch auth := req.Header.Get("Authorization"); auth {
			case "":
			case "Bearer other":
				key = "other"
			default:
				return Caller{}, vault.NewDenial(vault.CodeCapabilityMalformed, "", errors.New("no such token"))
			}
			return Caller{Key: key, View: r.view.Load()}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, url := range urls {
		d, err := DialHTTP(HTTPConfig{URL: url, AllowLoopback: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.up.Add(Server{ID: testID(name), Name: name, Dial: d, Timeout: 10 * time.Second}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	r.list(names)
	ctx, cancel := context.WithCancel(context.Background())
	r.wg.Go(func() {
		for {
			select {
			case <-r.relist:
				r.list(names)
				for _, k := range []vault.Kind{vault.KindTool, vault.KindPrompt, vault.KindResource} {
					r.front.Changed(k, nil)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	r.server = httptest.NewServer(r.front)
	t.Cleanup(func() {
		cancel()
		r.front.Close()
		r.server.CloseClientConnections()
		r.server.Close()
		r.up.Close()
		r.wg.Wait()
	})
	return r
}

// list reads the definitions of all servers into the view.
func (r *rig) list(names []string) {
	var views []ServerView
	for _, name := range names {
		l, err := r.up.List(context.Background(), testID(name), Instance{Tenant: "t"})
		if err != nil {
			r.t.Errorf("list %s: %v", name, err)
			continue
		}
		views = append(views, ServerView{ID: testID(name), Name: name, Tools: l.Tools, Resources: l.Resources, Templates: l.Templates, Prompts: l.Prompts})
	}
	r.view.Store(NewView(views))
}

// answering is a gateway that answers every call with a result.
type answering string

func (g answering) Handle(context.Context, *vault.Call, vault.Stream) (vault.Result, error) {
	return vault.Result{Raw: json.RawMessage(g)}, nil
}

// discard is a ResponseWriter that keeps only the status.
type discard struct {
	h      http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(s int)           { d.status = s }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

// newServer serves a front on loopback and closes both in the right order.
func newServer(t testing.TB, f *Front) string {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(func() {
		f.Close()
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL
}
