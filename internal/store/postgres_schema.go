package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// pgMigrations bring an older PostgreSQL schema up to date, in one transaction.
// Append only: a released one never changes. Text is in collation C, so that both
// databases order alike.
var pgMigrations = []string{
	`CREATE TABLE tenant(
		id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		name text COLLATE "C" NOT NULL UNIQUE
	);
	CREATE TABLE audit_leaf(
		pos       bigint NOT NULL,  -- tenant·2^40 + index
		ts        bigint NOT NULL,  -- microseconds since 1970
		run       text COLLATE "C" NOT NULL,
		class     text COLLATE "C" NOT NULL,
		leaf      bytea NOT NULL,   -- exact bytes; never jsonb, which keeps others
		leaf_hash bytea NOT NULL,
		chain     bytea NOT NULL,
		PRIMARY KEY (pos)
	) PARTITION BY RANGE (pos);
	CREATE INDEX audit_leaf_run ON audit_leaf(run, pos);
	ALTER TABLE audit_leaf ALTER COLUMN leaf SET STORAGE EXTERNAL;
	CREATE TABLE audit_detail(
		pos    bigint NOT NULL,
		field  text COLLATE "C" NOT NULL,
		nonce  bytea NOT NULL,
		ct     bytea NOT NULL,
		key_id text COLLATE "C" NOT NULL,
		PRIMARY KEY (pos, field)
	);
	CREATE TABLE audit_head(
		tenant   bigint PRIMARY KEY REFERENCES tenant(id),
		epoch    bigint NOT NULL,
		size     bigint NOT NULL,
		chain    bytea NOT NULL,
		root     bytea NOT NULL,
		frontier bytea NOT NULL
	) WITH (fillfactor = 10); -- so that each commit updates it in place
	CREATE TABLE audit_ckpt(
		tenant bigint NOT NULL REFERENCES tenant(id),
		size   bigint NOT NULL,
		note   bytea NOT NULL,
		PRIMARY KEY (tenant, size)
	);
	CREATE TABLE audit_lease(
		tenant bigint PRIMARY KEY REFERENCES tenant(id),
		holder text NOT NULL,
		ends   timestamptz NOT NULL
	);
	CREATE TABLE task(
		tenant      bigint NOT NULL REFERENCES tenant(id),
		id          text COLLATE "C" NOT NULL,
		file_digest bytea NOT NULL,
		principal   text COLLATE "C" NOT NULL,
		state       text COLLATE "C" NOT NULL,
		opened_at   bigint NOT NULL, -- microseconds since 1970
		doc         bytea NOT NULL,
		PRIMARY KEY (tenant, id)
	);
	CREATE UNIQUE INDEX task_open ON task(tenant, principal, file_digest) WHERE state = 'open';
	CREATE TABLE record(
		tenant bigint NOT NULL REFERENCES tenant(id),
		kind   text COLLATE "C" NOT NULL,
		id     text COLLATE "C" NOT NULL,
		state  text COLLATE "C" NOT NULL,
		doc    bytea NOT NULL,
		PRIMARY KEY (tenant, kind, id)
	);
	-- The fence: it moves the head of one tenant, or ends the transaction.
	CREATE FUNCTION audit_advance(of_tenant bigint, at_epoch bigint, at_size bigint, to_size bigint, to_chain bytea, to_root bytea, to_frontier bytea)
	RETURNS void LANGUAGE plpgsql SET search_path = pvault, pg_temp AS $$
	BEGIN
		UPDATE audit_head SET size = to_size, chain = to_chain, root = to_root, frontier = to_frontier
			WHERE tenant = of_tenant AND epoch = at_epoch AND size = at_size;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'the head is elsewhere' USING ERRCODE = 'VA001';
		END IF;
	END $$;
	-- A partition holds 2^24 leaves of one tenant. The writer may make one and
	-- nothing else, so the function runs as the owner of the schema.
	CREATE FUNCTION audit_extend(part bigint) RETURNS void
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pvault, pg_temp AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock(7881299347898368);
		IF to_regclass('pvault.audit_leaf_' || part) IS NULL THEN
			EXECUTE format('CREATE TABLE %I PARTITION OF audit_leaf FOR VALUES FROM (%s) TO (%s)',
				'audit_leaf_' || part, part << 24, (part + 1) << 24);
		END IF;
	END $$;
	REVOKE ALL ON FUNCTION audit_extend(bigint) FROM PUBLIC;`,
}

