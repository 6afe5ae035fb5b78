package anchor

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"

	"github.com/pilox/vault/evidence"
)

const rekorV1Target = "rekor_v1"

// A rekorV1Request is a proposed entry of Rekor v1, hashedrekord 0.0.1.
type rekorV1Request struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Data struct {
			Hash struct {
				Algorithm string `json:"algorithm"`
				Value     string `json:"value"`
			} `json:"hash"`
		} `json:"data"`
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
	} `json:"spec"`
}

// submitV1 is submit for a Rekor v1 log.
func (a *Anchorer) submitV1(ctx context.Context, cp evidence.Checkpoint, sig []byte) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(a.cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	digest := cp.Digest()
	r := rekorV1Request{APIVersion: "0.0.1", Kind: "hashedrekord"}
	r.Spec.Data.Hash.Algorithm, r.Spec.Data.Hash.Value = "sha256", hex.EncodeToString(digest[:])
	r.Spec.Signature.Content = sig
	r.Spec.Signature.PublicKey.Content = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	answer, err := a.entry(ctx, a.cfg.RekorV1, "api/v1/log/entries", r)
	if err != nil {
		return nil, err
	}
	var entries map[string]json.RawMessage // by a name that the log gives them
	if err := json.Unmarshal(answer, &entries); err != nil || len(entries) != 1 {
		return nil, errors.New("the answer is not one entry")
	}
	for _, entry := range entries {
		if _, err := evidence.VerifyRekorV1(entry, cp, a.cfg.RekorV1Key); err != nil {
			return nil, err
		}
		return entry, nil
	}
	return nil, nil
}
