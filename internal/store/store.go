// Package store keeps rows: the leaves of the ledgers, the encrypted fields
// beside them, and the small documents a daemon needs to start again. It is
// SQLite in one file, or PostgreSQL, which several daemons may share.
//
// It owns the schema, the migrations, the lock that keeps a second daemon off a
// file, and the lease by which daemons on one PostgreSQL take turns. It knows
// nothing of what the rows mean: indices, hashes and signatures are the ledger's,
// and what stands in a document is its owner's. Start with [Open] or
// [OpenPostgres] and [DB.Tenant]; a [Tenant] sees its own rows only.
//
// A write that returned nil is on disk. One that returned an error may have
// happened or not; the caller reads the state again before it goes on.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// ErrLocked means that another process has the database open.
var ErrLocked = errors.New("another process uses this data directory")

// ErrStale means that another daemon has taken the ledger over, or that the
// caller's idea of its head is old. Nothing was written.
var ErrStale = errors.New("the head of the ledger is not where this daemon left it")

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// A DB is one database. It is safe for concurrent use.
type DB struct {
	engine engine
	read   reader
}

// An engine is what SQLite and PostgreSQL do differently: everything that writes.
type engine interface {
	// exec runs one statement durably and returns the rows it changed.
	exec(ctx context.Context, query string, args ...any) (int64, error)
	// append is [Tenant.Append].
	append(ctx context.Context, t *Tenant, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error
	// erase is [Tenant.EraseField], for a field at pos.
	erase(ctx context.Context, pos int64, erased evidence.Sealed) error
	close() error
}

// A reader asks either database in SQLite's words.
type reader struct {
	db    *sql.DB
	words func(query string) string // nil: as they are
}

func (r *reader) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if r.words != nil {
		query = r.words(query)
	}
	return r.db.QueryContext(ctx, query, args...)
}

func (r *reader) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if r.words != nil {
		query = r.words(query)
	}
	return r.db.QueryRowContext(ctx, query, args...)
}

// dollars writes the placeholders ? and ?1 as $1, as PostgreSQL wants them. No
// query of this package has a question mark elsewhere.
func dollars(query string) string {
	var b strings.Builder
	last := 0
	for {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		end := 0
		for end < len(after) && after[end] >= '0' && after[end] <= '9' {
			end++
		}
		if n, err := strconv.Atoi(after[:end]); err == nil {
			last = n
		} else {
			last++
		}
		b.WriteString("$" + strconv.Itoa(last))
		query = after[end:]
	}
}

// dollarsOnce is dollars with a memory: the queries are few and asked often.
func dollarsOnce() func(string) string {
	var seen sync.Map
	return func(query string) string {
		if v, ok := seen.Load(query); ok {
			return v.(string)
		}
		v, _ := seen.LoadOrStore(query, dollars(query))
		return v.(string)
	}
}

// Close closes the database and gives a lock back.
func (d *DB) Close() error { return d.engine.close() }

// A Tenant is the part of a database that belongs to one tenant. It is safe for
// concurrent use.
type Tenant struct {
	db   *DB
	id   int64
	base int64 // the position of leaf 0; see pos
}

// A leaf stands at tenant·2^40 + index, so that all leaves of a tenant lie
// together and a new one goes to the end of a B-tree. That allows 2^40 leaves in
// each of 2^22 tenants.
const (
	indexBits  = 40
	maxTenants = 1 << 22
)

// Tenant returns the part of d that belongs to name, making it if need be.
func (d *DB) Tenant(ctx context.Context, name vault.Tenant) (*Tenant, error) {
	if name == "" {
		return nil, errors.New("open tenant: no name")
	}
	var id int64
	if _, err := d.engine.exec(ctx, `INSERT INTO tenant(name) VALUES (?) ON CONFLICT DO NOTHING`, string(name)); err != nil {
		return nil, fmt.Errorf("open tenant %s: %w", name, err)
	}
	if err := d.read.QueryRowContext(ctx, `SELECT id FROM tenant WHERE name = ?`, string(name)).Scan(&id); err != nil {
		return nil, fmt.Errorf("open tenant %s: %w", name, err)
	}
	if id >= maxTenants {
		return nil, fmt.Errorf("open tenant %s: more than %d tenants", name, maxTenants)
	}
	return &Tenant{db: d, id: id, base: id << indexBits}, nil
}

// pos returns the position of a leaf.
func (t *Tenant) pos(idx uint64) int64 { return t.base + int64(min(idx, 1<<indexBits-1)) }

// exec runs one statement durably.
func (t *Tenant) exec(ctx context.Context, query string, args ...any) (int64, error) {
	return t.db.engine.exec(ctx, query, args...)
}
