package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// A server is a PostgreSQL database that several daemons may use. Which of them
// writes a ledger is decided by the head row: see [Tenant.Append].
type server struct {
	cfg   *pgx.ConnConfig
	db    *sql.DB // reads, and small writes
	words func(string) string

	conns chan *pgconn.PgConn // for append; nil is one that has to be made

	mu    sync.Mutex
	parts map[int64]bool // partitions known to exist; guarded by mu
}

// Limits of a conversation with the server. A server that does not answer must
// turn into an error, because behind it calls wait.
const (
	pgConnect = 5 * time.Second
	pgAnswer  = 30 * time.Second
	// pgIdle ends what a writer that was cut off left open. Until then its rows
	// block the daemon that takes over.
	pgIdle = 10 * time.Second
	// pgConns is one connection that commits and one that copies meanwhile.
	pgConns = 2
	// pgReads are the console, an export, tails and the small writes.
	pgReads = 8
)

// OpenPostgres opens the database at dsn, a URL postgres://user@host/database, and
// brings its schema up to date. The password comes from PGPASSWORD or a passfile,
// never from the URL, which stands in files that people share. A server that is
// reached over a network must be one whose certificate and name were checked
// (sslmode=verify-full), and none may run without fsync.
func OpenPostgres(ctx context.Context, dsn string) (*DB, error) {
	cfg, err := pgConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &server{cfg: cfg, words: dollarsOnce(), conns: make(chan *pgconn.PgConn, pgConns), parts: map[int64]bool{}}
	for range pgConns {
		s.conns <- nil
	}
	s.db = stdlib.OpenDB(*cfg)
	s.db.SetMaxOpenConns(pgReads)
	s.db.SetMaxIdleConns(pgReads)
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store postgres %s: %w", cfg.Database, err), s.close())
	}
	return &DB{engine: s, read: reader{db: s.db, words: s.words}}, nil
}

// IsPostgres reports whether a store is named by the URL of a PostgreSQL.
func IsPostgres(at string) bool {
	return strings.HasPrefix(at, "postgres://") || strings.HasPrefix(at, "postgresql://")
}

func pgConfig(dsn string) (*pgx.ConnConfig, error) {
	if !IsPostgres(dsn) {
		return nil, errors.New("want postgres://user@host/database")
	}
	if rest, _, _ := strings.Cut(dsn[strings.Index(dsn, "//")+2:], "/"); strings.Contains(rest, ":") && strings.Contains(rest, "@") {
		if user, _, _ := strings.Cut(rest, "@"); strings.Contains(user, ":") {
			return nil, errors.New("the URL holds a password: put it into a passfile or PGPASSWORD")
		}
	}
	if strings.Contains(dsn, "password=") {
		return nil, errors.New("the URL holds a password: put it into a passfile or PGPASSWORD")
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("the URL of the database cannot be read") // pgx would repeat it
	}
	if err := checkTransport(cfg.Host, cfg); err != nil {
		return nil, err
	}
	for _, f := range cfg.Fallbacks {
		if remote(f.Host) && (f.TLSConfig == nil || f.TLSConfig.InsecureSkipVerify) {
			return nil, errPlain
		}
	}
	cfg.ConnectTimeout = pgConnect
	// After a failover the old server may still answer, and take no writes.
	if cfg.ValidateConnect == nil {
		cfg.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	cfg.RuntimeParams["application_name"] = "pvault"
	cfg.RuntimeParams["search_path"] = "pvault,pg_temp"
	cfg.RuntimeParams["synchronous_commit"] = "on" // a default of off would lose what was acknowledged
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = fmt.Sprint(pgIdle.Milliseconds())
	cfg.RuntimeParams["lock_timeout"] = fmt.Sprint(pgAnswer.Milliseconds())
	cfg.RuntimeParams["tcp_user_timeout"] = fmt.Sprint(pgIdle.Milliseconds())
	return cfg, nil
}

var errPlain = errors.New("a server over the network needs sslmode=verify-full")

func checkTransport(host string, cfg *pgx.ConnConfig) error {
	if remote(host) && (cfg.TLSConfig == nil || cfg.TLSConfig.InsecureSkipVerify) {
		return errPlain
	}
	return nil
}

// remote reports whether others can listen to what goes to host.
func remote(host string) bool {
	if filepath.IsAbs(host) || host == "localhost" {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

// prepare checks the server and the schema.
func (s *server) prepare(ctx context.Context) error {
	for _, setting := range []string{"fsync", "full_page_writes"} {
		var on string
		if err := s.db.QueryRowContext(ctx, `SELECT current_setting($1)`, setting).Scan(&on); err != nil {
			return err
		}
		if on != "on" {
			return fmt.Errorf("the server runs with %s %s: what it acknowledges may be lost", setting, on)
		}
	}
	return pgMigrate(ctx, s.db)
}

// exec implements engine.
func (s *server) exec(ctx context.Context, query string, args ...any) (int64, error) {
	ctx, stop := context.WithTimeout(ctx, pgAnswer)
	defer stop()
	r, err := s.db.ExecContext(ctx, s.words(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// conn returns a connection for append, which must go back with put.
func (s *server) conn(ctx context.Context) (*pgconn.PgConn, error) {
	c := <-s.conns
	if c != nil && !c.IsClosed() {
		return c, nil
	}
	c, err := pgconn.ConnectConfig(ctx, &s.cfg.Config)
	if err != nil {
		s.forget()
		s.conns <- nil
		return nil, err
	}
	return c, nil
}

// put gives a connection back. One with anything left open is not used again:
// to close it ends its transaction, on whichever server that is.
func (s *server) put(c *pgconn.PgConn) {
	const idle = 'I'
	if !c.IsClosed() && c.TxStatus() != idle {
		ctx, stop := context.WithTimeout(context.Background(), time.Second) //nolint:forbidigo // the caller's context may be over
		_ = c.Close(ctx)                                                    // a connection that is cut is closed as well
		stop()
	}
	if c.IsClosed() {
		c = nil
		s.forget()
	}
	s.conns <- c
}

// forget closes the connection that nobody uses: when one broke, its server is
// probably gone, and the next append should find that out on a new one.
func (s *server) forget() {
	select {
	case c := <-s.conns:
		if c != nil && !c.IsClosed() {
			ctx, stop := context.WithTimeout(context.Background(), time.Second) //nolint:forbidigo // as in put
			_ = c.Close(ctx)                                                    // as in put
			stop()
		}
		s.conns <- nil
	default:
	}
}

// close implements engine.
func (s *server) close() error {
	ctx, stop := context.WithTimeout(context.Background(), time.Second) //nolint:forbidigo // Close has no context and must finish
	defer stop()
	var errs []error
	for range pgConns {
		if c := <-s.conns; c != nil && !c.IsClosed() {
			errs = append(errs, c.Close(ctx))
		}
		s.conns <- nil
	}
	return errors.Join(append(errs, s.db.Close())...)
}
