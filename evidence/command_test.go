package evidence

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCommandAgrees runs the command over the table, for its exit codes.
func TestCommandAgrees(t *testing.T) {
	dir, rows := writeTable(t)
	command := filepath.Join(dir, "pvault")
	if out, err := exec.Command("go", "build", "-o", command, "../cmd/pvault").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i := range rows {
		r := &rows[i]
		args := []string{"audit", "verify", filepath.Join(dir, r.Bundle), "--run", r.Run, "--newer-than", r.NewerThan}
		for _, k := range r.Keys {
			args = append(args, "--key", k)
		}
		for _, k := range r.Rekor {
			args = append(args, "--rekor-key", k)
		}
		for flag, text := range map[string]string{"--since": r.Since, "--policy": r.Policy, "--tsa-roots": r.TSA} {
			if text == "" {
				continue
			}
			name := filepath.Join(dir, "given"+flag)
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, flag, name)
		}
		cmd := exec.Command(command, args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != r.Exit {
			t.Errorf("%s: exit %d, want %d: %v\n%s", r.Name, code, r.Exit, err, out)
		}
	}
}
