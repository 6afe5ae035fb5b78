package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/pilox/vault/internal/keystore"
)

func open(t *testing.T, dir string) *keystore.Store {
	t.Helper()
	s, err := keystore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var purposes = []keystore.Purpose{
	keystore.TenantRoot, keystore.Gateway, keystore.Approval, keystore.Ledger, keystore.StatusList,
}

func TestSignerSurvivesRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	public := make(map[string]keystore.Purpose)
	first := open(t, dir)
	for _, p := range purposes {
		k, err := first.Signer(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := first.Signer(p)
		if err != nil || again != k {
			t.Errorf("%s: a second call gave another key, %v", p, err)
		}
		pub := string(k.Public().(ed25519.PublicKey))
		if q, taken := public[pub]; taken {
			t.Errorf("%s and %s share a key", p, q)
		}
		public[pub] = p
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	for _, p := range purposes {
		k, err := second.Signer(p)
		if err != nil {
			t.Fatal(err)
		}
		if public[string(k.Public().(ed25519.PublicKey))] != p {
			t.Errorf("%s: another key after a restart", p)
		}
		sig, err := k.Sign(rand.Reader, []byte("message"), crypto.Hash(0))
		if err != nil || !ed25519.Verify(k.Public().(ed25519.PublicKey), []byte("message"), sig) {
			t.Errorf("%s: bad signature, %v", p, err)
		}
	}
	if _, err := second.Signer("other"); err == nil {
		t.Error("a purpose that nobody knows has a key")
	}
}

// The mode bits are the whole protection of node keys.
func TestModesOfWhatIsWritten(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir)
	if _, err := s.Signer(keystore.Ledger); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DataKey("subject"); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		n++
		want := os.FileMode(0o600)
		if fi.IsDir() {
			want = 0o700
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, fi.Mode(), want)
		}
		if strings.HasPrefix(fi.Name(), ".new") {
			t.Errorf("%s was left behind", path)
		}
		return nil
	})
	if err != nil || n != 4 {
		t.Errorf("%d entries, want 4: two directories and two keys; %v", n, err)
	}
}

// TestRefuses says what is not used as a key, each as an operator or an attacker
// could leave it.
func TestRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, dir string)
	}{
		{"a directory that the group can read", func(t *testing.T, dir string) { chmod(t, dir, 0o750) }},
		{"a directory that the world can enter", func(t *testing.T, dir string) { chmod(t, dir, 0o701) }},
		{"a data key directory that the group can write", func(t *testing.T, dir string) { chmod(t, dir+"/data-keys", 0o720) }},
		{"a key file that the group can read", func(t *testing.T, dir string) { chmod(t, dir+"/ledger.pem", 0o640) }},
		{"a key file that the world can read", func(t *testing.T, dir string) { chmod(t, dir+"/ledger.pem", 0o604) }},
		{"a key file that is a symbolic link", func(t *testing.T, dir string) {
			rename(t, dir+"/ledger.pem", dir+"/real.pem")
			symlink(t, "real.pem", dir+"/ledger.pem")
		}},
		{"a directory that is a symbolic link", func(t *testing.T, dir string) {
			rename(t, dir, dir+"-real")
			symlink(t, dir+"-real", dir)
		}},
		{"a key file that is a FIFO", func(t *testing.T, dir string) {
			rename(t, dir+"/ledger.pem", dir+"/real.pem")
			if err := syscall.Mkfifo(dir+"/ledger.pem", 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a key file of another purpose", func(t *testing.T, dir string) { rename(t, dir+"/status-list.pem", dir+"/ledger.pem") }},
		{"an empty key file", func(t *testing.T, dir string) { write(t, dir+"/ledger.pem", nil) }},
		{"a key file with something after the key", func(t *testing.T, dir string) {
			b, _ := os.ReadFile(dir + "/ledger.pem")
			write(t, dir+"/ledger.pem", append(b, b...))
		}},
		{"a key file of garbage", func(t *testing.T, dir string) {
			write(t, dir+"/ledger.pem", []byte("-----BEGIN PRIVATE KEY-----\nPurpose: ledger\n\nAAAA\n-----END PRIVATE KEY-----\n"))
		}},
		{"a key file of a megabyte", func(t *testing.T, dir string) { write(t, dir+"/ledger.pem", make([]byte, 1<<20)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			s := open(t, dir)
			for _, p := range purposes {
				if _, err := s.Signer(p); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
			tt.harm(t, dir)
			s, err := keystore.Open(dir)
			if err == nil {
				defer s.Close()
				_, err = s.Signer(keystore.Ledger)
			}
			if !errors.Is(err, keystore.ErrUnsafe) {
				t.Errorf("err = %v, want unsafe", err)
			}
		})
	}
}

func TestForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir)
	if _, err := s.Signer(keystore.Ledger); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir+"/ledger.pem", 65534, -1); err != nil {
		t.Skip("this file system does not keep owners")
	}
	if _, err := open(t, dir).Signer(keystore.Ledger); !errors.Is(err, keystore.ErrUnsafe) {
		t.Errorf("a foreign file: err = %v, want unsafe", err)
	}
	if err := os.Chown(dir, 65534, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(dir); !errors.Is(err, keystore.ErrUnsafe) {
		t.Errorf("a foreign directory: err = %v, want unsafe", err)
	}
}

// Two processes that start at the same moment end up with one key.
func TestSignerRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	stores := make([]*keystore.Store, 8)
	for i := range stores {
		stores[i] = open(t, dir)
	}
	public := make([]string, len(stores))
	data := make([]string, len(stores))
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			k, err := s.Signer(keystore.Gateway)
			if err != nil {
				t.Error(err)
				return
			}
			public[i] = k.Thumbprint()
			d, err := s.DataKey("subject")
			if err != nil {
				t.Error(err)
			}
			data[i] = string(d)
		})
	}
	wg.Wait()
	for i := range stores {
		if public[i] != public[0] || data[i] != data[0] {
			t.Fatal("two stores made two keys")
		}
	}
}