// pgRoles gives each role what it needs and no more. They are groups: whoever
// runs a daemon grants pvault_writer to its login. A writer cannot change or
// delete a leaf; an eraser can remove the fields beside one.
const pgRoles = `DO $$ DECLARE r text; BEGIN
	FOREACH r IN ARRAY ARRAY['pvault_writer', 'pvault_eraser', 'pvault_auditor'] LOOP
		IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = r) THEN
			EXECUTE format('CREATE ROLE %I NOLOGIN', r);
		END IF;
	END LOOP;
END $$;
GRANT USAGE ON SCHEMA pvault TO pvault_writer, pvault_eraser, pvault_auditor;
GRANT SELECT, INSERT ON pvault.tenant, pvault.audit_leaf, pvault.audit_detail TO pvault_writer;
GRANT SELECT, INSERT, UPDATE ON pvault.audit_head, pvault.audit_ckpt TO pvault_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON pvault.audit_lease, pvault.task, pvault.record TO pvault_writer;
GRANT SELECT ON pvault.schema_version TO pvault_writer;
GRANT EXECUTE ON FUNCTION pvault.audit_extend(bigint) TO pvault_writer;
GRANT SELECT, INSERT, DELETE ON pvault.audit_detail TO pvault_eraser;
GRANT SELECT ON pvault.tenant, pvault.audit_leaf, pvault.audit_detail, pvault.audit_head, pvault.audit_ckpt TO pvault_auditor;
`

// PostgresSQL returns what makes the schema and the roles in an empty database,
// for an operator who lets no daemon do it.
func PostgresSQL() string {
	var b strings.Builder
	b.WriteString("BEGIN;\nCREATE SCHEMA pvault;\nSET LOCAL search_path = pvault;\nCREATE TABLE schema_version(version int NOT NULL);\n")
	for _, m := range pgMigrations {
		b.WriteString(strings.ReplaceAll(m, "\n\t", "\n"))
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "INSERT INTO schema_version VALUES (%d);\n%sCOMMIT;\n", len(pgMigrations), pgRoles)
	return b.String()
}

// pgMigrate makes or updates the schema. Two daemons that start at once take
// turns. A login that may not is told what to run.
func pgMigrate(ctx context.Context, db *sql.DB) error {
	version, err := pgVersion(ctx, db)
	if err != nil || version == len(pgMigrations) {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(7881299347898367)`); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS pvault`); err != nil {
		return fmt.Errorf("make schema (or let its owner run the output of pvault store sql): %w", err)
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_version(version int NOT NULL)`); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(version), 0) FROM schema_version`).Scan(&version); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	for ; version < len(pgMigrations); version++ {
		if _, err := tx.ExecContext(ctx, pgMigrations[version]); err != nil {
			return fmt.Errorf("migrate schema to %d: %w", version+1, err)
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM schema_version`); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_version VALUES ($1)`, version); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	return tx.Commit()
}

// pgVersion returns the version of the schema, 0 if there is none.
func pgVersion(ctx context.Context, db *sql.DB) (int, error) {
	var there bool
	if err := db.QueryRowContext(ctx, `SELECT to_regclass('pvault.schema_version') IS NOT NULL`).Scan(&there); err != nil || !there {
		return 0, err
	}
	var version int
	if err := db.QueryRowContext(ctx, `SELECT coalesce(max(version), 0) FROM pvault.schema_version`).Scan(&version); err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	if version > len(pgMigrations) {
		return 0, fmt.Errorf("the schema is version %d and this pvault knows %d: use a newer pvault", version, len(pgMigrations))
	}
	return version, nil
}
