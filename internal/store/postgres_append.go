package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pilox/vault/evidence"
)

// partBits is how many bits of a position lie inside one partition.
const partBits = 24

// staleState is the SQLSTATE of the fence, see audit_advance.
const staleState = "VA001"

// append implements engine. It is one transaction in one round trip, or two if
// there are sealed fields: statements travel in one message with a COPY, and an
// error in one ends the message, so that the COMMIT behind it is not reached.
func (s *server) append(ctx context.Context, t *Tenant, before, after evidence.Head, entries []evidence.Entry, sealed []evidence.Sealed) error {
	st, err := s.stage(ctx, t, entries, sealed)
	if err != nil {
		return err
	}
	return st.commit(ctx, before, after)
}

// A staged is a batch in a transaction of its own. Its connection must go back.
type staged struct {
	s     *server
	t     *Tenant
	conn  *pgconn.PgConn
	begin string // sent with the first statement
	leafs []byte // not sent yet, in the form of COPY
	rows  []byte
}

// stage takes a connection and makes the rows ready.
func (s *server) stage(ctx context.Context, t *Tenant, entries []evidence.Entry, sealed []evidence.Sealed) (*staged, error) {
	ctx, stop := context.WithTimeout(ctx, pgAnswer)
	defer stop()
	for i := 0; i < len(entries); i = max(i+1, len(entries)-1) { // the first and the last
		if err := s.extend(ctx, t.pos(entries[i].Index)>>partBits); err != nil {
			return nil, err
		}
		if i == len(entries)-1 {
			break
		}
	}
	c, err := s.conn(ctx)
	if err != nil {
		return nil, err
	}
	return &staged{s: s, t: t, conn: c, begin: "BEGIN; ", leafs: copyLeaves(t, entries), rows: copyDetails(t, sealed)}, nil
}

// extend makes a partition unless it is known to exist.
func (s *server) extend(ctx context.Context, part int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts[part] {
		return nil
	}
	if _, err := s.db.ExecContext(ctx, `SELECT audit_extend($1)`, part); err != nil {
		return fmt.Errorf("make partition %d: %w", part, err)
	}
	s.parts[part] = true
	return nil
}

const (
	copyLeaf   = `COPY audit_leaf(pos, ts, run, class, leaf, leaf_hash, chain) FROM STDIN (FORMAT binary)`
	copyDetail = `COPY audit_detail(pos, field, nonce, ct, key_id) FROM STDIN (FORMAT binary)`
)

// send brings the rows to the server, which checks them while another batch is
// being committed.
func (st *staged) send(ctx context.Context) error {
	if err := st.copy(ctx, st.begin+copyLeaf, &st.leafs); err != nil {
		return err
	}
	st.begin = ""
	return st.copy(ctx, copyDetail, &st.rows)
}

func (st *staged) copy(ctx context.Context, query string, rows *[]byte) error {
	if *rows == nil {
		return nil
	}
	_, err := st.conn.CopyFrom(ctx, bytes.NewReader(*rows), query)
	*rows = nil
	return err
}

// commit moves the head from before to after in the transaction of the rows, and
// makes both durable. It fails with [ErrStale] and writes nothing unless the head
// is at before's epoch and size.
func (st *staged) commit(ctx context.Context, before, after evidence.Head) error {
	defer st.s.put(st.conn)
	ctx, stop := context.WithTimeout(ctx, pgAnswer)
	defer stop()
	end := fmt.Sprintf(`SELECT audit_advance(%d, %d, %d, %d, '\x%x', '\x%x', '\x%x'); COMMIT`,
		st.t.id, before.Epoch, before.Size, after.Size, after.Chain[:], after.Root[:], after.Frontier)
	tag, err := st.finish(ctx, end)
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == staleState {
		return ErrStale
	}
	if err == nil && tag != "COMMIT" {
		err = fmt.Errorf("the transaction ended with %q", tag) // ROLLBACK, of one that had failed
	}
	return err
}

// finish sends what was not sent yet and then end, in as few messages as it can.
func (st *staged) finish(ctx context.Context, end string) (string, error) {
	switch {
	case st.leafs != nil && st.rows != nil:
		if err := st.copy(ctx, st.begin+copyLeaf, &st.leafs); err != nil {
			return "", err
		}
		st.begin = ""
		fallthrough
	case st.rows != nil:
		tag, err := st.conn.CopyFrom(ctx, bytes.NewReader(st.rows), st.begin+copyDetail+"; "+end)
		return tag.String(), err
	case st.leafs != nil:
		tag, err := st.conn.CopyFrom(ctx, bytes.NewReader(st.leafs), st.begin+copyLeaf+"; "+end)
		return tag.String(), err
	}
	results, err := st.conn.Exec(ctx, st.begin+end).ReadAll()
	if err != nil || len(results) == 0 {
		return "", err
	}
	return results[len(results)-1].CommandTag.String(), nil
}

// Stage brings a batch to the server without moving the head. The batch before it
// may still be on its way. finish must be called once: with commit it is
// [Tenant.Append] of what was staged, without it takes the rows back. SQLite has
// one writer and gives nil.
func (t *Tenant) Stage(ctx context.Context, entries []evidence.Entry, sealed []evidence.Sealed) (finish func(ctx context.Context, before, after evidence.Head, commit bool) error, err error) {
	s, ok := t.db.engine.(*server)
	if !ok {
		return nil, nil
	}
	st, err := s.stage(ctx, t, entries, sealed)
	if err == nil {
		if err = st.send(ctx); err != nil {
			s.put(st.conn)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stage %d leaves: %w", len(entries), err)
	}
	return func(ctx context.Context, before, after evidence.Head, commit bool) error {
		if !commit {
			s.put(st.conn) // which ends its transaction
			return nil
		}
		return st.commit(ctx, before, after)
	}, nil
}

// The binary form of COPY: a header, rows of fields with their lengths, an end.
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func copyLeaves(t *Tenant, entries []evidence.Entry) []byte {
	if len(entries) == 0 {
		return nil
	}
	n := len(copyHeader) + 2
	for i := range entries {
		n += 2 + 7*4 + 16 + 64 + len(entries[i].Run) + len(entries[i].Class) + len(entries[i].Leaf)
	}
	b := append(make([]byte, 0, n), copyHeader...)
	for i := range entries {
		e := &entries[i]
		b = binary.BigEndian.AppendUint16(b, 7)
		b = copyInt(b, t.pos(e.Index))
		b = copyInt(b, e.Micro)
		b = copyField(b, string(e.Run))
		b = copyField(b, string(e.Class))
		b = copyField(b, e.Leaf)
		b = copyField(b, e.Hash[:])
		b = copyField(b, e.Chain[:])
	}
	return append(b, 0xff, 0xff)
}

func copyDetails(t *Tenant, sealed []evidence.Sealed) []byte {
	if len(sealed) == 0 {
		return nil
	}
	n := len(copyHeader) + 2
	for i := range sealed {
		s := &sealed[i]
		n += 2 + 5*4 + 8 + len(s.Field) + len(s.Nonce) + len(s.Text) + len(s.Key)
	}
	b := append(make([]byte, 0, n), copyHeader...)
	for i := range sealed {
		s := &sealed[i]
		b = binary.BigEndian.AppendUint16(b, 5)
		b = copyInt(b, t.pos(s.Index))
		b = copyField(b, s.Field)
		b = copyField(b, s.Nonce)
		b = copyField(b, s.Text)
		b = copyField(b, s.Key)
	}
	return append(b, 0xff, 0xff)
}

func copyInt(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), uint64(n))
}

func copyField[T string | []byte](b []byte, v T) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}
