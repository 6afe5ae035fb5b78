package daemon_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// A holder is an agent with a key of its own, to which capabilities are bound.
type holder struct{ key crypto.Signer }

// A signer is an approver key that somebody uses for other things too.
type signer struct {
	approver *daemon.Approver
	public   ed25519.PublicKey
}

// Public returns the public key.
func (s signer) Public() crypto.PublicKey { return s.public }

// Sign signs a message that is not hashed, as Ed25519 wants it.
func (s signer) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return s.approver.Sign(message)
}

func newHolder(t *testing.T) holder {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return holder{key}
}

// bind is how a task is bound to the holder.
func (h holder) bind() string {
	pub, ok := h.key.Public().(ed25519.PublicKey)
	if !ok {
		panic("not Ed25519")
	}
	return "key:" + base64.RawURLEncoding.EncodeToString(pub)
}

// splice puts a child link that the holder signed for poor onto the root of rich.
func (h holder) splice(t *testing.T, rich, poor string) string {
	t.Helper()
	chain, err := capability.ParseText(poor)
	if err != nil {
		t.Fatal(err)
	}
	longer, err := capability.Attenuate(chain, capability.Link{Depth: capability.Depth(0)}, capability.Signer{Key: h.key})
	if err != nil {
		t.Fatal(err)
	}
	links := func(raw []byte) (out []cbor.RawMessage) {
		if err := cbor.Unmarshal(raw, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	root, err := capability.DecodeText(rich)
	if err != nil {
		t.Fatal(err)
	}
	spliced, err := cbor.Marshal([]cbor.RawMessage{links(root)[0], links(longer.Bytes())[1]})
	if err != nil {
		t.Fatal(err)
	}
	prefix, _, _ := strings.Cut(rich, ".")
	return prefix + "." + base64.RawURLEncoding.EncodeToString(spliced)
}

// A session is a holder's open session with a daemon.
type session struct{ *capability.Session }

// open opens a session over the loopback listener.
func (h holder) open(t *testing.T, r *rig, token string) session {
	t.Helper()
	chain, err := capability.ParseText(token)
	if err != nil {
		t.Fatal(err)
	}
	s := &capability.Session{Chain: chain, Key: h.key}
	if err := s.Gateway.UnmarshalText([]byte(r.status().SessionKey)); err != nil {
		t.Fatal(err)
	}
	request, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post("http://"+r.addr+"/session", "text/plain", strings.NewReader(base64.RawURLEncoding.EncodeToString(request)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := base64.RawURLEncoding.DecodeString(string(body))
	if err != nil {
		t.Fatalf("%s: %s", res.Status, body)
	}
	if err := s.Finish(answer); err != nil {
		t.Fatal(err)
	}
	return session{s}
}

// sign returns the headers that prove one call.
func (s session) sign(t *testing.T, server, id, tool, args string) http.Header {
	t.Helper()
	digest, err := vault.ParseDigest(server)
	if err != nil {
		t.Fatal(err)
	}
	call := &vault.Call{ID: id, Kind: vault.KindTool, Target: vault.Target{Server: vault.ServerID(digest), Name: tool}, Args: vault.MustArgs(args)}
	if err := s.Sign(call); err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString
	return http.Header{
		"Authorization": {"Bearer " + s.Chain.Text()},
		"Vault-Session": {text(call.Credential.Session)},
		"Vault-Seq":     {strconv.FormatUint(call.Credential.Seq, 10)},
		"Vault-Mac":     {text(call.Credential.MAC)},
		"Vault-Nonce":   {text(call.Credential.Nonce)},
	}
}

// post makes one tool call over the loopback listener, in the era without
// sessions, and returns what came back.
func (r *rig) post(t *testing.T, header http.Header, id, tool, args string) (status int, body string) {
	t.Helper()
	const meta = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}`
	message := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + tool + `","arguments":` + args + `,"_meta":{` + meta + `,"dev.pilox.vault/call_id":"` + id + `"}}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/mcp", strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	for k, v := range map[string]string{
		"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
		"MCP-Protocol-Version": "2026-07-28", "MCP-Method": "tools/call", "MCP-Name": tool,
	} {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// status asks the daemon what it is.
func (r *rig) status() admin.Status {
	r.t.Helper()
	s, err := r.admin.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// wantSound checks that the whole ledger verifies under the daemon's key, and that
// every intent in it has exactly one end.
func (r *rig) wantSound() {
	r.t.Helper()
	bundle, err := r.admin.Export(r.t.Context(), admin.ExportRequest{Disclose: true})
	if err != nil {
		r.t.Fatal(err)
	}
	report, err := evidence.VerifyBytes(bundle, evidence.Options{Keys: []string{r.status().LedgerKey}})
	if err != nil || report.Problem != evidence.ProblemNone {
		r.t.Errorf("the ledger does not verify: %v\n%s", err, report)
	}
	// An outcome is on record at most 20 ms after the answer.
	eventually(r.t, "every intent has one end", func() bool {
		open := map[string]int{}
		for _, rec := range r.records("") {
			switch p := vault.Phase(rec.Leaf.Phase); {
			case rec.Leaf.Class != string(vault.ClassCall):
			case p == vault.PhaseIntent:
				open[rec.Leaf.Run+rec.Leaf.Call]++
			case p.Closes():
				open[rec.Leaf.Run+rec.Leaf.Call]--
			}
		}
		for _, n := range open {
			if n != 0 {
				return false
			}
		}
		return true
	})
}

// tinyDisk returns a data directory on a filesystem of its own with 8 MiB.
func tinyDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pvd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		vaulttest.Missing(t, "mount", "no filesystem can be mounted here: "+err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return filepath.Join(dir, "data")
}

// fill writes a file until the filesystem has no room left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range []int{1 << 16, 512, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(bytes.Repeat([]byte("x"), block))
		}
	}
}
