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
)

// A file is a SQLite database, in WAL mode with every commit synced.
type file struct {
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

// Open opens or makes the SQLite database at path, takes its lock, and brings the
// schema up to date. The directory must exist.
func Open(ctx context.Context, path string) (*DB, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	f := &file{lock: lock, stmts: map[string]driver.Stmt{}}
	if err := f.open(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), f.close())
	}
	return &DB{engine: f, read: reader{db: f.read}}, nil
}

func (d *file) open(ctx context.Context, path string) error {
	// The file must not be readable by others, whatever the umask.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if d.wdb, err = connect(path, "secure_delete(1)", "journal_mode(WAL)", "synchronous(FULL)", fmt.Sprintf("wal_autocheckpoint(%d)", walPages)); err != nil {
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

// cacheKiB is the page cache of one connection. The ledger is written at its end and
// read in order, so what SQLite keeps beyond that is a copy of the kernel's cache; its
// default of 2,000 took 10 MB for the five connections and wrote no faster.
const cacheKiB = 256

func connect(path string, pragmas ...string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	q := url.Values{"_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(1)", "temp_store(2)", fmt.Sprintf("cache_size(-%d)", cacheKiB)}, pragmas...)}
	c, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

// close closes the database and gives the lock back.
func (d *file) close() error {
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

// exec implements engine, on the writing connection.
func (d *file) exec(ctx context.Context, query string, args ...any) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := d.write.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}
