package anchor

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/pilox/vault/evidence"
)

const rekorTarget = "rekor"

// A rekorRequest is a CreateEntryRequest of Rekor v2, in protobuf's JSON.
type rekorRequest struct {
	V002 struct {
		Digest    []byte `json:"digest"`
		Signature struct {
			Content  []byte `json:"content"`
			Verifier struct {
				KeyDetails string `json:"keyDetails"`
				PublicKey  struct {
					RawBytes []byte `json:"rawBytes"`
				} `json:"publicKey"`
			} `json:"verifier"`
		} `json:"signature"`
	} `json:"hashedRekordRequestV002"`
}

// submit puts the digest of cp into the log and returns the entry, verified. Each
// attempt of a round sends the same bytes, so that one that got through unseen
// makes no second entry. A log that refuses a duplicate is sent another signature
// next time: its answer to the first is lost.
func (a *Anchorer) submit(ctx context.Context, cp evidence.Checkpoint) ([]byte, error) {
	digest := cp.Digest()
	if a.sig == nil {
		sig, err := ecdsa.SignASN1(rand.Reader, a.cfg.Key, digest[:])
		if err != nil {
			return nil, err
		}
		a.sig = sig
	}
	der, err := x509.MarshalPKIXPublicKey(a.cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	var r rekorRequest
	r.V002.Digest = digest[:]
	r.V002.Signature.Content = a.sig
	r.V002.Signature.Verifier.KeyDetails = "PKIX_ECDSA_P256_SHA_256"
	r.V002.Signature.Verifier.PublicKey.RawBytes = der
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	status, entry, err := a.post(ctx, a.cfg.Rekor, "api/v2/log/entries", "application/json", body)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusConflict:
		a.sig = nil
		return nil, fmt.Errorf("status %d: it has this entry and does not return it", status)
	case status != http.StatusOK && status != http.StatusCreated:
		return nil, fmt.Errorf("status %d", status)
	}
	if err := evidence.VerifyRekor(entry, cp, a.cfg.RekorKey); err != nil {
		return nil, err
	}
	return entry, nil
}
