package vaulttest

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Judges builds the programs of others that judge what Vault writes, and returns how
// to run them. They are a module of their own; building them takes a minute where
// nothing is cached, so it is done only where PVAULT_REQUIRE names them.
func Judges(t testing.TB) func(args ...string) (string, error) {
	t.Helper()
	if !Required("judges") {
		Missing(t, "judges", "the judges take a minute to build")
	}
	bin := filepath.Join(t.TempDir(), "judges")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-C", filepath.Join("..", "..", "judges"), "-o", bin, ".").CombinedOutput(); err != nil { // from a package below internal
		t.Fatalf("build the judges: %v: %s", err, out)
	}
	return func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
		return string(out), err
	}
}
