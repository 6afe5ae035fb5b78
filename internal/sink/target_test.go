package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/pilox/vault"
)

// views are the events of a ledger as they leave.
func views(l *ledger) []View {
	var out []View
	for _, e := range l.list {
		out = append(out, View{Leaf: e.Leaf, Raw: e.Raw, Hash: e.Hash})
	}
	return out
}

// wantLeaves fails unless got are the leaves of l.
func wantLeaves(t *testing.T, l *ledger, got [][]byte) {
	t.Helper()
	if len(got) != len(l.list) {
		t.Fatalf("%d events, want %d", len(got), len(l.list))
	}
	for i, e := range l.list {
		if !bytes.Equal(got[i], e.Raw) {
			t.Fatalf("event %d came as %s", i, got[i])
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFile(t *testing.T) {
	l := newLedger(20)
	path := filepath.Join(t.TempDir(), "events.jsonl")
	f := &fileTarget{path: path, format: Leaf}
	want := ""
	for _, v := range views(l) {
		want += string(v.Raw) + "\n"
	}
	if err := f.send(t.Context(), views(l)); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, path); got != want {
		t.Fatalf("got %s", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	t.Run("half a line that a crash left is cut off", func(t *testing.T) {
		if err := os.WriteFile(path, []byte(want+`{"any_args":fal`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.send(t.Context(), views(l)); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, path); got != want+want {
			t.Fatalf("got %s", got)
		}
	})
	t.Run("and so is the first line of all", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("{"+strings.Repeat("x", 200_000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.send(t.Context(), views(l)); err != nil || readFile(t, path) != want {
			t.Fatalf("%v: got %s", err, readFile(t, path))
		}
	})
	t.Run("what is no file of events is left alone", func(t *testing.T) {
		for _, text := range []string{"{" + strings.Repeat("\x00", maxLine+1), "root:x:0:0\n", "a password", "{\n\"a\":1}", "\n"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := f.send(t.Context(), views(l)); !errors.Is(err, errNoEvents) || readFile(t, path) != text {
				t.Errorf("%.20q: err = %v", text, err)
			}
		}
	})
	t.Run("a file that was moved away gets a successor", func(t *testing.T) {
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if err := f.send(t.Context(), views(l)); err != nil || readFile(t, path) != want {
			t.Fatalf("%v: got %s", err, readFile(t, path))
		}
	})
	t.Run("no link, FIFO, directory or missing directory", func(t *testing.T) {
		dir := t.TempDir()
		victim := filepath.Join(dir, "victim")
		if err := errors.Join(os.WriteFile(victim, nil, 0o600), os.Symlink(victim, filepath.Join(dir, "link")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"link", "fifo", ".", "none/x"} {
			if err := (&fileTarget{path: filepath.Join(dir, name), format: Leaf}).send(t.Context(), views(l)); err == nil {
				t.Errorf("%s is written to", name)
			}
		}
		if err := os.Link(victim, filepath.Join(dir, "hard")); err != nil {
			t.Fatal(err)
		}
		if err := (&fileTarget{path: filepath.Join(dir, "hard"), format: Leaf}).send(t.Context(), views(l)); err == nil {
			t.Error("a file with another name is written to")
		}
		if os.Geteuid() == 0 { // only root can give a file away
			other := filepath.Join(dir, "other")
			if err := errors.Join(os.WriteFile(other, nil, 0o666), os.Chown(other, 65534, 65534)); err != nil {
				t.Fatal(err)
			}
			if err := (&fileTarget{path: other, format: Leaf}).send(t.Context(), views(l)); err == nil || readFile(t, other) != "" {
				t.Errorf("a file of another user is written to: %v", err)
			}
		}
		if readFile(t, victim) != "" {
			t.Error("the link was followed")
		}
	})
}

// A web is a receiver over HTTP whose answers a test chooses.
type web struct {
	*httptest.Server
	mu     sync.Mutex
	bodies [][]byte
	heads  []http.Header
	answer func(w http.ResponseWriter, body []byte)
}

func newWeb(t *testing.T, start func(http.Handler) *httptest.Server) *web {
	w := &web{}
	w.Server = start(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.bodies, w.heads = append(w.bodies, body), append(w.heads, r.Header)
		if w.answer != nil {
			w.answer(rw, body)
		}
	}))
	t.Cleanup(w.Close)
	return w
}

func poster(t *testing.T, url, headers, ca string) *post {
	t.Helper()
	client, err := NewClient(ca, headers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return &post{client: client, url: url}
}

func TestHTTP(t *testing.T) {
	l := newLedger(20)
	w := newWeb(t, httptest.NewServer)
	for _, tt := range []struct {
		format Format
		kind   string
		leaves func(body []byte) ([][]byte, error)
	}{
		{CloudEvents, "application/cloudevents-batch+json", func(body []byte) (out [][]byte, err error) {
			var batch []struct {
				ID, Source, Type, SpecVersion string
				Data                          json.RawMessage
			}
			err = json.Unmarshal(body, &batch)
			for i, e := range batch {
				if e.ID != strconv.Itoa(i) || e.SpecVersion != "1.0" || e.Source == "" || !strings.HasPrefix(e.Type, "dev.pilox.vault.") {
					return nil, fmt.Errorf("%+v", e)
				}
				out = append(out, e.Data)
			}
			return out, err
		}},
		{Leaf, "application/x-ndjson", func(body []byte) ([][]byte, error) {
			return bytes.Split(bytes.TrimSuffix(body, []byte("\n")), []byte("\n")), nil
		}},
		{OCSF, "application/x-ndjson", func(body []byte) (out [][]byte, err error) {
			for line := range bytes.Lines(body) {
				var e struct {
					RawData string `json:"raw_data"`
				}
				err = errors.Join(err, json.Unmarshal(line, &e))
				out = append(out, []byte(e.RawData))
			}
			return out, err
		}},
	} {
		t.Run(string(tt.format), func(t *testing.T) {
			w.bodies, w.heads = nil, nil
			if err := (&httpTarget{post: poster(t, w.URL, "", ""), format: tt.format}).send(t.Context(), views(l)); err != nil {
				t.Fatal(err)
			}
			if got := w.heads[0].Get("Content-Type"); got != tt.kind {
				t.Errorf("content type %s", got)
			}
			leaves, err := tt.leaves(w.bodies[0])
			if err != nil {
				t.Fatal(err)
			}
			wantLeaves(t, l, leaves)
		})
	}
}

// TestReceiverRefuses: what is not a plain yes is an error, and leads nowhere else.
func TestReceiverRefuses(t *testing.T) {
	other := newWeb(t, httptest.NewServer)
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, []byte)
		want   string
	}{
		{"a redirect", func(w http.ResponseWriter, _ []byte) {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, "307"},
		{"an error that quotes what was sent", func(w http.ResponseWriter, _ []byte) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "unknown token hunter2")
		}, `403`},
		{"an endless answer", func(w http.ResponseWriter, _ []byte) { fmt.Fprint(w, strings.Repeat("x", maxAnswer+1)) }, "larger than"},
		{"too large", func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusRequestEntityTooLarge) }, errTooLarge.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWeb(t, httptest.NewServer)
			w.answer = tt.answer
			err := (&httpTarget{post: poster(t, w.URL, "", ""), format: Leaf}).send(t.Context(), views(newLedger(1)))
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 1000 || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("err = %v", err)
			}
		})
	}
	if len(other.bodies) > 0 {
		t.Error("a redirect was followed")
	}
}

