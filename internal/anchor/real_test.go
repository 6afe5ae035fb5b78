package anchor

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	_ "modernc.org/sqlite" // the witness keeps its logs in such a file

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

// build installs a pinned program from the module proxy. That takes minutes where
// nothing is cached, so it is done only where PVAULT_REQUIRE names it.
func build(t *testing.T, what, pkg string) string {
	t.Helper()
	if !vaulttest.Required(what) {
		vaulttest.Missing(t, what, pkg+" takes minutes to build")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "install", pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	list, err := filepath.Glob(dir + "/*")
	if err != nil || len(list) != 1 {
		t.Fatalf("%s was installed as %v, %v", pkg, list, err)
	}
	return list[0]
}

// port returns a port that is free now.
func port(t *testing.T) string {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// start runs a server until the test ends, and returns when it listens on addr.
func start(t *testing.T, addr, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 600 {
		if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr); err == nil {
			c.Close()
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Fatalf("%s does not listen on %s", name, addr)
}

// TestRekorServer anchors in a Rekor v2 server as its project ships it.
func TestRekorServer(t *testing.T) {
	bin := build(t, "rekor", "github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix@v2.3.0")
	dir := t.TempDir()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	if b.rekor.VKey, err = note.NewEd25519VerifierKey("rekor-local", pub); err != nil {
		t.Fatal(err)
	}
	p := port(t)
	start(t, "127.0.0.1:"+p, bin, "serve", "--http-address=127.0.0.1", "--http-port="+p, "--grpc-address=127.0.0.1", "--grpc-port="+port(t),
		"--http-metrics-port="+port(t), "--hostname=rekor-local", "--storage-dir="+filepath.Join(dir, "tiles"), "--signer-filepath="+key,
		"--checkpoint-interval=1s", "--batch-max-age=10ms")
	b.cfg.Rekor, b.cfg.RekorKey, b.cfg.Timeout = "http://127.0.0.1:"+p, b.rekor.VKey, 0
	b.open(t)
	for range 3 {
		b.source.grow(3)
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, k, _, _ := b.check(t); k != uint64(b.source.Size) {
			t.Errorf("logged at %d, want %d", k, b.source.Size)
		}
	}
	t.Run("Sigstore's verifier", func(t *testing.T) {
		judge := vaulttest.Judges(t)
		list, err := b.Anchors(t.Context())
		if err != nil || len(list) == 0 {
			t.Fatalf("%d anchors, %v", len(list), err)
		}
		for i, a := range list {
			if a.Kind != evidence.AnchorRekor {
				continue
			}
			file := filepath.Join(dir, fmt.Sprintf("entry-%d.json", i))
			if err := os.WriteFile(file, a.Proof, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := judge("rekor", file, b.rekor.VKey); err != nil {
				t.Errorf("anchor %d: %v: %s", i, err, out)
			}
			bad := bytes.Replace(a.Proof, []byte(`"hashes":["`), []byte(`"hashes":["AAAA`), 1)
			if bytes.Equal(bad, a.Proof) {
				bad = bytes.Replace(a.Proof, []byte(`"logIndex":"`), []byte(`"logIndex":"1`), 2)
			}
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := judge("rekor", file, b.rekor.VKey); err == nil {
				t.Errorf("anchor %d: an altered entry passes: %s", i, out)
			}
		}
	})
}

// TestTimestampServer has checkpoints stamped by Sigstore's time-stamp authority as its
// project ships it, with its chain in the token and without, and others judge what is
// kept.
func TestTimestampServer(t *testing.T) {
	bin := build(t, "tsa", "github.com/sigstore/timestamp-authority/v2/cmd/timestamp-server@v2.1.3")
	for name, tc := range map[string]struct {
		args []string
		skip int // certificates of the chain that are not pinned
	}{
		"the root is pinned and the chain in the token": {[]string{"--include-chain-in-response"}, 2},
		"the chain is pinned":                           {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := port(t)
			start(t, "127.0.0.1:"+p, bin, append([]string{"serve", "--host=127.0.0.1", "--port=" + p, "--timestamp-signer=memory", "--disable-ntp-monitoring"}, tc.args...)...)
			stampAndJudge(t, "http://127.0.0.1:"+p+"/api/v1/timestamp", tc.skip)
		})
	}
}

func stampAndJudge(t *testing.T, server string, skip int) {
	b := newBench(t)
	b.cfg.TSA, b.cfg.Timeout = server, 0
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server+"/certchain", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	chain, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	certs := strings.SplitAfter(string(chain), "-----END CERTIFICATE-----\n")
	if len(certs) != 4 { // its own, one between, the root, and nothing
		t.Fatalf("no chain of three: %s", chain)
	}
	b.cfg.TSARoots = []byte(strings.Join(certs[skip:], ""))
	b.open(t)
	for range 3 {
		b.source.grow(3)
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, _, s := b.check(t); s != uint64(b.source.Size) {
			t.Errorf("stamped at %d, want %d", s, b.source.Size)
		}
	}
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list, err := b.Anchors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list = slices.DeleteFunc(list, func(a evidence.Anchor) bool { return a.Kind != evidence.AnchorTSA })
	if len(list) != 3 {
		t.Fatalf("%d tokens are kept, want 3", len(list))
	}
	roots := file("roots.pem", b.cfg.TSARoots)
	judged := func(t *testing.T, judge func(token, text string) (string, error)) {
		t.Helper()
		for i, a := range list {
			text, _, _ := strings.Cut(a.Checkpoint, "\n\n")
			token, right := file("token.der", a.Proof), file("text", []byte(text+"\n"))
			if out, err := judge(token, right); err != nil {
				t.Errorf("token %d: %v: %s", i, err, out)
			}
			if out, err := judge(token, file("other", []byte(text))); err == nil {
				t.Errorf("token %d passes for another text: %s", i, out)
			}
			bad := bytes.Clone(a.Proof)
			bad[len(bad)-1] ^= 1 // in the signature
			if out, err := judge(file("bad.der", bad), right); err == nil {
				t.Errorf("token %d passes with another signature: %s", i, out)
			}
		}
	}
	t.Run("OpenSSL", func(t *testing.T) {
		openssl, err := exec.LookPath("openssl")
		if err != nil {
			vaulttest.Missing(t, "openssl", "openssl is not there")
		}
		judged(t, func(token, text string) (string, error) {
			out, err := exec.CommandContext(t.Context(), openssl, "ts", "-verify", "-in", token, "-token_in", "-data", text, "-CAfile", roots).CombinedOutput()
			return string(out), err
		})
	})
	t.Run("Sigstore's verifier", func(t *testing.T) {
		judge := vaulttest.Judges(t)
		judged(t, func(token, text string) (string, error) { return judge("tsa", token, text, roots) })
	})
}

// TestWitnessServer is cosigned by litewitness, a witness as its project ships it.
func TestWitnessServer(t *testing.T) {
	bin := build(t, "witness", "filippo.io/torchwood/cmd/litewitness@v0.9.0")
	dir, err := os.MkdirTemp("", "pvw") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: priv}); err != nil {
		t.Fatal(err)
	}
	socket, err := new(net.ListenConfig).Listen(t.Context(), "unix", dir+"/agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, c)
		}
	}()
	sshKey, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-db", dir + "/w.db", "-name", "w.example", "-ssh-agent", dir + "/agent", "-key", ssh.FingerprintSHA256(sshKey)}
	b := newBench(t)
	db, err := sql.Open("sqlite", dir+"/w.db")
	if err != nil {
		t.Fatal(err)
	}
	empty := sha256.Sum256(nil)
	for _, q := range [][]any{
		{"CREATE TABLE log (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL, tree_hash TEXT NOT NULL)"},
		{"CREATE TABLE key (origin TEXT NOT NULL, key TEXT NOT NULL, FOREIGN KEY(origin) REFERENCES log(origin))"},
		{"INSERT INTO log VALUES (?, 0, ?)", origin, base64.StdEncoding.EncodeToString(empty[:])},
		{"INSERT INTO key VALUES (?, ?)", origin, b.source.vkey},
	} {
		if _, err := db.ExecContext(t.Context(), q[0].(string), q[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + port(t)
	start(t, addr, bin, append(args, "-listen", addr)...)
	keyed := append([]byte{4}, pub...)
	id := sha256.Sum256(append([]byte("w.example\n"), keyed...))
	b.cfg.Policy = fmt.Appendf(nil, "witness w w.example+%08x+%s http://%s\nquorum w\n", binary.BigEndian.Uint32(id[:4]), base64.StdEncoding.EncodeToString(keyed), addr)
	for range 3 { // each with no memory of what the witness holds
		b.open(t)
		b.source.grow(5)
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w, _, _, _ := b.check(t); w != uint64(b.source.Size) {
			t.Errorf("cosigned at %d, want %d", w, b.source.Size)
		}
	}
}
