// Package store keeps rows: the leaves of the ledgers, the encrypted fields
// beside them, and the small documents a daemon needs to start again. It is
// SQLite in one file, in WAL mode, with every commit synced.
//
// It owns the schema, the migrations and the lock that keeps a second daemon off
// the same file. It knows nothing of what the rows mean: indices, hashes and
// signatures are the ledger's, and what stands in a document is its owner's.
// Start with [Open] and [DB.Tenant]; a [Tenant] sees its own rows only.
//
// A write that returned nil is on disk. One that returned an error may have
// happened or not; the caller reads the state again before it goes on.
package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"modernc.org/sqlite"

	"github.com/pilox/vault"
)

// ErrLocked means that another process has the database open.
var ErrLocked = errors.New("another process uses this data directory")

// ErrStale means that another daemon has taken the ledger over, or that the
// caller's idea of its head is old. Nothing was written.
var ErrStale = errors.New("the head of the ledger is not where this daemon left it")

// ErrNotFound means that there is no such row.
var ErrNotFound = errors.New("not found")

// A DB is one database file. It is safe for concurrent use.
type DB struct {
	lock *os.File
	read *sql.DB

	mu    sync.Mutex // guards the one writing connection and its statements
	wdb   *sql.DB
	write *sql.Conn
	stmts map[string]driver.Stmt
}

// walPages is how many pages the write-ahead log may have before a commit copies
// them back. At full speed that is twice a second, too rare to show in the 99th
// percentile, and bounds the log to 16 MiB.
const walPages = 4096

// Open opens or makes the database at path, takes its lock, and brings the
// schema up to date. The directory must exist.
func Open(ctx context.Context, path string) (*DB, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	d := &DB{lock: lock, stmts: map[string]driver.Stmt{}}
	if err := d.open(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), d.Close())
	}
	return d, nil
}

func (d *DB) open(ctx context.Context, path string) error {
	// The file must not be readable by others, whatever the umask.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if d.wdb, err = connect(path, "journal_mode(WAL)", "synchronous(FULL)", fmt.Sprintf("wal_autocheckpoint(%d)", walPages)); err != nil {
		return err
	}
	d.wdb.SetMaxOpenConns(1)
	if d.write, err = d.wdb.Conn(ctx); err != nil {
		return err
	}
	if err := migrate(ctx, d.write); err != nil {
		return err
	}
	if d.read, err = connect(path, "query_only(1)"); err != nil {
		return err
	}
	const readers = 4 // the console, an export, a tail and one more
	d.read.SetMaxOpenConns(readers)
	d.read.SetMaxIdleConns(readers)
	return nil
}

func connect(path string, pragmas ...string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	q := url.Values{"_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(1)", "temp_store(2)"}, pragmas...)}
	c, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

// Close closes the database and gives the lock back.
func (d *DB) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, s := range d.stmts {
		errs = append(errs, s.Close())
	}
	d.stmts = nil
	if d.read != nil {
		errs = append(errs, d.read.Close())
	}
	if d.write != nil {
		errs = append(errs, d.write.Close())
	}
	if d.wdb != nil {
		errs = append(errs, d.wdb.Close())
	}
	errs = append(errs, d.lock.Close())
	return errors.Join(errs...)
}

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
	d.mu.Lock()
	defer d.mu.Unlock()
	var id int64
	if _, err := d.write.ExecContext(ctx, `INSERT INTO tenant(name) VALUES (?) ON CONFLICT DO NOTHING`, string(name)); err != nil {
		return nil, fmt.Errorf("open tenant %s: %w", name, err)
	}
	if err := d.write.QueryRowContext(ctx, `SELECT id FROM tenant WHERE name = ?`, string(name)).Scan(&id); err != nil {
		return nil, fmt.Errorf("open tenant %s: %w", name, err)
	}
	if id >= maxTenants {
		return nil, fmt.Errorf("open tenant %s: more than %d tenants", name, maxTenants)
	}
	return &Tenant{db: d, id: id, base: id << indexBits}, nil
}

// pos returns the position of a leaf.
func (t *Tenant) pos(idx uint64) int64 { return t.base + int64(min(idx, 1<<indexBits-1)) }

// exec runs one statement on the writing connection.
func (t *Tenant) exec(ctx context.Context, query string, args ...any) (int64, error) {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	r, err := t.db.write.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}
