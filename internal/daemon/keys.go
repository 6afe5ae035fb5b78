package daemon

import (
	"errors"

	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/ledger"
)

// fieldKeys keeps the keys of the ledger's sensitive fields in the key store,
// outside the database and its backups.
type fieldKeys struct{ keys *keystore.Store }

// Key returns the key with this id and makes it if there is none.
func (k fieldKeys) Key(id string) (ledger.FieldKey, error) {
	b, err := k.keys.DataKey(id)
	return fieldKey(b), err
}

// Lookup returns the key with this id.
func (k fieldKeys) Lookup(id string) (ledger.FieldKey, error) {
	b, err := k.keys.LookupDataKey(id)
	if errors.Is(err, keystore.ErrNoKey) {
		err = ledger.ErrNoKey
	}
	return fieldKey(b), err
}

// Erase destroys the key with this id.
func (k fieldKeys) Erase(id string) error { return k.keys.Erase(id) }

func fieldKey(b []byte) (f ledger.FieldKey) {
	if len(b) == len(f) {
		copy(f[:], b)
	}
	clear(b)
	return f
}