// TestHeadersFile: headers come from a file that nobody else can read, are read
// again for each batch, and what stands there is in no error.
func TestHeadersFile(t *testing.T) {
	w := newWeb(t, httptest.NewServer)
	path := filepath.Join(t.TempDir(), "headers")
	if _, err := NewClient("", path); err == nil {
		t.Error("a file that is not there passes")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	target := &httpTarget{post: poster(t, w.URL, path, ""), format: Leaf}
	for i, token := range []string{"Bearer first", "Bearer second"} {
		if err := os.WriteFile(path, []byte("# for the SIEM\nauthorization: "+token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := target.send(t.Context(), views(newLedger(1))); err != nil {
			t.Fatal(err)
		}
		if got := w.heads[i].Get("Authorization"); got != token {
			t.Errorf("sent %q, want %q", got, token)
		}
	}
	for name, text := range map[string]string{
		"no colon":          "hunter2",
		"no name":           ": hunter2",
		"a name with a gap": "a b: hunter2",
		"no value":          "X-Token:",
		"ours":              "Host: hunter2",
		"our type":          "content-type: hunter2",
		"a control":         "X-Token: hunter2\x01",
		"a long line":       "X-Token: hunter2" + strings.Repeat("x", 1<<20),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := target.send(t.Context(), views(newLedger(1))); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: err = %v", name, err)
		}
	}
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := target.send(t.Context(), views(newLedger(1))); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
	if _, err := Open(newLedger(1), []Config{{Name: "a", Kind: HTTP, URL: w.URL, Headers: path}}, options(t.TempDir())); err == nil {
		t.Error("it starts with headers that it cannot read")
	}
}

// TestCA: a receiver is who its certificate says, and who vouches for that is the
// operator's to say.
func TestCA(t *testing.T) {
	w := newWeb(t, httptest.NewTLSServer)
	w.Config.ErrorLog = nil
	dir := t.TempDir()
	ca, other := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "none.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw})
	if err := errors.Join(os.WriteFile(ca, block, 0o600), os.WriteFile(other, []byte("no PEM"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := (&httpTarget{post: poster(t, w.URL, "", ca), format: Leaf}).send(t.Context(), views(newLedger(1))); err != nil {
		t.Error(err)
	}
	if err := (&httpTarget{post: poster(t, w.URL, "", ""), format: Leaf}).send(t.Context(), views(newLedger(1))); err == nil {
		t.Error("an unknown certificate passes")
	}
	for _, path := range []string{other, filepath.Join(dir, "missing")} {
		if _, err := NewClient(path, ""); err == nil {
			t.Errorf("%s passes for certificates", path)
		}
	}
	// And the same for syslog.
	l := newLedger(20)
	s := newLogServer(t, &tls.Config{Certificates: w.TLS.Certificates})
	target, err := newSyslog("tls://"+s.Addr().String(), ca, Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.send(t.Context(), views(l)); err != nil {
		t.Fatal(err)
	}
	s.wantLeaves(t, l)
	target.tls.RootCAs = nil
	if err := target.send(t.Context(), views(l)); err == nil {
		t.Error("an unknown certificate passes")
	}
}

func TestOTLP(t *testing.T) {
	l := newLedger(20)
	w := newWeb(t, httptest.NewServer)
	var dropped uint64
	target := &otlpTarget{post: poster(t, WithPath(w.URL, "/v1/logs"), "", ""), log: origin, version: "1.2.3", refused: func(_ context.Context, n uint64, _ string) { dropped += n }}
	all := views(l)
	all[0].Fields = []Field{{Name: "caller", Value: "p-1", Pseudonym: true}}
	if err := target.send(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if got := w.heads[0].Get("Content-Type"); got != "application/x-protobuf" {
		t.Errorf("content type %s", got)
	}
	var req collector.ExportLogsServiceRequest
	if err := proto.Unmarshal(w.bodies[0], &req); err != nil {
		t.Fatal(err)
	}
	attr := map[string]string{}
	for _, a := range req.GetResourceLogs()[0].GetResource().GetAttributes() {
		attr[a.GetKey()] = a.GetValue().GetStringValue()
	}
	if attr["service.name"] != "pvault" || attr["service.version"] != "1.2.3" || attr["service.namespace"] != origin {
		t.Errorf("resource %v", attr)
	}
	var leaves [][]byte
	for i, r := range req.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords() {
		leaves = append(leaves, []byte(r.GetBody().GetStringValue()))
		if r.GetTimeUnixNano() != uint64(l.list[i].Leaf.Time.UnixNano()) || r.GetSeverityNumber() == 0 || r.GetEventName() == "" || r.GetObservedTimeUnixNano() == 0 {
			t.Errorf("record %d: %v", i, r)
		}
	}
	wantLeaves(t, l, leaves)
	if s := req.String(); !strings.Contains(s, "vault.field.caller") {
		t.Error("a field is missing")
	}

	w.answer = func(w http.ResponseWriter, _ []byte) {
		b, err := proto.Marshal(&collector.ExportLogsServiceResponse{PartialSuccess: &collector.ExportLogsPartialSuccess{RejectedLogRecords: 1 << 40, ErrorMessage: "no\x1b[2J"}})
		if err != nil {
			return
		}
		w.Write(b)
	}
	if err := target.send(t.Context(), views(l)); err != nil || dropped != 20 {
		t.Errorf("a partial success: %v, %d dropped", err, dropped)
	}
	w.answer = func(w http.ResponseWriter, _ []byte) { fmt.Fprint(w, "<html>a portal</html>") }
	if err := target.send(t.Context(), views(l)); err == nil {
		t.Error("an answer that is not the protocol passes for a yes")
	}
	for in, want := range map[string]string{
		"http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/logs", "https://c.example/": "https://c.example/v1/logs", "https://c.example/otlp/v1/logs": "https://c.example/otlp/v1/logs",
	} {
		if got := WithPath(in, "/v1/logs"); got != want {
			t.Errorf("%s becomes %s", in, got)
		}
	}
}

// A logServer is a syslog server that reads counted messages.
type logServer struct {
	net.Listener
	done chan struct{}
	mu   sync.Mutex
	got  [][]byte
	err  error
}

func newLogServer(t *testing.T, secure *tls.Config) *logServer {
	t.Helper()
	s := &logServer{done: make(chan struct{})}
	var err error
	if s.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		s.Listener = tls.NewListener(s.Listener, secure)
	}
	go func() {
		defer close(s.done)
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			s.read(c)
		}
	}()
	t.Cleanup(func() {
		s.Close()
		<-s.done
	})
	return s
}

// read takes messages until the end of the connection.
func (s *logServer) read(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		count, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(count, " "))
		m := make([]byte, max(n, 0))
		if err == nil {
			_, err = io.ReadFull(r, m)
		}
		s.mu.Lock()
		s.got, s.err = append(s.got, m), errors.Join(s.err, err)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *logServer) wantLeaves(t *testing.T, l *ledger) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		t.Fatal(s.err)
	}
	var leaves [][]byte
	for _, m := range s.got {
		head, leaf, ok := bytes.Cut(m, []byte(" - {"))
		if f := strings.Fields(string(head)); !ok || len(f) != 6 || f[2] != strings.ReplaceAll(origin, " ", "_") || f[3] != "pvault" {
			t.Fatalf("message %s", m)
		}
		leaves = append(leaves, append([]byte("{"), leaf...))
	}
	wantLeaves(t, l, leaves)
}

func TestSyslog(t *testing.T) {
	l := newLedger(50)
	s := newLogServer(t, nil)
	target, err := newSyslog("tcp://"+s.Addr().String(), "", Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.send(t.Context(), views(l)); err != nil {
		t.Fatal(err)
	}
	s.wantLeaves(t, l)
}

// TestSyslogIsReadToTheEnd: a batch that the server may not have read is not
// delivered.
func TestSyslogIsReadToTheEnd(t *testing.T) {
	for name, serve := range map[string]func(c *net.TCPConn, gone <-chan struct{}){
		"it never closes": func(_ *net.TCPConn, gone <-chan struct{}) { <-gone },
		"it resets":       func(c *net.TCPConn, _ <-chan struct{}) { c.SetLinger(0); c.Close() },
		"it talks": func(c *net.TCPConn, gone <-chan struct{}) {
			for {
				select {
				case <-gone:
					return
				default:
					if _, err := c.Write(make([]byte, 4096)); err != nil {
						return
					}
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			gone, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				serve(c.(*net.TCPConn), gone)
			}()
			target, err := newSyslog("tcp://"+ln.Addr().String(), "", Leaf)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := target.send(ctx, views(newLedger(3))); err == nil {
				t.Error("delivered")
			}
			close(gone)
			ln.Close()
			<-done
		})
	}
}

// TestKindsThroughOpen: each kind, opened from its configuration, delivers what the
// ledger has, and notes it.
func TestKindsThroughOpen(t *testing.T) {
	l := newLedger(30)
	dir := t.TempDir()
	w, o := newWeb(t, httptest.NewServer), newWeb(t, httptest.NewServer)
	logs := newLogServer(t, nil)
	op := options(dir)
	op.Linger = time.Millisecond
	s, err := Open(l, []Config{
		{Name: "file", Kind: File, File: filepath.Join(dir, "out"), Format: OCSF},
		{Name: "web", Kind: HTTP, URL: w.URL, Classes: []vault.Class{vault.ClassCall}},
		{Name: "otel", Kind: OTLP, URL: o.URL},
		{Name: "syslog", Kind: Syslog, Address: "tcp://" + logs.Addr().String()},
	}, op)
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, s)
	deadline := time.After(20 * time.Second)
	for done := false; !done; {
		done = true
		for _, st := range s.Status() {
			done = done && st.Next == 30
		}
		select {
		case <-deadline:
			t.Fatalf("%+v", s.Status())
		case <-time.After(5 * time.Millisecond):
		}
	}
	stop()
	if n := strings.Count(readFile(t, filepath.Join(dir, "out")), "\n"); n != 30 {
		t.Errorf("%d lines", n)
	}
	if len(w.bodies) == 0 || bytes.Contains(w.bodies[0], []byte("dev.pilox.vault.task")) || len(o.bodies) == 0 {
		t.Error("not what was asked for")
	}
	logs.wantLeaves(t, l)
}
