//go:build unix

package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pilox/vault/internal/policy"
)

// What stands in a bundle and is no file of its own is refused rather than left out
// or waited for.
func TestOddFilesAreRefused(t *testing.T) {
	for name, put := range map[string]func(dir string) error{
		"a link to a directory": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, ".real"), 0o700), os.Symlink(".real", filepath.Join(dir, "more")))
		},
		"a link out of the bundle":      func(dir string) error { return os.Symlink(os.TempDir(), filepath.Join(dir, "more")) },
		"a link that leads nowhere":     func(dir string) error { return os.Symlink("nothing", filepath.Join(dir, "more.rego")) },
		"a pipe that nobody writes to":  func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "more.rego"), 0o600) },
		"a directory named like a rule": func(dir string) error { return os.Symlink(".", filepath.Join(dir, "more.rego")) },
	} {
		t.Run(name, func(t *testing.T) {
			b := bundle(t, map[string]string{"p.rego": "package p\ndecision := true"})
			if err := put(b.Dir); err != nil {
				t.Fatal(err)
			}
			if _, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}}); err == nil {
				t.Error("accepted")
			}
		})
	}
	// A mounted configuration has a link for each file, to a hidden directory.
	b := bundle(t, map[string]string{".data/p.rego": "package p\ndecision := true"})
	if err := os.Symlink(".data/p.rego", filepath.Join(b.Dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}}); err != nil {
		t.Errorf("a link to a file: %v", err)
	}
}
