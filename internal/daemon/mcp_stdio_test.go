package daemon_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// filesystemServer is a real server that nobody here wrote.
const filesystemServer = "npm:@modelcontextprotocol/server-filesystem@2026.8.31"

// TestFilesystemServer has a client use npm's filesystem server, installed by the
// daemon and run in its jail, beside a server behind a URL.
func TestFilesystemServer(t *testing.T) {
	r := startJailed(t)
	shared, private := filepath.Join(r.dir, "shared"), filepath.Join(r.dir, "private")
	invoice := write(t, filepath.Join(shared, "invoice.txt"), "12 chairs")
	letter := write(t, filepath.Join(private, "letter.txt"), "between us")
	s := r.addServer("files", daemon.Registration{Source: filesystemServer, Args: []string{shared}, Read: []string{shared}, Integrity: "org", Holds: "public"})
	if !slices.Contains(s.Tools, "read_text_file") {
		t.Fatalf("the server offers %v", s.Tools)
	}
	r.addURL("oracle", newOracle(t, false).url)
	file := strings.NewReplacer("$SHARED", shared).Replace(`
version: 1
purpose: Read what is shared
principal: user:tester@example.com
life: 1h
tools:
  files.read_text_file: {args: {path: {subpath: $SHARED}}}
  files.list_directory: {args: any}
  files.write_file: {args: any}
  oracle.add: {args: any}
budgets: {calls: 1000}
`)
	task := r.mint(file)

	for _, version := range []string{"2026-07-28", "2025-11-25", "2024-11-05"} {
		t.Run("a client of "+version, func(t *testing.T) {
			c := connect(t, r.shim(t, task), version)
			want := []string{"files__list_directory", "files__read_text_file", "files__write_file", "oracle__add"}
			if got := c.tools(t); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
				t.Errorf("the client sees %v, want %v", got, want)
			}
			for _, tt := range []struct {
				name, tool string
				args       map[string]any
				want       string     // part of the text
				denied     vault.Code // of Vault, else
				fails      bool       // or the server's own error
			}{
				{"a granted file is read", "files__read_text_file", map[string]any{"path": invoice}, "12 chairs", "", false},
				{"the directory is listed", "files__list_directory", map[string]any{"path": shared}, "invoice.txt", "", false},
				{"a path outside is not granted", "files__read_text_file", map[string]any{"path": letter}, "", vault.CodeCapabilityArgument, false},
				{"a path that climbs out is not granted", "files__read_text_file", map[string]any{"path": shared + "/../private/letter.txt"}, "", vault.CodeCapabilityArgument, false},
				{"an argument that nobody named is not granted", "files__read_text_file", map[string]any{"path": invoice, "tail": 1}, "", vault.CodeCapabilityArgument, false},
				{"with every argument granted the jail is what is left", "files__list_directory", map[string]any{"path": private}, "", "", true},
				{"what it was given to read it cannot write", "files__write_file", map[string]any{"path": shared + "/new.txt", "content": "x"}, "", "", true},
				{"the other server is there too", "oracle__add", map[string]any{"A": 2, "B": 3}, "5", "", false},
			} {
				res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: tt.tool, Arguments: tt.args})
				switch {
				case tt.denied != "":
					if d := denialOf(t, res, err); d == nil || d.Reason.Code != tt.denied || d.Executed != vault.ExecutedNo {
						t.Errorf("%s: %+v %v", tt.name, d, err)
					}
				case err != nil || res.IsError != tt.fails || !strings.Contains(textOf(res), tt.want):
					t.Errorf("%s: %v, %q", tt.name, err, textOf(res))
				}
			}
		})
	}
	if _, err := os.Stat(filepath.Join(shared, "new.txt")); err == nil {
		t.Error("a read-only directory was written to")
	}
	for _, rec := range r.records(task.ID) {
		if rec.Leaf.Phase == string(vault.PhaseIntent) && rec.Leaf.Tool == "read_text_file" && rec.Leaf.Grade != "B" {
			t.Errorf("record %d: grade %q", rec.Leaf.Index, rec.Leaf.Grade)
		}
	}
}

