package capability

import (
	"os/exec"
	"testing"

	"github.com/pilox/vault/internal/vaulttest"
)

// The second reader, in another language and written from the format, agrees with
// every published vector.
func TestSecondReader(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		vaulttest.Missing(t, "python", "no python3")
	}
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import cryptography").CombinedOutput(); err != nil {
		vaulttest.Missing(t, "python", "python3 has no package cryptography: "+string(out))
	}
	out, err := exec.CommandContext(t.Context(), python, "../contrib/capability/check.py", "testdata/vectors.json").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
