package oauth

import (
	"bytes"
	"compress/zlib"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// maxStatuses bounds a list: one bit each, 1 MiB in all.
const maxStatuses = 8 << 20

// A StatusList says of root links, by index, whether they were revoked
// (draft-ietf-oauth-status-list, one bit each: 0 valid, 1 invalid). The zero list is
// empty.
type StatusList struct {
	bits []byte
	size int
}

// Len returns how many statuses the list has.
func (l *StatusList) Len() int { return l.size }

// Set sets the status at index i and grows the list as far as that.
func (l *StatusList) Set(i int, revoked bool) error {
	if i < 0 || i >= maxStatuses {
		return fmt.Errorf("status %d: at most %d", i, maxStatuses)
	}
	if i >= l.size {
		l.size = i + 1
	}
	for len(l.bits) <= i/8 {
		l.bits = append(l.bits, 0)
	}
	if revoked {
		l.bits[i/8] |= 1 << (i % 8)
	} else {
		l.bits[i/8] &^= 1 << (i % 8)
	}
	return nil
}

// Revoked returns the status at index i. One that the list does not have is an error:
// the list is older than the token.
func (l *StatusList) Revoked(i int) (bool, error) {
	if i < 0 || i/8 >= len(l.bits) {
		return false, errors.New("the list has no such status")
	}
	return l.bits[i/8]&(1<<(i%8)) != 0, nil
}

// statusClaims are the claims of a Status List Token.
type statusClaims struct {
	Subject string `json:"sub"`
	Issued  int64  `json:"iat"`
	Expires int64  `json:"exp"`
	TTL     int64  `json:"ttl"`
	List    struct {
		Bits int    `json:"bits"`
		List string `json:"lst"`
	} `json:"status_list"`
}

// Sign returns the list as a Status List Token in JWT form: uri is where it will be
// found, life how long it counts; readers should ask again after a tenth of that. The
// key is Ed25519 and signs nothing else.
func (l *StatusList) Sign(key crypto.Signer, kid, uri string, now time.Time, life time.Duration) (string, error) {
	var packed bytes.Buffer
	z, err := zlib.NewWriterLevel(&packed, zlib.BestCompression)
	if err != nil {
		return "", fmt.Errorf("pack status list: %w", err)
	}
	if _, err := z.Write(l.bits); err != nil {
		return "", fmt.Errorf("pack status list: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("pack status list: %w", err)
	}
	c := statusClaims{Subject: uri, Issued: now.Unix(), Expires: now.Add(life).Unix(), TTL: max(int64(life/(10*time.Second)), 1)}
	c.List.Bits, c.List.List = 1, base64.RawURLEncoding.EncodeToString(packed.Bytes())
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode status list: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: cryptosigner.Opaque(key)},
		(&jose.SignerOptions{}).WithType("statuslist+jwt").WithHeader("kid", kid))
	if err != nil {
		return "", fmt.Errorf("sign status list: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign status list: %w", err)
	}
	return jws.CompactSerialize()
}

// ParseStatusList verifies a list that [StatusList.Sign] made and returns it with its
// URI. What it unpacks to is bounded, whatever it is packed in.
func ParseStatusList(token string, key crypto.PublicKey, now time.Time) (*StatusList, string, error) {
	if len(token) > 2*maxStatuses/8 {
		return nil, "", errors.New("status list: too large")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, "", fmt.Errorf("status list: %w", err)
	}
	if !typed(jws.Signatures[0].Protected, "statuslist+jwt") {
		return nil, "", errors.New("status list: a token of another type")
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return nil, "", fmt.Errorf("status list: %w", err)
	}
	var c statusClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, "", fmt.Errorf("status list: %w", err)
	}
	switch {
	case now.Unix() >= c.Expires:
		return nil, "", errors.New("status list: expired")
	case c.List.Bits != 1:
		return nil, "", errors.New("status list: want one bit a status")
	}
	l, err := unpack(c.List.List)
	return l, c.Subject, err
}

func unpack(list string) (*StatusList, error) {
	packed, err := base64.RawURLEncoding.DecodeString(list)
	if err != nil {
		return nil, fmt.Errorf("status list: %w", err)
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("status list: %w", err)
	}
	bits, err := io.ReadAll(io.LimitReader(z, maxStatuses/8+1))
	if err != nil {
		return nil, fmt.Errorf("status list: %w", err)
	}
	if len(bits) > maxStatuses/8 {
		return nil, errors.New("status list: too many statuses")
	}
	return &StatusList{bits: bits, size: 8 * len(bits)}, nil
}
