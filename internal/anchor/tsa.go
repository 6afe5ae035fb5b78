package anchor

import (
	"context"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/http"

	"github.com/pilox/vault/evidence"
)

const tsaTarget = "tsa"

// A tsaRequest is a TimeStampReq (RFC 3161 section 2.4.1) that wants the authority's
// certificate in the token.
type tsaRequest struct {
	Version int
	Imprint struct {
		Hash   pkix.AlgorithmIdentifier
		Digest []byte
	}
	Nonce *big.Int
	Certs bool
}

// A tsaAnswer is a TimeStampResp (RFC 3161 section 2.4.2).
type tsaAnswer struct {
	Status struct {
		Status  int
		Text    []asn1.RawValue `asn1:"optional"` // for people, by a stranger
		Failure asn1.BitString  `asn1:"optional"`
	}
	Token asn1.RawValue `asn1:"optional"`
}

var oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}

// stamp has the authority stamp the digest of cp and returns the token, verified.
func (a *Anchorer) stamp(ctx context.Context, cp evidence.Checkpoint) ([]byte, error) {
	nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63)) // 64 bits is what every authority takes
	if err != nil {
		return nil, err
	}
	digest := cp.Digest()
	q := tsaRequest{Version: 1, Nonce: nonce, Certs: true}
	q.Imprint.Hash = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	q.Imprint.Digest = digest[:]
	body, err := asn1.Marshal(q)
	if err != nil {
		return nil, err
	}
	status, answer, err := a.post(ctx, a.cfg.TSA, "", "application/timestamp-query", body)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK && status != http.StatusCreated { // Sigstore's answers 201
		return nil, fmt.Errorf("status %d", status)
	}
	token, err := tokenOf(answer)
	if err != nil {
		return nil, err
	}
	t, err := evidence.VerifyTimestamp(token, cp, a.roots)
	if err != nil {
		return nil, err
	}
	if t.Nonce == nil || t.Nonce.Cmp(nonce) != 0 {
		return nil, errors.New("the token answers another request")
	}
	return token, nil
}

// tokenOf takes the token out of an answer, which is DER by section 3.4.
func tokenOf(answer []byte) ([]byte, error) {
	var r tsaAnswer
	rest, err := asn1.Unmarshal(answer, &r)
	if err != nil || len(rest) > 0 {
		return nil, errors.New("the answer is no timestamp response")
	}
	// 0 is granted; 1 granted with modifications, and the token is held to the request.
	if s := r.Status.Status; s != 0 && s != 1 || len(r.Token.FullBytes) == 0 {
		for i := range r.Status.Failure.BitLength {
			if r.Status.Failure.At(i) == 1 {
				return nil, fmt.Errorf("not granted: PKI status %d, failure %d", s, i)
			}
		}
		return nil, fmt.Errorf("not granted: PKI status %d", s)
	}
	return r.Token.FullBytes, nil
}
