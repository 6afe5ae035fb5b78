package keystore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// AnchorKey returns the P-256 key that signs digests for a transparency log, which
// takes no pure Ed25519. The first call ever makes it. It is not wiped by
// [Store.Close]: its algorithm's implementation keeps copies of its own.
func (s *Store) AnchorKey() (*ecdsa.PrivateKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	k, err := s.loadAnchor()
	if errors.Is(err, os.ErrNotExist) {
		if err = s.createAnchor(); err == nil {
			k, err = s.loadAnchor()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", Anchor, err)
	}
	return k, nil
}

func (s *Store) loadAnchor() (*ecdsa.PrivateKey, error) {
	b, err := s.dir.read(string(Anchor)+".pem", maxKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 || len(block.Headers) != 1 || block.Headers[pemPurpose] != string(Anchor) {
		return nil, fmt.Errorf("%w: not one PEM block for %s", ErrUnsafe, Anchor)
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: not a PKCS #8 key", ErrUnsafe) // the cause could quote the input
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: a key of type %T, want P-256", ErrUnsafe, key)
	}
	return k, nil
}

// createAnchor makes the key, unless another process does at the same moment.
func (s *Store) createAnchor() error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	defer clear(der)
	b := pem.EncodeToMemory(&pem.Block{Type: pemType, Headers: map[string]string{pemPurpose: string(Anchor)}, Bytes: der})
	defer clear(b)
	if err := s.dir.create(string(Anchor)+".pem", b); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
