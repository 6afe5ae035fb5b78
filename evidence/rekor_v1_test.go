package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// rekorV1Log has a Rekor v1 log take cp, between two entries of others.
func rekorV1Log(t testing.TB, cp Checkpoint) (entry []byte, key string) {
	t.Helper()
	d := sha256.Sum256([]byte("anchor"))
	anchor, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		t.Fatal(err)
	}
	digest := cp.Digest()
	sig, err := anchor.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(anchor.Public())
	if err != nil {
		t.Fatal(err)
	}
	log := vaulttest.NewRekorV1("rekor-v1.test")
	return log.Enter(RekorV1Body(cp, sig, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))), log.Key()
}

// v1Lies are entries that a log did not make of this checkpoint, by how they are made.
var v1Lies = map[string]func(e map[string]any){
	"taken at another time":      func(e map[string]any) { e["integratedTime"] = vaulttest.RekorV1At - 1 },
	"with another index":         func(e map[string]any) { e["logIndex"] = 7 },
	"of another log":             func(e map[string]any) { e["logID"] = strings.Repeat("0", 64) },
	"with another promise":       func(e map[string]any) { proofOf(e, "")["signedEntryTimestamp"] = "AAAA" },
	"without a promise":          func(e map[string]any) { delete(proofOf(e, ""), "signedEntryTimestamp") },
	"at another place in a tree": func(e map[string]any) { proofOf(e, "inclusionProof")["logIndex"] = 0 },
	"in a tree of another size":  func(e map[string]any) { proofOf(e, "inclusionProof")["treeSize"] = 3 },
	"without a path":             func(e map[string]any) { proofOf(e, "inclusionProof")["hashes"] = []string{} },
	"without a checkpoint":       func(e map[string]any) { delete(proofOf(e, "inclusionProof"), "checkpoint") },
	"under a changed checkpoint": func(e map[string]any) {
		p := proofOf(e, "inclusionProof")
		p["checkpoint"] = strings.Replace(p["checkpoint"].(string), " - 42", " - 43", 1)
	},
	"without a body": func(e map[string]any) { delete(e, "body") },
}

func proofOf(e map[string]any, member string) map[string]any {
	v := e["verification"].(map[string]any)
	if member == "" {
		return v
	}
	return v[member].(map[string]any)
}

func changedV1(t testing.TB, entry []byte, change func(map[string]any)) []byte {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(entry, &e); err != nil {
		t.Fatal(err)
	}
	change(e)
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRekorV1(t *testing.T) {
	cp := testCheckpoint(t, 16)
	entry, key := rekorV1Log(t, cp)
	got, err := VerifyRekorV1(entry, cp, key)
	if err != nil || got.Log != "rekor-v1.test" || !got.Time.Equal(time.Unix(vaulttest.RekorV1At, 0)) {
		t.Fatalf("%+v, %v", got, err)
	}
	same := changedV1(t, entry, func(map[string]any) {})
	if _, err := VerifyRekorV1(same, cp, key); err != nil {
		t.Errorf("written again: %v", err)
	}
	for name, change := range v1Lies {
		if _, err := VerifyRekorV1(changedV1(t, entry, change), cp, key); err == nil {
			t.Errorf("an entry %s was taken", name)
		}
	}
	if _, err := VerifyRekorV1(entry, testCheckpoint(t, 15), key); err == nil {
		t.Error("an entry of another checkpoint was taken")
	}
	if _, err := VerifyRekorV1(entry, cp, vaulttest.NewRekorV1("stranger.test").Key()); err == nil {
		t.Error("an entry of another log was taken")
	}
	if _, err := VerifyRekorV1(append(bytes.Clone(entry), bytes.Repeat([]byte(" "), maxRekor)...), cp, key); err == nil {
		t.Error("a long entry was taken")
	}
	for name, k := range map[string]string{"no key": "", "two keys": key + key, "words": "-----BEGIN", "a certificate": string(vaulttest.NewAuthority("a.test", nil).Roots())} {
		if _, err := VerifyRekorV1(entry, cp, k); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := VerifyBytes(nil, Options{RekorKeys: []string{k}}); err == nil {
			t.Errorf("%s, as an option: taken", name)
		}
	}
}

func FuzzRekorV1(f *testing.F) {
	cp := testCheckpoint(f, 16)
	entry, key := rekorV1Log(f, cp)
	f.Add(entry)
	f.Fuzz(func(t *testing.T, entry []byte) {
		other := Checkpoint{Origin: bookOrigin, Size: 16, Root: vault.Digest{1}}
		if _, err := VerifyRekorV1(entry, other, key); err == nil {
			t.Fatal("an entry of another checkpoint")
		}
		if got, err := VerifyRekorV1(entry, cp, key); err == nil && got.Time.Unix() != vaulttest.RekorV1At {
			t.Fatalf("an entry of another time: %+v", got)
		}
	})
}
