package evidence

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	merkle "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/pilox/vault"
)

// rekorV1Entry is what counts of a LogEntry of Rekor v1, in JSON
// (https://github.com/sigstore/rekor, openapi.yaml). The body is rebuilt, as in v2.
type rekorV1Entry struct {
	Body           []byte `json:"body"`
	IntegratedTime int64  `json:"integratedTime"`
	LogID          string `json:"logID"`
	LogIndex       int64  `json:"logIndex"` // over all shards of the log
	Verification   struct {
		InclusionProof struct {
			Checkpoint string         `json:"checkpoint"`
			Hashes     []vault.Digest `json:"hashes"`
			LogIndex   uint64         `json:"logIndex"` // in its shard
			TreeSize   uint64         `json:"treeSize"`
		} `json:"inclusionProof"`
		SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
	} `json:"verification"`
}

type rekorV1Body struct {
	Spec struct {
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
	} `json:"spec"`
}

// publicKey reads an ECDSA P-256 key in PEM and returns its PKIX form too.
func publicKey(text []byte) (*ecdsa.PublicKey, []byte, error) {
	b, rest := pem.Decode(text)
	if b == nil || b.Type != "PUBLIC KEY" || len(b.Headers) > 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, nil, errors.New("want one PUBLIC KEY in PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(b.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil, errors.New("want an ECDSA key on P-256")
	}
	return key, b.Bytes, nil
}

// isRekorV1 reports whether a Rekor key is of version 1: in PEM.
func isRekorV1(key string) bool { return strings.HasPrefix(key, "-----BEGIN") }

// CheckRekorV1Key reports whether key is one that [VerifyRekorV1] takes.
func CheckRekorV1Key(key string) error {
	_, _, err := publicKey([]byte(key))
	return err
}

// checkRekorKey reports whether key is of a Rekor log of either version.
func checkRekorKey(key string) error {
	if isRekorV1(key) {
		return CheckRekorV1Key(key)
	}
	_, err := note.NewVerifier(key)
	return err
}

// A RekorV1 is what an entry of a Rekor v1 log says that verifies.
type RekorV1 struct {
	Log  string    // host name, in its own words
	Time time.Time // when it took the entry, by its own clock
}

// VerifyRekorV1 reports what entry, a LogEntry of a Rekor v1 log in JSON, says about
// the digest of cp: the log with the public key, ECDSA P-256 in PEM, holds it as a
// hashedrekord 0.0.1 (inclusion proof and checkpoint) and has promised when it took it
// (signed entry timestamp). Whose key signed the entry does not matter, see
// [VerifyRekor].
func VerifyRekorV1(entry []byte, cp Checkpoint, key string) (RekorV1, error) {
	fail := func(format string, args ...any) (RekorV1, error) {
		return RekorV1{}, fmt.Errorf("rekor v1 entry: "+format, args...)
	}
	log, der, err := publicKey([]byte(key))
	if err != nil {
		return fail("key: %w", err)
	}
	if len(entry) > maxRekor {
		return fail("%d bytes, more than %d", len(entry), maxRekor)
	}
	var e rekorV1Entry
	if err := json.Unmarshal(entry, &e); err != nil {
		return fail("%w", err)
	}
	var body rekorV1Body
	if err := json.Unmarshal(e.Body, &body); err != nil {
		return fail("body: %w", err)
	}
	s := &body.Spec.Signature
	digest := cp.Digest()
	if by, _, err := publicKey(s.PublicKey.Content); err != nil || !ecdsa.VerifyASN1(by, digest[:], s.Content) {
		return fail("the signature is not of this checkpoint")
	}
	leaf := RekorV1Body(cp, s.Content, s.PublicKey.Content)

	// Its promise, in RFC 8785 form: base64, hex and numbers only.
	id := sha256.Sum256(der)
	promise := sha256.Sum256(fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`, base64.StdEncoding.EncodeToString(leaf), e.IntegratedTime, id, e.LogIndex))
	if e.LogID != hex.EncodeToString(id[:]) || !ecdsa.VerifyASN1(log, promise[:], e.Verification.SignedEntryTimestamp) {
		return fail("the promise is not by this log")
	}
	if e.IntegratedTime <= 0 || e.IntegratedTime > maxUnix {
		return fail("no time")
	}

	p := &e.Verification.InclusionProof
	host, _, _ := strings.Cut(p.Checkpoint, " - ") // of "HOST - SHARD", the origin
	v, err := fnote.NewECDSAVerifier(fmt.Sprintf("%s+%08x+%s", host, binary.BigEndian.Uint32(id[:]), base64.StdEncoding.EncodeToString(append([]byte{2}, der...))))
	if err != nil {
		return fail("checkpoint: %w", err)
	}
	n, err := note.Open([]byte(p.Checkpoint), note.VerifierList(v))
	if err != nil {
		return fail("checkpoint: %w", err)
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[1] != strconv.FormatUint(p.TreeSize, 10) {
		return fail("checkpoint: of another size")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return fail("checkpoint: no root")
	}
	h := HashLeaf(leaf)
	var path [][]byte
	for i := range p.Hashes {
		path = append(path, p.Hashes[i][:])
	}
	if merkle.VerifyInclusion(rfc6962.DefaultHasher, p.LogIndex, p.TreeSize, h[:], path, root) != nil {
		return fail("not in the log")
	}
	return RekorV1{Log: plainName(host), Time: time.Unix(e.IntegratedTime, 0).UTC()}, nil
}

// RekorV1Body returns the leaf that a Rekor v1 log makes of a checkpoint's digest, the
// P-256 signature over its text and the key in PEM.
func RekorV1Body(cp Checkpoint, sig, key []byte) []byte {
	digest := cp.Digest()
	b64 := base64.StdEncoding.EncodeToString
	return []byte(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"` + hex.EncodeToString(digest[:]) +
		`"}},"signature":{"content":"` + b64(sig) + `","publicKey":{"content":"` + b64(key) + `"}}}}`)
}
