package evidence

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pilox/vault/internal/vaulttest"
)

const opensslConfig = `
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
[signer]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
serial = serial
signer_digest = sha512
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1, millisecs:500
ess_cert_id_alg = sha256
[sha1]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
ess_cert_id_alg = sha1
`

// TestOpenSSLStamps reads tokens that OpenSSL makes, with RSA and a CA between, in a
// bundle and by both verifiers.
func TestOpenSSLStamps(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		vaulttest.Missing(t, "openssl", "openssl is not there")
	}
	py := python(t)
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), openssl, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v: %s", args, err, out)
		}
	}
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("conf", []byte(opensslConfig))
	write("serial", []byte("01\n"))
	run("req", "-x509", "-config", "conf", "-extensions", "ca", "-newkey", "rsa:3072", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=root.test", "-days", "9")
	for _, c := range []struct{ name, by, ext string }{{"between", "root", "ca"}, {"stamps", "between", "signer"}} {
		run("req", "-config", "conf", "-newkey", "rsa:2048", "-nodes", "-keyout", c.name+".key", "-out", c.name+".csr", "-subj", "/O=Test/CN="+c.name+".test")
		run("x509", "-req", "-in", c.name+".csr", "-CA", c.by+".pem", "-CAkey", c.by+".key", "-set_serial", "3", "-days", "9", "-extfile", "conf", "-extensions", c.ext, "-out", c.name+".pem")
	}
	b := filled(t)
	signed := b.checkpoint(17, "log")
	cp, err := unverifiedCheckpoint(signed)
	if err != nil {
		t.Fatal(err)
	}
	digest := cp.Digest()
	roots, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	run("ts", "-query", "-digest", hex.EncodeToString(digest[:]), "-sha256", "-cert", "-out", "query")
	for section, want := range map[string]Problem{"tsa": ProblemNone, "sha1": ProblemUnstamped} {
		run("ts", "-reply", "-config", "conf", "-section", section, "-queryfile", "query", "-signer", "stamps.pem", "-inkey", "stamps.key", "-chain", "between.pem", "-token_out", "-out", "token")
		token, err := os.ReadFile(filepath.Join(dir, "token"))
		if err != nil {
			t.Fatal(err)
		}
		b.anchors = []Anchor{{string(signed), AnchorTSA, nil, token}}
		bundle := b.bundle("t-a", 0)
		r := verify(t, bundle, Options{Keys: []string{b.key}, TSARoots: roots})
		if r.Problem != want || want == ProblemNone && (r.AnchoredBy[0] != "tsa stamps.test at 17" || r.Before == nil) {
			t.Errorf("%s: %s", section, r)
		}
		cmd := exec.CommandContext(t.Context(), py, "../contrib/verify-python/vault_verify.py", write("bundle.zip", bundle), "--key", b.key, "--tsa-roots", filepath.Join(dir, "root.pem"), "--json")
		out, err := cmd.Output()
		var p struct {
			Problem Problem
			Before  *time.Time
		}
		if json.Unmarshal(out, &p) != nil || p.Problem != want || (p.Before == nil) != (r.Before == nil) || p.Before != nil && !p.Before.Equal(*r.Before) {
			t.Errorf("%s: Python says %v: %s", section, err, out)
		}
	}
}
