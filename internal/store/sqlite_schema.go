package store

import (
	"context"
	"database/sql"
	"fmt"
)

// migrations bring an older database up to date, each in a transaction of its
// own. Append only: a released one never changes.
var migrations = []string{
	`CREATE TABLE tenant(
		id   INTEGER PRIMARY KEY,
		name TEXT NOT NULL UNIQUE
	) STRICT;
	CREATE TABLE audit_leaf(
		pos       INTEGER PRIMARY KEY, -- tenant·2^40 + index
		ts        INTEGER NOT NULL,    -- microseconds since 1970
		run       TEXT NOT NULL,
		class     TEXT NOT NULL,
		leaf      BLOB NOT NULL,       -- exact bytes
		leaf_hash BLOB NOT NULL,
		chain     BLOB NOT NULL
	) STRICT;
	CREATE INDEX audit_leaf_run ON audit_leaf(run);
	CREATE TABLE audit_detail(
		pos    INTEGER NOT NULL,
		field  TEXT NOT NULL,
		nonce  BLOB NOT NULL,
		ct     BLOB NOT NULL,
		key_id TEXT NOT NULL,
		PRIMARY KEY (pos, field)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE audit_head(
		tenant   INTEGER PRIMARY KEY REFERENCES tenant(id),
		epoch    INTEGER NOT NULL,
		size     INTEGER NOT NULL,
		chain    BLOB NOT NULL,
		root     BLOB NOT NULL,
		frontier BLOB NOT NULL
	) STRICT;
	CREATE TABLE audit_ckpt(
		tenant INTEGER NOT NULL REFERENCES tenant(id),
		size   INTEGER NOT NULL,
		note   BLOB NOT NULL,
		PRIMARY KEY (tenant, size)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE task(
		tenant      INTEGER NOT NULL REFERENCES tenant(id),
		id          TEXT NOT NULL,
		file_digest BLOB NOT NULL,
		principal   TEXT NOT NULL,
		state       TEXT NOT NULL,
		opened_at   INTEGER NOT NULL,  -- microseconds since 1970
		doc         BLOB NOT NULL,
		PRIMARY KEY (tenant, id)
	) STRICT, WITHOUT ROWID;
	-- The same file by the same principal has one open instance.
	CREATE UNIQUE INDEX task_open ON task(tenant, principal, file_digest) WHERE state = 'open';
	CREATE TABLE record(
		tenant INTEGER NOT NULL REFERENCES tenant(id),
		kind   TEXT NOT NULL,
		id     TEXT NOT NULL,
		state  TEXT NOT NULL,
		doc    BLOB NOT NULL,
		PRIMARY KEY (tenant, kind, id)
	) STRICT, WITHOUT ROWID;`,
}

func migrate(ctx context.Context, c *sql.Conn) error {
	var version int
	if err := c.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if version > len(migrations) {
		return fmt.Errorf("the schema is version %d and this pvault knows %d: use a newer pvault", version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		tx, err := c.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("migrate schema to %d: %w", version+1, err)
		}
		_, err = tx.ExecContext(ctx, migrations[version]+fmt.Sprintf(`; PRAGMA user_version = %d`, version+1))
		if err == nil {
			err = tx.Commit()
		} else {
			_ = tx.Rollback() // the first error says what went wrong
		}
		if err != nil {
			return fmt.Errorf("migrate schema to %d: %w", version+1, err)
		}
	}
	return nil
}
