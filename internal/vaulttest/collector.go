//go:build unix

package vaulttest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// collectorConf has a collector take OTLP over HTTP and write what it took to a file.
const collectorConf = `
receivers:
  otlp: {protocols: {http: {endpoint: %q}}}
exporters:
  file: {path: %q, append: true}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], exporters: [file]}
    traces: {receivers: [otlp], exporters: [file]}
`

// A Collector is an OpenTelemetry collector, built from the parts that its project
// ships, that is not running yet.
type Collector struct {
	URL  string // where it takes OTLP, once it runs
	File string // where it writes what it took, one JSON object a request

	bin, conf, addr string
}

// NewCollector builds a collector. That takes minutes where nothing is cached, so it
// ends the test unless PVAULT_REQUIRE names collector.
func NewCollector(t testing.TB) *Collector {
	t.Helper()
	if !Required("collector") {
		Missing(t, "collector", "an OpenTelemetry collector takes minutes to build")
	}
	dir := t.TempDir()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := &Collector{URL: "http://" + addr, File: filepath.Join(dir, "got.jsonl"), bin: filepath.Join(dir, "collector"), conf: filepath.Join(dir, "conf.yaml"), addr: addr}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", c.bin, ".")
	cmd.Dir, cmd.Env = filepath.Join("..", "vaulttest", "testdata", "collector"), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build collector: %v: %s", err, out)
	}
	if err := os.WriteFile(c.conf, fmt.Appendf(nil, collectorConf, addr, c.File), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// Start starts the collector and returns, once it listens, what ends it.
func (c *Collector) Start(t testing.TB) (end func()) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), c.bin, "--config", c.conf)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM) // it writes out what it has
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	Until(t, "the collector listens", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL+"/v1/logs", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		return res.Body.Close() == nil
	})
	return end
}

// Until waits up to a minute for f.
func Until(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("not in a minute: %s", what)
}
