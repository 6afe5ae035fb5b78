package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/store"
)

// A Yardstick is a store with nothing around it. Measurements hold a call, whose
// intent is durable, against one bare durable write in the same run on the same
// disk. Make one with [NewYardstick]; it is for one goroutine.
type Yardstick struct {
	db   *store.DB
	rows *store.Tenant
	head evidence.Head
}

// The sizes of what one intent leaves in the store: its leaf, and two sealed
// fields beside it.
const (
	yardLeaf  = 850
	yardField = 110
)

// NewYardstick makes a store in dir, which must exist and hold none yet.
func NewYardstick(ctx context.Context, dir string) (*Yardstick, error) {
	db, err := store.Open(ctx, filepath.Join(dir, "yardstick.db"))
	if err != nil {
		return nil, err
	}
	y := &Yardstick{db: db}
	if y.rows, err = db.Tenant(ctx, "bench"); err == nil {
		y.head, err = y.rows.Seize(ctx, y.head)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return y, nil
}

// Write makes the rows of n intents durable in one transaction.
func (y *Yardstick) Write(ctx context.Context, n int) error {
	filler := bytes.Repeat([]byte("x"), yardLeaf)
	rows := make([]evidence.Entry, n)
	fields := make([]evidence.Sealed, 0, 2*n)
	for i := range rows {
		idx := y.head.Size + uint64(i)
		rows[i] = evidence.Entry{Index: idx, Run: "t-1", Class: vault.ClassCall, Leaf: filler}
		for _, name := range []string{"args", "caller"} {
			fields = append(fields, evidence.Sealed{Index: idx, Field: name, Nonce: filler[:12], Text: filler[:yardField], Key: "t-1"})
		}
	}
	next := y.head
	next.Size += uint64(n)
	if err := y.rows.Append(ctx, y.head, next, rows, fields); err != nil {
		return fmt.Errorf("write %d rows: %w", n, err)
	}
	y.head = next
	return nil
}

// Close closes the store.
func (y *Yardstick) Close() error { return y.db.Close() }
