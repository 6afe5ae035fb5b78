package daemon_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// A program is the real pvault as a process that can be killed. What the rig in it
// does goes to whichever daemon runs.
type program struct {
	*rig

	binary string
	config string // file
	cmd    *exec.Cmd
	stderr *logBuffer
}

// newProgram makes a data directory with an approver, and starts nothing.
func newProgram(t *testing.T, binary string) *program {
	t.Helper()
	dir, err := os.MkdirTemp("", "pvk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	p := &program{
		binary: binary, config: filepath.Join(dir, "vault.yaml"),
		rig: &rig{t: t, dir: dir, conf: daemon.Config{Data: filepath.Join(dir, "data")}},
	}
	yaml := fmt.Sprintf("data: %s\nlisten: {http: off, admin: %s}\nsandbox: {min_grade: none}\napprovals: {wait: 1ms}\n", p.conf.Data, filepath.Join(dir, "s"))
	if err := os.WriteFile(p.config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p.conf.Listen.Admin = filepath.Join(dir, "s")
	if err := os.Mkdir(p.conf.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	approvers := filepath.Join(p.conf.Data, "approvers")
	if _, err := daemon.CreateApprover(approvers, approverName, nil); err != nil {
		t.Fatal(err)
	}
	if p.approver, err = daemon.OpenApprover(approvers, approverName, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.approver.Close)
	t.Cleanup(p.kill)
	return p
}

// start runs pvault up and waits until it says that it is up.
func (p *program) start() {
	p.t.Helper()
	p.spawn(func(out io.Reader) error {
		var banner struct{ Socket string }
		if err := json.NewDecoder(out).Decode(&banner); err != nil {
			return fmt.Errorf("read banner: %w", err)
		}
		p.admin = admin.NewClient(banner.Socket)
		return nil
	})
}

// spawn starts the program and calls ready with its output.
func (p *program) spawn(ready func(io.Reader) error) {
	p.t.Helper()
	p.cmd = exec.CommandContext(p.t.Context(), p.binary, "up", "--json", "--quiet", "--config", p.config)
	p.stderr = new(logBuffer)
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	if err := ready(bufio.NewReader(out)); err != nil {
		p.kill()
		p.t.Fatalf("pvault up: %v\n%s", err, p.stderr)
	}
}

// kill ends the daemon the hard way. It may be called twice.
func (p *program) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err == nil || !errors.As(err, &exit) || exit.ExitCode() != -1 {
		p.t.Errorf("the daemon ended by itself: %v\n%s", err, p.stderr)
	}
	p.cmd = nil
	if p.admin != nil {
		p.admin.Close()
		p.admin = nil
	}
}

// pvaultBinary builds the command. It is the real program, without the race
// detector, because what is tested is what a kill leaves behind.
func pvaultBinary(t *testing.T) string {
	t.Helper()
	// The test cache knows which files a test looked at and not what the compiler
	// did, so look at the command's.
	files, err := filepath.Glob("../../cmd/pvault/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "pvault")
	build(t, path, "github.com/pilox/vault/cmd/pvault")
	return path
}

// build compiles a package into a static program at path.
func build(t *testing.T, path, pkg string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}
