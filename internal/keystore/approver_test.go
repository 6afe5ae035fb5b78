package keystore_test

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pilox/vault/internal/keystore"
)

func phrase(s string) keystore.Passphrase { return func() ([]byte, error) { return []byte(s), nil } }

func TestApprover(t *testing.T) {
	dir := keystore.Approvers{Dir: filepath.Join(t.TempDir(), "approvers"), WorkFactor: 4}
	if all, err := dir.List(); err != nil || len(all) != 0 {
		t.Fatalf("a missing directory lists %v, %v", all, err)
	}
	lead, err := dir.Create("lead", phrase("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if lead.Unprotected || lead.ID() != "key:lead" {
		t.Errorf("%+v", lead)
	}
	if _, err := dir.CreateUnprotected("test"); err != nil {
		t.Fatal(err)
	}

	k, err := dir.Open("lead", phrase("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Sign([]byte("m"))
	if err != nil || !ed25519.Verify(lead.Public, []byte("m"), sig) {
		t.Errorf("bad signature, %v", err)
	}
	k.Close()
	if _, err := k.Sign([]byte("m")); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("a closed key signed, %v", err)
	}

	bare, err := dir.Open("test", nil)
	if err != nil || !bare.Unprotected {
		t.Fatalf("unprotected key: %+v, %v", bare, err)
	}
	all, err := dir.List()
	if err != nil || len(all) != 2 || all[0].Name != "lead" || !all[1].Unprotected {
		t.Errorf("list = %+v, %v", all, err)
	}
	b, err := os.ReadFile(dir.Dir + "/lead.key")
	if err != nil || !strings.HasPrefix(string(b), "age-encryption.org/v1\n-> scrypt ") {
		t.Errorf("not an age file: %.40q %v", b, err)
	}
}

func TestApproverRefuses(t *testing.T) {
	dir := keystore.Approvers{Dir: filepath.Join(t.TempDir(), "approvers"), WorkFactor: 4}
	for _, name := range []string{"lead", "deputy"} {
		if _, err := dir.Create(name, phrase("correct horse")); err != nil {
			t.Fatal(err)
		}
	}
	failing := func() ([]byte, error) { return nil, os.ErrDeadlineExceeded }
	for _, tt := range []struct {
		name string
		do   func() error
		want error
	}{
		{"a wrong passphrase", func() error { _, err := dir.Open("lead", phrase("wrong horse")); return err }, keystore.ErrPassphrase},
		{"no passphrase for a protected key", func() error { _, err := dir.Open("lead", nil); return err }, keystore.ErrPassphrase},
		{"an empty passphrase", func() error { _, err := dir.Open("lead", phrase("")); return err }, keystore.ErrPassphrase},
		{"a passphrase that cannot be had", func() error { _, err := dir.Open("lead", failing); return err }, os.ErrDeadlineExceeded},
		{"a key that is not there", func() error { _, err := dir.Open("nobody", phrase("correct horse")); return err }, keystore.ErrNoKey},
		{"a new key with a short passphrase", func() error { _, err := dir.Create("new", phrase("seven77")); return err }, keystore.ErrPassphrase},
		{"a new key without a passphrase", func() error { _, err := dir.Create("new", nil); return err }, keystore.ErrPassphrase},
		{"a name that is taken", func() error { _, err := dir.Create("lead", phrase("correct horse")); return err }, os.ErrExist},
		{"a name that leaves the directory", func() error { _, err := dir.Create("../lead", phrase("correct horse")); return err }, nil},
		{"a hidden name", func() error { _, err := dir.CreateUnprotected(".lead"); return err }, nil},
		{"a private half that is not of the public one", func() error {
			b, _ := os.ReadFile(dir.Dir + "/deputy.key")
			if err := os.WriteFile(dir.Dir+"/lead.key", b, 0o600); err != nil {
				return err
			}
			_, err := dir.Open("lead", phrase("correct horse"))
			return err
		}, keystore.ErrUnsafe},
		{"a protected key that claims to be unprotected", func() error {
			b, _ := os.ReadFile(dir.Dir + "/lead.pub")
			if err := os.WriteFile(dir.Dir+"/lead.pub", []byte(strings.Replace(string(b), " protected", " unprotected", 1)), 0o600); err != nil {
				return err
			}
			_, err := dir.Open("lead", phrase("correct horse"))
			return err
		}, keystore.ErrUnsafe},
		{"a public file under another name", func() error {
			if err := os.Rename(dir.Dir+"/deputy.pub", dir.Dir+"/chief.pub"); err != nil {
				return err
			}
			_, err := dir.List()
			return err
		}, keystore.ErrUnsafe},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do()
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "horse") {
				t.Errorf("the error holds the passphrase: %v", err)
			}
		})
	}
}

// A crafted file must not make the opener use gigabytes.
func TestApproverWorkFactor(t *testing.T) {
	dir := keystore.Approvers{Dir: filepath.Join(t.TempDir(), "approvers"), WorkFactor: 4}
	if _, err := dir.Create("lead", phrase("correct horse")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dir.Dir + "/lead.key")
	if err != nil {
		t.Fatal(err)
	}
	heavy := strings.Replace(string(b), " 4\n", " 30\n", 1)
	if heavy == string(b) {
		t.Fatal("work factor not found in the file")
	}
	if err := os.WriteFile(dir.Dir+"/lead.key", []byte(heavy), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Open("lead", phrase("correct horse")); err == nil {
		t.Error("opened")
	}
	dir.WorkFactor = 21
	if _, err := dir.Create("new", phrase("correct horse")); err == nil {
		t.Error("made a key that could not be opened")
	}
}

func TestReaderPassphrase(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		fails          bool
	}{
		{"a line", "correct horse\n", "correct horse", false},
		{"a line of Windows", "correct horse\r\n", "correct horse", false},
		{"no newline", "correct horse", "correct horse", false},
		{"only the first line counts", "one line\ntwo", "one line", false},
		{"empty", "", "", true},
		{"an empty line", "\nsecond", "", true},
		{"longer than allowed", strings.Repeat("x", 1025), "", true},
		{"as long as allowed", strings.Repeat("x", 1024) + "\n", strings.Repeat("x", 1024), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keystore.ReaderPassphrase(strings.NewReader(tt.in))()
			if string(got) != tt.want || (err != nil) != tt.fails {
				t.Errorf("%.40q, %v", got, err)
			}
		})
	}
}

func TestTerminalPassphraseNeedsTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := keystore.TerminalPassphrase(r, "passphrase", false)(); !errors.Is(err, keystore.ErrPassphrase) {
		t.Errorf("err = %v", err)
	}
}

// FuzzParseApprover: whatever is accepted is what the package writes.
func FuzzParseApprover(f *testing.F) {
	f.Add("vault-approver-v1 lead protected 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n")
	f.Add("vault-approver-v1 lead unprotected 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n")
	f.Add("vault-approver-v1  lead x")
	f.Fuzz(func(t *testing.T, line string) {
		a, err := keystore.ParseApprover(line)
		if err != nil {
			return
		}
		if len(a.Public) != ed25519.PublicKeySize || strings.ContainsAny(a.Name, "/ \n") || strings.Count(line, "\n") != 1 {
			t.Errorf("accepted %q as %+v", line, a)
		}
	})
}