// TestProcesses: a task has one process of a server, however many sessions it
// opens; another task has its own; with the task its process ends.
func TestProcesses(t *testing.T) {
	r := startJailed(t)
	shared := filepath.Join(r.dir, "shared")
	invoice := write(t, filepath.Join(shared, "invoice.txt"), "12 chairs")
	r.addServer("files", daemon.Registration{Source: filesystemServer, Args: []string{shared}, Read: []string{shared}, Integrity: "org", Holds: "public"})
	eventually(t, "the process that was listed ends", func() bool { return processes(t, shared) == 0 })

	var tasks []admin.Task
	for _, purpose := range []string{"First", "Second"} {
		task := r.mint("version: 1\npurpose: " + purpose + "\nprincipal: user:tester@example.com\nlife: 1h\ntools: {files.*: {args: any}}\nbudgets: {calls: 100}\n")
		tasks = append(tasks, task)
		for _, version := range []string{"2026-07-28", "2025-11-25", "2025-03-26"} {
			c := connect(t, r.endpoint(task), version)
			res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "read_text_file", Arguments: map[string]string{"path": invoice}})
			if err != nil || res.IsError {
				t.Fatalf("read: %v %q", err, textOf(res))
			}
			if got := processes(t, shared); got != len(tasks) {
				t.Errorf("%d tasks have %d processes", len(tasks), got)
			}
		}
	}
	if err := r.admin.CloseTask(t.Context(), tasks[0].ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process of the closed task ends", func() bool { return processes(t, shared) == 1 })
	r.stop()
	if got := processes(t, shared); got != 0 {
		t.Errorf("%d processes outlive the daemon", got)
	}
}

// startJailed starts a daemon that demands grade B, where npm is and the host can
// give that.
func startJailed(t *testing.T, mutate ...func(*daemon.Config)) *rig {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			vaulttest.Missing(t, "npm", program+" is not here, and the filesystem server of npm needs it")
		}
	}
	raw, err := daemon.Doctor(t.Context())
	var report struct{ Grade string }
	if jerr := json.Unmarshal(raw, &report); jerr != nil {
		t.Fatal(jerr)
	}
	if err != nil || report.Grade > "B" {
		vaulttest.Missing(t, "sandbox", "this host does not give grade B: "+report.Grade)
	}
	return startDaemon(t, func(c *daemon.Config) {
		c.Sandbox.MinGrade = "B"
		for _, f := range mutate {
			f(c)
		}
	})
}

// write makes a file that a jailed process of another uid may read if it is shown
// to it, and returns its path.
func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// shim is the transport of a client whose server is what pvault mcp runs.
func (r *rig) shim(t *testing.T, task admin.Task) sdk.Transport {
	t.Helper()
	fromClient, toShim := io.Pipe()
	fromShim, toClient := io.Pipe()
	done := make(chan error, 1)
	header := http.Header{"Authorization": {"Bearer " + task.Token}}
	go func() {
		done <- daemon.Shim(t.Context(), fromClient, toClient, r.admin.HTTP, "http://vault/mcp", header, nil)
	}()
	t.Cleanup(func() {
		_ = toShim.Close() // ends the shim
		if err := <-done; err != nil && t.Context().Err() == nil {
			t.Errorf("shim: %v", err)
		}
		_ = toClient.Close() // the client has closed its side
	})
	return &sdk.IOTransport{Reader: fromShim, Writer: toShim}
}

// processes counts the running programs below this one that have arg on their
// command line.
func processes(t *testing.T, arg string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it is gone
		}
		argv := bytes.Split(line, []byte{0})
		if len(argv) > 1 && strings.HasSuffix(string(argv[0]), "node") && slices.ContainsFunc(argv, func(a []byte) bool { return string(a) == arg }) {
			n++
		}
	}
	return n
}
