package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/store"
)

// ErrSound means that the ledger can go on: there is nothing to recover.
var ErrSound = errors.New("the ledger is sound: there is nothing to recover")

// A Recovery starts a ledger with a new origin where the one there is cannot go on.
// It holds the store as a daemon does, so that none runs. Make one with
// [OpenRecovery]; what it does is repeatable: after a crash, do the same again.
type Recovery struct {
	d      *Daemon
	from   generation         // the ledger that cannot go on
	in     *ledger.Inspection // of it
	local  error              // why the local log does not fit; nil if it does
	plan   *plan              // begun earlier, of these findings
	last   bool               // all but putting files in place is done
	labels bool               // they were taken over
	step   func(string) error // of tests: called after each step
	found  Found
}

// Found is what a recovery finds, for people.
type Found struct {
	Problem    string           `json:"problem"`          // why the daemon does not start
	Origin     string           `json:"origin"`           // of the ledger
	Store      FoundStore       `json:"store"`            //
	Signed     *FoundCheckpoint `json:"signed,omitempty"` // last checkpoint; absent if missing or unreadable
	Lost       uint64           `json:"lost_at_least"`    // records that were signed and are not in the store
	Differs    bool             `json:"differs"`          // records in the store are others than were signed, or nobody can tell
	Proven     uint64           `json:"proven"`           // first records that a kept checkpoint covers
	Doubtful   Doubtful         `json:"not_taken_over"`   //
	Carried    int              `json:"revocations"`      // taken over
	Unreadable int              `json:"revocations_unreadable,omitempty"`
	Unfinished *Begun           `json:"unfinished,omitempty"` // a recovery that was begun
}

// FoundStore is what a store holds of a ledger.
type FoundStore struct {
	Origin  string       `json:"origin"`            // that its records were held against
	Records uint64       `json:"records"`           // in order, from the first on
	Root    vault.Digest `json:"root"`              // of the tree over them
	Last    *time.Time   `json:"last,omitempty"`    // time of the last
	Claimed uint64       `json:"claimed,omitempty"` // by its head, where that is another number
}

// FoundCheckpoint is what was signed last.
type FoundCheckpoint struct {
	Origin  string       `json:"origin"`
	Records uint64       `json:"records"`
	Root    vault.Digest `json:"root"`
	Own     bool         `json:"own_key"` // by the key of this data directory
	Written time.Time    `json:"written"`
}

// Doubtful is what the store says and a recovery does not believe.
type Doubtful struct {
	Servers []string `json:"servers"` // registered and pinned
	Tasks   int      `json:"tasks"`   // open
	Runs    int      `json:"runs"`    // open
}

// Begun says which recovery was not finished.
type Begun struct {
	At  time.Time `json:"at"`
	By  string    `json:"by"`
	Why string    `json:"why"`
}

