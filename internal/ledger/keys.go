package ledger

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"sync"

	"github.com/pilox/vault"
)

// A FieldKey encrypts the sensitive fields of one run, AES-256-GCM.
type FieldKey [32]byte

// ErrNoKey means that there is no such key: what it encrypted is erased.
var ErrNoKey = errors.New("the key was erased")

// Keys holds the keys of sensitive fields outside the store and its backups, so
// that deleting one erases what it encrypted everywhere. It is safe for
// concurrent use.
type Keys interface {
	// Key returns the key with this id and makes it if there is none. A new key is
	// durable before it is returned.
	Key(id string) (FieldKey, error)
	// Lookup returns the key with this id, or ErrNoKey.
	Lookup(id string) (FieldKey, error)
	// Erase destroys the key with this id, durably. None is no error.
	Erase(id string) error
}

// keyID names the key of a run. The daemon's own cannot be mistaken for a task's:
// no run has an @ in its name.
func keyID(run vault.TaskID) string {
	if run == "" {
		return "@daemon"
	}
	return string(run)
}

// aeads caches ciphers by run.
type aeads struct {
	keys Keys
	mu   sync.Mutex
	made map[vault.TaskID]cipher.AEAD // guarded by mu
}

// maxAEADs bounds the cache: more than the tasks that run at once, at half a
// kilobyte each.
const maxAEADs = 4096

// get returns the cipher of a run, making its key if need be.
func (a *aeads) get(run vault.TaskID) (id string, c cipher.AEAD, err error) {
	id = keyID(run)
	a.mu.Lock()
	defer a.mu.Unlock()
	if c = a.made[run]; c != nil {
		return id, c, nil
	}
	key, err := a.keys.Key(id)
	if err != nil {
		return "", nil, err
	}
	if c, err = newAEAD(key); err != nil {
		return "", nil, err
	}
	if a.made == nil || len(a.made) >= maxAEADs {
		a.made = map[vault.TaskID]cipher.AEAD{}
	}
	a.made[run] = c
	return id, c, nil
}

// erase destroys the key of a run and forgets its cipher.
func (a *aeads) erase(run vault.TaskID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.made, run)
	return a.keys.Erase(keyID(run))
}

// lookup returns the cipher of a key that must exist.
func (a *aeads) lookup(id string) (cipher.AEAD, error) {
	key, err := a.keys.Lookup(id)
	if err != nil {
		return nil, err
	}
	return newAEAD(key)
}

func newAEAD(key FieldKey) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