func TestClose(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"))
	k, err := s.Signer(keystore.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.Sign(nil, []byte("m"), crypto.Hash(0)); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("a key signed after close, err = %v", err)
	}
	if _, err := s.Signer(keystore.Ledger); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("signer after close: err = %v", err)
	}
	if _, err := s.DataKey("a"); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("data key after close: err = %v", err)
	}
	if err := s.Erase("a"); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("erase after close: err = %v", err)
	}
}

func TestErase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir)
	alice, err := s.DataKey("alice")
	if err != nil || len(alice) != 32 {
		t.Fatalf("%d bytes, %v", len(alice), err)
	}
	bob, err := s.DataKey("bob")
	if err != nil {
		t.Fatal(err)
	}
	kept := bytes.Clone(alice)
	clear(alice) // the caller's copy is the caller's
	if again, err := s.DataKey("alice"); err != nil || !bytes.Equal(again, kept) {
		t.Fatalf("another key for the same name, %v", err)
	}
	if err := s.Erase("alice"); err != nil {
		t.Fatal(err)
	}
	if err := s.Erase("alice"); err != nil {
		t.Errorf("erasing twice: %v", err)
	}
	for _, store := range []*keystore.Store{s, open(t, dir)} {
		if _, err := store.LookupDataKey("alice"); !errors.Is(err, keystore.ErrNoKey) {
			t.Errorf("an erased key: err = %v, want no key", err)
		}
		if b, err := store.LookupDataKey("bob"); err != nil || !bytes.Equal(b, bob) {
			t.Errorf("erasing one key changed another, %v", err)
		}
	}
	if fresh, err := s.DataKey("alice"); err != nil || bytes.Equal(fresh, kept) {
		t.Errorf("the erased key came back, %v", err)
	}
	for _, name := range []string{"", strings.Repeat("n", 4097)} {
		if _, err := s.DataKey(name); err == nil {
			t.Errorf("a name of %d bytes was taken", len(name))
		}
	}
}

// RFC 9679 section 3: SHA-256 over the deterministic encoding of the required
// members, here of the key of RFC 8037 appendix A.2.
func TestThumbprint(t *testing.T) {
	x, err := hex.DecodeString("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
	if err != nil {
		t.Fatal(err)
	}
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := enc.Marshal(map[int]any{1: 1, -1: 6, -2: x})
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(b)
	if got := keystore.Thumbprint(x); got != hex.EncodeToString(want[:]) {
		t.Errorf("thumbprint %s, want %x", got, want)
	}
}

func TestDescribeSaysPlaintext(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"))
	if text := strings.Join(s.Describe(), " "); !strings.Contains(text, "not encrypted") {
		t.Errorf("doctor does not say that node keys are unencrypted: %s", text)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
