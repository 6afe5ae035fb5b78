package keystore

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
)

// dataKeySize is the length of a data key: AES-256 or XChaCha20-Poly1305.
const dataKeySize = 32

// maxName bounds the names of data keys and approvers: longer than any SPIFFE ID
// with its context, and no more than a person would write.
const maxName = 4096

// DataKey returns the 32-byte key called name and makes it if there is none. The
// caller owns the copy and should clear it. Names are free text of up to 4,096
// bytes, such as a tenant and a subject; the name on disk is a digest of it.
//
// After [Store.Erase] a fresh key is made under the same name. Say in what you
// encrypt which key it was, or use [Store.LookupDataKey] to read.
func (s *Store) DataKey(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.lookup(name)
	if errors.Is(err, ErrNoKey) {
		k, err = s.makeData(name)
	}
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return append([]byte(nil), k...), nil
}

// LookupDataKey is [Store.DataKey] without making a key: if there is none, or it
// was erased, the error is [ErrNoKey].
func (s *Store) LookupDataKey(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.lookup(name)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return append([]byte(nil), k...), nil
}

// Erase destroys the data key called name: what was encrypted with it can no
// longer be read. It returns once that is durable. Erasing a key that does not
// exist is no error. The file is overwritten before it is removed, which reaches
// the medium only where the file system writes in place; snapshots and backups
// of the directory are out of reach.
func (s *Store) Erase(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err := checkName(name); err != nil {
		return fmt.Errorf("erase data key: %w", err)
	}
	if k, ok := s.cache[name]; ok {
		clear(k)
		delete(s.cache, name)
	}
	if err := s.data.erase(dataFile(name), dataKeySize); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("erase data key: %w", err)
	}
	return nil
}

// lookup returns the cached or stored key. The caller holds s.mu.
func (s *Store) lookup(name string) ([]byte, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if k, ok := s.cache[name]; ok {
		return k, nil
	}
	k, err := s.data.read(dataFile(name), dataKeySize)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, err
	}
	if len(k) != dataKeySize {
		clear(k)
		return nil, fmt.Errorf("%w: a data key of %d bytes, want %d", ErrUnsafe, len(k), dataKeySize)
	}
	s.remember(name, k)
	return k, nil
}

func (s *Store) makeData(name string) ([]byte, error) {
	k := make([]byte, dataKeySize)
	rand.Read(k)
	err := s.data.create(dataFile(name), k)
	clear(k)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return s.lookup(name)
}

// remember caches k. A full cache drops any one entry: which does not matter, as
// a miss costs one small read.
func (s *Store) remember(name string, k []byte) {
	if len(s.cache) >= maxCached {
		for n, old := range s.cache {
			clear(old)
			delete(s.cache, n)
			break
		}
	}
	s.cache[name] = k
}

// dataFile returns the file name of a data key. It is a digest because a name is
// free text; the digest hides nothing, as names can be guessed.
func dataFile(name string) string {
	h := sha256.Sum256([]byte("vault/data-key-name/v1" + name))
	return hex.EncodeToString(h[:])
}

func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a name of %d bytes, want 1 to %d", len(name), maxName)
	}
	return nil
}
