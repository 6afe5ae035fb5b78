package anchor

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
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

// errHasEntry means that a log refuses a duplicate.
var errHasEntry = errors.New("it has this entry and does not return it")

// enter has submit put the digest of cp into a log and returns the entry, verified.
// Each attempt of a round sends the same signature, kept in sig, so that one that got
// through unseen makes no second entry. A log that refuses a duplicate is sent another
// next time: its answer to the first is lost.
func (a *Anchorer) enter(ctx context.Context, cp evidence.Checkpoint, sig *[]byte, submit func(context.Context, evidence.Checkpoint, []byte) ([]byte, error)) ([]byte, error) {
	if *sig == nil {
		digest := cp.Digest()
		var err error
		if *sig, err = ecdsa.SignASN1(rand.Reader, a.cfg.Key, digest[:]); err != nil {
			return nil, err
		}
	}
	entry, err := submit(ctx, cp, *sig)
	if errors.Is(err, errHasEntry) {
		*sig = nil
	}
	return entry, err
}

// submit asks a Rekor v2 log.
func (a *Anchorer) submit(ctx context.Context, cp evidence.Checkpoint, sig []byte) ([]byte, error) {
	digest := cp.Digest()
	der, err := x509.MarshalPKIXPublicKey(a.cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	var r rekorRequest
	r.V002.Digest = digest[:]
	r.V002.Signature.Content = sig
	r.V002.Signature.Verifier.KeyDetails = "PKIX_ECDSA_P256_SHA_256"
	r.V002.Signature.Verifier.PublicKey.RawBytes = der
	entry, err := a.entry(ctx, a.cfg.Rekor, "api/v2/log/entries", r)
	if err != nil {
		return nil, err
	}
	if err := evidence.VerifyRekor(entry, cp, a.cfg.RekorKey); err != nil {
		return nil, err
	}
	return entry, nil
}

// entry sends a log a request for an entry and returns the answer.
func (a *Anchorer) entry(ctx context.Context, log, path string, request any) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	status, answer, err := a.post(ctx, log, path, "application/json", body)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusConflict:
		return nil, errHasEntry
	case status != http.StatusOK && status != http.StatusCreated:
		return nil, fmt.Errorf("status %d", status)
	}
	return answer, nil
}
