package ledger

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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
}

// keyID names the key of a run. The daemon's own cannot be mistaken for a task's:
// no run has an @ in its name.
func keyID(run vault.TaskID) string {
	if run == "" {
		return "@daemon"
	}
	return string(run)
}

// FileKeys keeps each key in a file of its own.
type FileKeys struct {
	root *os.Root
	mu   sync.Mutex // one creation at a time
}

// OpenFileKeys opens or makes the directory dir, 0700.
func OpenFileKeys(dir string) (*FileKeys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open field keys: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open field keys: %w", err)
	}
	return &FileKeys{root: root}, nil
}

// Close gives the directory back.
func (k *FileKeys) Close() error { return k.root.Close() }

// Key implements [Keys].
func (k *FileKeys) Key(id string) (FieldKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := k.Lookup(id)
	if !errors.Is(err, ErrNoKey) {
		return key, err
	}
	rand.Read(key[:])
	tmp := id + ".new"
	if err := k.write(tmp, key[:]); err != nil {
		return FieldKey{}, fmt.Errorf("make field key: %w", err)
	}
	if err := k.root.Rename(tmp, id); err != nil {
		return FieldKey{}, fmt.Errorf("make field key: %w", err)
	}
	if err := syncDir(k.root); err != nil {
		return FieldKey{}, fmt.Errorf("make field key: %w", err)
	}
	return key, nil
}

func (k *FileKeys) write(name string, b []byte) error {
	f, err := k.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// Lookup implements [Keys].
func (k *FileKeys) Lookup(id string) (FieldKey, error) {
	f, err := k.root.Open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return FieldKey{}, ErrNoKey
	}
	if err != nil {
		return FieldKey{}, fmt.Errorf("read field key: %w", err)
	}
	defer f.Close()
	var key [len(FieldKey{}) + 1]byte // one more, to see a file that is too long
	n, err := io.ReadFull(f, key[:])
	if n != len(FieldKey{}) || !errors.Is(err, io.ErrUnexpectedEOF) {
		return FieldKey{}, fmt.Errorf("read field key %s: not 32 bytes", id)
	}
	return FieldKey(key[:n]), nil
}

func syncDir(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
