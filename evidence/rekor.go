package evidence

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	merkle "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// maxRekor bounds the bytes of a Rekor entry: a body, 64 hashes and a checkpoint.
const maxRekor = 64 << 10

// rekorEntry is what counts of a TransparencyLogEntry of Rekor v2, in protobuf's
// JSON (https://github.com/sigstore/protobuf-specs). The rest is not looked at: the
// leaf is rebuilt from what the verifier knows, and only the proof is taken.
type rekorEntry struct {
	InclusionProof struct {
		LogIndex   string   `json:"logIndex"`
		TreeSize   string   `json:"treeSize"`
		Hashes     [][]byte `json:"hashes"`
		Checkpoint struct {
			Envelope string `json:"envelope"`
		} `json:"checkpoint"`
	} `json:"inclusionProof"`
	CanonicalizedBody []byte `json:"canonicalizedBody"`
}

// rekorBody is a hashedrekord of version 0.0.2 with sorted members, which is its
// RFC 8785 form: it holds base64 and fixed words only.
type rekorBody struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		V002 struct {
			Data struct {
				Algorithm string `json:"algorithm"`
				Digest    []byte `json:"digest"`
			} `json:"data"`
			Signature struct {
				Content  []byte `json:"content"`
				Verifier struct {
					KeyDetails string `json:"keyDetails"`
					PublicKey  struct {
						RawBytes []byte `json:"rawBytes"`
					} `json:"publicKey"`
				} `json:"verifier"`
			} `json:"signature"`
		} `json:"hashedRekordV002"`
	} `json:"spec"`
}

// VerifyRekor reports whether entry, a TransparencyLogEntry of a Rekor v2 log in
// JSON, shows that the log with the verifier key vkey holds the digest of cp. It
// says nothing about when. Whoever submitted it signed with some P-256 key, and
// which one does not matter: the log's word is on the digest.
func VerifyRekor(entry []byte, cp Checkpoint, vkey string) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("rekor entry: "+format, args...)
	}
	if len(entry) > maxRekor {
		return fail("%d bytes, more than %d", len(entry), maxRekor)
	}
	var e rekorEntry
	if err := json.Unmarshal(entry, &e); err != nil {
		return fail("%w", err)
	}
	var body rekorBody
	if err := json.Unmarshal(e.CanonicalizedBody, &body); err != nil {
		return fail("body: %w", err)
	}
	sig, der := body.Spec.V002.Signature.Content, body.Spec.V002.Signature.Verifier.PublicKey.RawBytes
	digest := cp.Digest()
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return fail("anchor key: %w", err)
	}
	if key, ok := pub.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || !ecdsa.VerifyASN1(key, digest[:], sig) {
		return fail("the signature is not of this checkpoint")
	}
	leaf := RekorBody(cp, sig, der)
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return fail("key: %w", err)
	}
	p := &e.InclusionProof
	n, err := note.Open([]byte(p.Checkpoint.Envelope), note.VerifierList(v))
	if err != nil {
		return fail("checkpoint: %w", err)
	}
	// Rekor writes no extension lines today, and may.
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[0] != v.Name() {
		return fail("checkpoint: not of this log")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != p.TreeSize {
		return fail("checkpoint: of another size")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return fail("checkpoint: no root")
	}
	index, err := strconv.ParseUint(p.LogIndex, 10, 63)
	if err != nil {
		return fail("index: %w", err)
	}
	h := HashLeaf(leaf)
	if merkle.VerifyInclusion(rfc6962.DefaultHasher, index, size, h[:], p.Hashes, root) != nil {
		return errors.New("rekor entry: not in the log")
	}
	return nil
}

// RekorBody returns the leaf that a Rekor v2 log makes of a checkpoint's digest, the
// P-256 signature over its text and the key's PKIX form.
func RekorBody(cp Checkpoint, sig, key []byte) []byte {
	digest := cp.Digest()
	b64 := base64.StdEncoding.EncodeToString
	return []byte(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"SHA2_256","digest":"` +
		b64(digest[:]) + `"},"signature":{"content":"` + b64(sig) + `","verifier":{"keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{"rawBytes":"` +
		b64(key) + `"}}}}}}`)
}