// OpenRecovery looks at the ledger of a stopped daemon. It fails with [ErrSound] if
// that can go on, and if a daemon runs.
func OpenRecovery(ctx context.Context, conf Config, log *slog.Logger) (_ *Recovery, err error) {
	if _, err := os.Stat(conf.Data); err != nil {
		return nil, fmt.Errorf("no ledger to recover: %w", err)
	}
	r := &Recovery{d: newDaemon(ctx, conf, log), step: func(string) error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	return r, r.look(ctx)
}

// open takes the store as a daemon does, and does not wait for one that has it.
func (r *Recovery) open(ctx context.Context) error {
	for _, open := range []func(context.Context) error{r.d.openData, r.d.openKeys, r.d.openRows, r.d.tryLease} {
		if err := open(ctx); err != nil {
			if errors.Is(err, store.ErrHeld) {
				err = fmt.Errorf("%w: stop it; one that was killed holds it for another %v", err, leaseTime)
			}
			return err
		}
	}
	return nil
}

// ArchivePredecessor writes a bundle of the ledger that the one there follows, as
// [Recovery.Archive] does, and returns how many records are in it. The daemon must
// be stopped.
func ArchivePredecessor(ctx context.Context, conf Config, log *slog.Logger, w io.Writer) (records uint64, err error) {
	r := &Recovery{d: newDaemon(ctx, conf, log)}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.open(ctx); err != nil {
		return 0, err
	}
	list, err := r.d.generations(ctx)
	if err != nil {
		return 0, err
	}
	last := len(list) - 1
	if last == 0 {
		return 0, errors.New("there is no ledger before this one")
	}
	r.from = list[last-1]
	kept := r.d.path(recoveredDir, list[last].id)
	if err := r.inspect(ctx, filepath.Join(kept, checkpointFile), filepath.Join(kept, anchorsDir)); err != nil {
		return 0, err
	}
	return r.in.Proven.Size, r.Archive(ctx, w)
}

// Close gives the store back.
func (r *Recovery) Close() error { return r.d.Close() }

// Found says what was found.
func (r *Recovery) Found() Found { return r.found }

// Archive writes a bundle of the old ledger, as far as a checkpoint that was kept
// covers it: [ledger.ErrUnproven] if none does.
func (r *Recovery) Archive(ctx context.Context, w io.Writer) error { return r.in.Archive(ctx, w) }

// look finds out what is there.
func (r *Recovery) look(ctx context.Context) error {
	list, err := r.d.generations(ctx)
	if err != nil {
		return err
	}
	r.from = list[len(list)-1]
	if r.plan, err = r.d.readPlan(); err != nil {
		return err
	}
	file, anchors := r.d.path(checkpointFile), r.d.path(anchorsDir)
	if r.plan != nil && r.plan.ID == r.from.id {
		r.last = true
		if r.from, err = r.d.generationOf(ctx, r.plan.From); err != nil {
			return err
		}
		if kept := r.d.path(recoveredDir, r.plan.ID, checkpointFile); exists(kept) || !exists(r.d.path(recoveredDir, r.plan.ID, nextFile)) {
			file = kept
		}
		if kept := r.d.path(recoveredDir, r.plan.ID, anchorsDir); exists(kept) {
			anchors = kept
		}
	}
	if err := r.drainLog(ctx); err != nil {
		return err
	}
	if err := r.inspect(ctx, file, anchors); err != nil {
		return err
	}
	if r.in.Problem == nil && r.local == nil && !r.last {
		return errors.Join(ErrSound, r.d.dropPlan())
	}
	if err := r.ahead(ctx, list); err != nil {
		return err
	}
	if r.plan != nil && !r.last && !r.plan.fits(r) {
		r.plan = nil // of another state of the store: what it left is never read
	}
	return r.describe(ctx)
}

// ahead refuses where the checkpoint is of a ledger that was recovered from already:
// then this host has missed the recovery, and nothing is lost.
func (r *Recovery) ahead(ctx context.Context, list []generation) error {
	if r.last || !r.in.Own {
		return nil
	}
	for _, g := range list[:len(list)-1] {
		doc, _, err := settingOf(ctx, g.rows, settingCluster)
		if err != nil {
			return err
		}
		if r.in.Signed.Origin == r.d.originOf(g.audience(string(doc))) {
			return fmt.Errorf("%s is of %s, which was recovered from already, on another host: copy the file from there; if there is no such host, remove it and recover again", r.d.path(checkpointFile), r.in.Signed.Origin)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// drainLog brings what the local log holds to the store, if it fits there.
func (r *Recovery) drainLog(ctx context.Context) error {
	if !exists(r.d.path(walFile + ".0")) { // whatever ledger.wal says now
		return nil
	}
	w, err := r.from.rows.OpenWAL(ctx, r.d.path(walFile))
	if errors.Is(err, store.ErrWAL) {
		r.local = err
		return nil
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// inspect reads the old ledger. Its name is that of the store, or, where the store
// is another's or gone, the one that was signed.
func (r *Recovery) inspect(ctx context.Context, file, anchors string) error {
	d := r.d
	key, err := d.keys.Signer(keystore.Ledger)
	if err != nil {
		return err
	}
	cluster := d.conf.Cluster
	if cluster == "" {
		doc, _, err := settingOf(ctx, r.from.rows, settingCluster)
		if err != nil {
			return err
		}
		cluster = string(doc)
	}
	conf := ledger.Config{
		Store: r.from.rows, Origin: d.originOf(r.from.audience(cluster)), Key: key, Keys: fieldKeys{d.keys},
		CheckpointFile: file, Log: d.log,
		Anchors: func(context.Context) ([]evidence.Anchor, error) { return readAnchors(anchors) },
	}
	if r.in, err = ledger.Inspect(ctx, conf); err != nil || !r.in.Own || r.in.Signed.Origin == conf.Origin {
		return err
	}
	if part := strings.SplitN(r.in.Signed.Origin, "/", 3); file == d.path(checkpointFile) && (len(part) != 3 || part[0] != d.conf.Domain || part[1] != d.conf.Tenant) {
		return fmt.Errorf("the last checkpoint is of %s, and the configuration makes that %s: set domain, tenant and cluster as they were", r.in.Signed.Origin, conf.Origin)
	}
	conf.Origin = r.in.Signed.Origin
	signed, err := ledger.Inspect(ctx, conf)
	switch {
	case err != nil:
		return err
	case signed.Problem == nil && signed.Size > 0 && file == d.path(checkpointFile):
		return fmt.Errorf("the ledger is sound and of %s, and the configuration makes that %s: set domain, tenant and cluster as they were", signed.Origin, r.in.Origin)
	case signed.Problem == nil:
		signed.Problem = r.in.Problem
	}
	if signed.Size > 0 || r.in.Size == 0 {
		r.in = signed
	}
	return nil
}

// readAnchors reads what others vouched for, for the archive. The ledger checks it.
func readAnchors(dir string) ([]evidence.Anchor, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Stat("anchors.json"); err == nil && info.Size() > 2<<20 {
		return nil, nil // damaged: no such file is written
	}
	b, err := root.ReadFile("anchors.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []evidence.Anchor
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, nil // damaged: the file is kept, and the archive goes without
	}
	return list, nil
}

// describe fills in what was found.
func (r *Recovery) describe(ctx context.Context) error {
	in := r.in
	f := Found{
		Origin: in.Origin, Proven: in.Proven.Size, Unreadable: in.Unreadable,
		Store:    FoundStore{Origin: in.Origin, Records: in.Size, Root: in.Root},
		Doubtful: Doubtful{Servers: []string{}, Runs: in.Runs},
	}
	if err := errors.Join(in.Problem, r.local); err != nil {
		f.Problem = err.Error()
	}
	if !in.Last.IsZero() {
		f.Store.Last = &in.Last
	}
	if in.Head.Size != in.Size {
		f.Store.Claimed = in.Head.Size
	}
	f.Differs = in.Problem != nil
	if in.Signed.Origin != "" {
		f.Signed = &FoundCheckpoint{Origin: in.Signed.Origin, Records: in.Signed.Size, Root: in.Signed.Root, Own: in.Own, Written: in.Written}
		if in.Own {
			f.Origin = in.Signed.Origin
			have := in.Size
			if in.Signed.Origin != in.Origin {
				have = 0
			}
			f.Lost = in.Signed.Size - min(in.Signed.Size, have)
		}
		f.Differs = in.Problem != nil && (!errors.Is(in.Problem, ledger.ErrRollback) || f.Lost == 0)
	}
	for _, v := range in.Revocations {
		if _, err := readRevocation(v, time.Now()); err != nil {
			f.Unreadable++
			continue
		}
		f.Carried++
	}
	servers, err := r.from.rows.Records(ctx, store.KindServer, "")
	if err != nil {
		return err
	}
	for _, s := range servers {
		f.Doubtful.Servers = append(f.Doubtful.Servers, s.ID)
	}
	tasks, err := r.from.rows.Tasks(ctx, store.TaskOpen)
	if err != nil {
		return err
	}
	f.Doubtful.Tasks = len(tasks)
	if r.plan != nil {
		f.Unfinished = &Begun{At: r.plan.At, By: r.plan.By, Why: r.plan.Why}
	}
	r.found = f
	return nil
}

// fits reports whether p was made for what r finds.
func (p *plan) fits(r *Recovery) bool {
	return p.From == r.from.id && p.Size == r.in.Size && p.Root == r.in.Root && bytes.Equal(p.Note, r.in.Note)
}
