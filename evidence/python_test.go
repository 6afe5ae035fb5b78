package evidence

import (
	"os/exec"
	"testing"

	"github.com/pilox/vault/internal/vaulttest"
)

// python returns a Python that has what the second verifier needs.
func python(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} { // Debian's has Debian's packages
		if exec.Command(name, "-c", "import cryptography").Run() == nil {
			return name
		}
	}
	vaulttest.Missing(t, "python", "python3 with the package cryptography is not there")
	return ""
}

// TestPythonVerifierAgrees runs the second verifier, which shares no code with this
// package, over the table: the same answer, exit code and index in each row.
func TestPythonVerifierAgrees(t *testing.T) {
	py := python(t)
	dir, rows := writeTable(t)
	out, err := exec.Command(py, "../contrib/verify-python/vault_verify.py", "--table", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	// As a command, for its exit codes and words.
	for _, i := range []int{0, len(rows) / 2} {
		args := []string{"../contrib/verify-python/vault_verify.py", dir + "/" + rows[i].Bundle, "--run", rows[i].Run}
		for _, k := range rows[i].Keys {
			args = append(args, "--key", k)
		}
		cmd := exec.Command(py, args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != rows[i].Exit && rows[i].Policy+rows[i].Since+rows[i].NewerThan == "" {
			t.Errorf("%s: exit %d, want %d: %v\n%s", rows[i].Name, code, rows[i].Exit, err, out)
		}
	}
}
