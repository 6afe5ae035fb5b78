package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pilox/vault/internal/keystore"
)

func TestAnchorKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir)
	k, err := s.AnchorKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(t, dir).AnchorKey()
	if err != nil || !again.Equal(k) {
		t.Errorf("a restart gave another key, %v", err)
	}
	if _, err := s.Signer(keystore.Anchor); err == nil {
		t.Error("the anchor key was given out as an Ed25519 key")
	}
	if err := os.Chmod(filepath.Join(dir, "anchor.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).AnchorKey(); !errors.Is(err, keystore.ErrUnsafe) {
		t.Errorf("a key file that others can read: %v, want ErrUnsafe", err)
	}
}
