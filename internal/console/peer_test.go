package console_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/pilox/vault/internal/console"
)

// serve runs h on a Unix socket and returns a client for it.
func serve(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener = l
	s.Config.ConnContext = console.ConnContext
	s.Start()
	t.Cleanup(s.Close)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestPeerOf(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("no peer credentials on this system")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := console.PeerFrom(r.Context())
		_ = json.NewEncoder(w).Encode(p)
	})
	res, err := serve(t, h).Get("http://vault/")
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
