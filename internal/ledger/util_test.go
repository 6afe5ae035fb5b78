package ledger

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"testing"
)

// execSQL changes a database behind the ledger's back. The driver is registered
// by package store.
func execSQL(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

// fileKeys keeps each key in a file of its own, as a daemon that is killed must.
type fileKeys struct {
	root *os.Root
	mu   sync.Mutex // one creation at a time
}

// openFileKeys opens or makes the directory dir, 0700.
func openFileKeys(dir string) (*fileKeys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open field keys: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open field keys: %w", err)
	}
	return &fileKeys{root: root}, nil
}

// Close gives the directory back.
func (k *fileKeys) Close() error { return k.root.Close() }

// Key implements [Keys].
func (k *fileKeys) Key(id string) (FieldKey, error) {
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

func (k *fileKeys) write(name string, b []byte) error {
	f, err := k.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// Erase implements [Keys].
func (k *fileKeys) Erase(id string) error {
	if err := k.root.Remove(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(k.root)
}

// Lookup implements [Keys].
func (k *fileKeys) Lookup(id string) (FieldKey, error) {
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
