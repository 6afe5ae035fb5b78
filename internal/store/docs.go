package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
)

// A TaskState says whether a task goes on.
type TaskState string

// The states of a task.
const (
	TaskOpen   TaskState = "open"
	TaskClosed TaskState = "closed"
)

// A Task is one task instance. The same file by the same principal has at most
// one that is open, which is why a restart does not reset a budget.
type Task struct {
	ID         vault.TaskID
	FileDigest vault.Digest
	Principal  string
	State      TaskState
	Opened     time.Time
	Doc        []byte
}

// ErrTaskOpen means that this file and principal have an open task already.
var ErrTaskOpen = errors.New("this task file has an open task")

const taskColumns = `id, file_digest, principal, state, opened_at, doc`

// PutTask writes a task, replacing the one with the same id.
func (t *Tenant) PutTask(ctx context.Context, task Task) error {
	if task.State != TaskOpen && task.State != TaskClosed {
		return fmt.Errorf("put task %s: unknown state %q", task.ID, task.State)
	}
	if task.State == TaskOpen {
		switch other, err := t.OpenTask(ctx, task.FileDigest, task.Principal); {
		case err == nil && other.ID != task.ID:
			return fmt.Errorf("put task %s: %w: %s", task.ID, ErrTaskOpen, other.ID)
		case err != nil && !errors.Is(err, ErrNotFound):
			return err
		}
	}
	// The unique index stops the second of two that got past the look.
	_, err := t.exec(ctx, `INSERT INTO task(tenant, `+taskColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (tenant, id) DO UPDATE SET file_digest = excluded.file_digest, principal = excluded.principal,
			state = excluded.state, opened_at = excluded.opened_at, doc = excluded.doc`,
		t.id, string(task.ID), task.FileDigest[:], task.Principal, string(task.State), task.Opened.UnixMicro(), notNil(task.Doc))
	if err != nil {
		return fmt.Errorf("put task %s: %w", task.ID, err)
	}
	return nil
}

// Task returns the task with this id, or [ErrNotFound].
func (t *Tenant) Task(ctx context.Context, id vault.TaskID) (Task, error) {
	task, err := scanTask(t.db.read.QueryRowContext(ctx, `SELECT `+taskColumns+` FROM task WHERE tenant = ? AND id = ?`, t.id, string(id)))
	if err != nil {
		return Task{}, fmt.Errorf("read task %s: %w", id, err)
	}
	return task, nil
}

// OpenTask returns the open task of a file and principal, or [ErrNotFound].
func (t *Tenant) OpenTask(ctx context.Context, file vault.Digest, principal string) (Task, error) {
	task, err := scanTask(t.db.read.QueryRowContext(ctx, `SELECT `+taskColumns+` FROM task
		WHERE tenant = ? AND principal = ? AND file_digest = ? AND state = 'open'`, t.id, principal, file[:]))
	if err != nil {
		return Task{}, fmt.Errorf("read open task: %w", err)
	}
	return task, nil
}

// Tasks returns the tasks in a state, oldest first; every task if state is empty.
func (t *Tenant) Tasks(ctx context.Context, state TaskState) ([]Task, error) {
	rows, err := t.db.read.QueryContext(ctx, `SELECT `+taskColumns+` FROM task
		WHERE tenant = ?1 AND (?2 = '' OR state = ?2) ORDER BY opened_at, id`, t.id, string(state))
	if err != nil {
		return nil, fmt.Errorf("read tasks: %w", err)
	}
	defer rows.Close()
	var list []Task
	for rows.Next() {
		task, err := scanTask(rows)
		if err != nil {
			return nil, fmt.Errorf("read tasks: %w", err)
		}
		list = append(list, task)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read tasks: %w", err)
	}
	return list, nil
}

func scanTask(row interface{ Scan(...any) error }) (Task, error) {
	var task Task
	var file []byte
	var opened int64
	err := row.Scan(&task.ID, &file, &task.Principal, &task.State, &opened, &task.Doc)
	if errors.Is(err, sql.ErrNoRows) {
		return Task{}, ErrNotFound
	}
	if err != nil {
		return Task{}, err
	}
	if len(file) != len(task.FileDigest) {
		return Task{}, errors.New("file digest is not 32 bytes long")
	}
	task.FileDigest, task.Opened = vault.Digest(file), time.UnixMicro(opened).UTC()
	return task, nil
}

// A Kind is a sort of record. Its owner says what the document holds.
type Kind string

// The kinds of record.
const (
	KindServer     Kind = "server"     // a registration, by name
	KindDefinition Kind = "definition" // a pinned tool definition
	KindApproval   Kind = "approval"   // a question and its answer, by approval id
	KindSetting    Kind = "setting"    // anything small by name
)

// A Record is one document of the daemon.
type Record struct {
	Kind  Kind
	ID    string
	State string // what [Tenant.Records] can select by; may be empty
	Doc   []byte
}

// PutRecord writes a record, replacing the one with the same kind and id.
func (t *Tenant) PutRecord(ctx context.Context, r Record) error {
	if r.Kind == "" || r.ID == "" {
		return errors.New("put record: no kind or id")
	}
	if _, err := t.exec(ctx, `INSERT INTO record(tenant, kind, id, state, doc) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (tenant, kind, id) DO UPDATE SET state = excluded.state, doc = excluded.doc`,
		t.id, string(r.Kind), r.ID, r.State, notNil(r.Doc)); err != nil {
		return fmt.Errorf("put %s %s: %w", r.Kind, r.ID, err)
	}
	return nil
}

// Record returns one record, or [ErrNotFound].
func (t *Tenant) Record(ctx context.Context, kind Kind, id string) (Record, error) {
	r := Record{Kind: kind, ID: id}
	err := t.db.read.QueryRowContext(ctx, `SELECT state, doc FROM record WHERE tenant = ? AND kind = ? AND id = ?`,
		t.id, string(kind), id).Scan(&r.State, &r.Doc)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Record{}, fmt.Errorf("read %s %s: %w", kind, id, err)
	}
	return r, nil
}

// Records returns the records of a kind by id; those in a state unless it is
// empty.
func (t *Tenant) Records(ctx context.Context, kind Kind, state string) ([]Record, error) {
	rows, err := t.db.read.QueryContext(ctx, `SELECT id, state, doc FROM record
		WHERE tenant = ?1 AND kind = ?2 AND (?3 = '' OR state = ?3) ORDER BY id`, t.id, string(kind), state)
	if err != nil {
		return nil, fmt.Errorf("read every %s: %w", kind, err)
	}
	defer rows.Close()
	var list []Record
	for rows.Next() {
		r := Record{Kind: kind}
		if err := rows.Scan(&r.ID, &r.State, &r.Doc); err != nil {
			return nil, fmt.Errorf("read every %s: %w", kind, err)
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read every %s: %w", kind, err)
	}
	return list, nil
}

// DeleteRecord removes a record, or returns [ErrNotFound].
func (t *Tenant) DeleteRecord(ctx context.Context, kind Kind, id string) error {
	n, err := t.exec(ctx, `DELETE FROM record WHERE tenant = ? AND kind = ? AND id = ?`, t.id, string(kind), id)
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", kind, id, err)
	}
	return nil
}
