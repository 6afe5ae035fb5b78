//go:build unix

package anchor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestRekorV1Server anchors in a Rekor v1 server as its project ships it, over
// Trillian's log server and signer on PostgreSQL.
func TestRekorV1Server(t *testing.T) {
	const trillian = "github.com/google/trillian"
	const version = "@v1.7.3"
	rekor := build(t, "rekor-v1", "github.com/sigstore/rekor/cmd/rekor-server@v1.5.4")
	server := build(t, "rekor-v1", trillian+"/cmd/trillian_log_server"+version)
	signer := build(t, "rekor-v1", trillian+"/cmd/trillian_log_signer"+version)

	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", trillian+version)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	schema, err := os.ReadFile(filepath.Join(module.Dir, "storage", "postgresql", "schema", "storage.sql"))
	if err != nil {
		t.Fatal(err)
	}
	db := vaulttest.StartPostgres(t)
	uri := db.URL(t, "trillian")
	db.SQL(t, "trillian", string(schema))
	log := port(t)
	start(t, "127.0.0.1:"+log, server, "--storage_system=postgresql", "--postgresql_uri="+uri, "--quota_system=noop", "--rpc_endpoint=127.0.0.1:"+log, "--http_endpoint=")
	rpc := port(t)
	start(t, "127.0.0.1:"+rpc, signer, "--storage_system=postgresql", "--postgresql_uri="+uri, "--quota_system=noop", "--rpc_endpoint=127.0.0.1:"+rpc, "--http_endpoint=", "--force_master")
	p := port(t)
	start(t, "127.0.0.1:"+p, rekor, "serve", "--rekor_server.address=127.0.0.1", "--port="+p, "--rekor_server.hostname=rekor-v1-local", "--rekor_server.signer=memory",
		"--trillian_log_server.address=127.0.0.1", "--trillian_log_server.port="+log, "--enable_retrieve_api=false", "--enabled_api_endpoints=createLogEntry,getPublicKey")

	b := newBench(t)
	b.cfg.RekorV1, b.cfg.Timeout = "http://127.0.0.1:"+p, 0
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.cfg.RekorV1+"/api/v1/log/publicKey", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	key, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.RekorV1Key = string(key)
	b.open(t)
	for range 3 {
		b.source.grow(3)
		if err := b.Now(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, v1, _ := b.check(t); v1 != uint64(b.source.Size) {
			t.Errorf("logged at %d, want %d", v1, b.source.Size)
		}
	}
	t.Run("Sigstore's verifier", func(t *testing.T) {
		judge := vaulttest.Judges(t)
		list, err := b.Anchors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(a evidence.Anchor) bool { return a.Kind != evidence.AnchorRekorV1 })
		if len(list) != 3 {
			t.Fatalf("%d entries are kept, want 3", len(list))
		}
		dir := t.TempDir()
		file, pub := filepath.Join(dir, "entry.json"), filepath.Join(dir, "key.pem")
		for i, a := range list {
			bad := bytes.Replace(a.Proof, []byte(`"integratedTime":`), []byte(`"integratedTime":1`), 1)
			for name, entry := range map[string][]byte{"as it is": a.Proof, "with another time": bad} {
				if err := errors.Join(os.WriteFile(file, entry, 0o600), os.WriteFile(pub, key, 0o600)); err != nil {
					t.Fatal(err)
				}
				if out, err := judge("rekor-v1", file, pub); (err == nil) != (name == "as it is") {
					t.Errorf("entry %d, %s: %v: %s", i, name, err, out)
				}
			}
		}
	})
}
