package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/pilox/vault/internal/vaulttest"
)

// collectorConf has an OpenTelemetry collector take OTLP over HTTP and write what it
// took to a file.
const collectorConf = `
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:%s"}}}
exporters:
  file: {path: %q, append: true}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], exporters: [file]}
`

// TestCollector delivers to an OpenTelemetry collector, built from the parts that
// its project ships, that is away at first and in the middle.
func TestCollector(t *testing.T) {
	if !vaulttest.Required("collector") {
		vaulttest.Missing(t, "collector", "an OpenTelemetry collector takes minutes to build")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "collector")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	cmd.Dir, cmd.Env = filepath.Join("testdata", "collector"), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port := freePort(t)
	conf, file := filepath.Join(dir, "conf.yaml"), filepath.Join(dir, "got.jsonl")
	if err := os.WriteFile(conf, fmt.Appendf(nil, collectorConf, port, file), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLedger(600)
	o := options(dir)
	o.Linger = time.Millisecond
	s, err := Open(l, []Config{{Name: "otel", Kind: OTLP, URL: "http://127.0.0.1:" + port}}, o)
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, s)
	defer stop()
	until(t, "the sink says that nobody is there", func() bool { return s.Status()[0].Error != "" })
	for range 2 {
		end := startCollector(t, bin, conf, port)
		size, _ := l.Size()
		until(t, "all is delivered", func() bool { return s.Status()[0].Next == size })
		end()
		l.grow(600)
	}
	end := startCollector(t, bin, conf, port)
	until(t, "all is delivered", func() bool { return s.Status()[0].Next == 1800 })
	end()
	got := map[string]bool{}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var req struct {
			ResourceLogs []struct {
				ScopeLogs []struct {
					LogRecords []struct {
						EventName string
						Body      struct{ StringValue string }
					}
				}
			}
		}
		if err := json.Unmarshal(line, &req); err != nil {
			t.Fatal(err)
		}
		for _, r := range req.ResourceLogs {
			for _, sc := range r.ScopeLogs {
				for _, rec := range sc.LogRecords {
					if rec.EventName == "" {
						t.Errorf("a record without a name: %s", rec.Body.StringValue)
					}
					got[rec.Body.StringValue] = true
				}
			}
		}
	}
	for _, e := range l.list {
		if !got[string(e.Raw)] {
			t.Fatalf("event %d did not arrive", e.Leaf.Index)
		}
	}
	if st := s.Status()[0]; st.Refused != 0 {
		t.Errorf("%+v", st)
	}
}

// startCollector starts a collector and returns what ends it, once it listens.
func startCollector(t *testing.T, bin, conf, port string) (end func()) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), bin, "--config", conf)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	until(t, "the collector listens", func() bool {
		res, err := http.Post("http://127.0.0.1:"+port+"/v1/logs", "application/x-protobuf", http.NoBody)
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	return end
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 1200 {
		if f() {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Fatalf("not in a minute: %s", what)
}
