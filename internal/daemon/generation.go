package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/store"
)

// Files of the data directory that a recovery moves.
const (
	checkpointFile = "checkpoint"
	walFile        = "ledger.wal"
	anchorsDir     = "anchors"
	sinksDir       = "sinks"     // cursors, each of one ledger
	planFile       = "recovery"  // a recovery that was begun
	recoveredDir   = "recovered" // what recoveries put aside, by generation
)

// A generation is one of the ledgers of a tenant. The first has the tenant's name
// for its rows; each recovery starts another, with rows, a cluster and an origin of
// its own, so that nothing of the one before it is believed.
type generation struct {
	id   string // empty for the first
	rows *store.Tenant
}

// maxGenerations bounds the walk: a person signs for each.
const maxGenerations = 1000

var generationForm = regexp.MustCompile(`^[a-z0-9]{10}$`)

func newGenerationID() string { return vault.NewCallID()[2:12] }

// A successor says, in the rows of a ledger, which goes on after it.
type successor struct {
	ID string `json:"id"`
}

// parseSuccessor returns the id in a successor, which stands in a store that may be
// anybody's.
func parseSuccessor(doc []byte) (id string, ok bool) {
	var s successor
	err := json.Unmarshal(doc, &s)
	return s.ID, err == nil && generationForm.MatchString(s.ID)
}

// audience is the cluster that capabilities of this generation are for, by the name
// of the cluster. The budgets of the one before are lost, so it is another.
func (g *generation) audience(cluster string) string {
	if g.id == "" {
		return cluster
	}
	return cluster + "~" + g.id
}

// generations returns those of the tenant in order. The last is the one that goes on.
func (d *Daemon) generations(ctx context.Context) ([]generation, error) {
	var list []generation
	id := ""
	for range maxGenerations {
		g, err := d.generationOf(ctx, id)
		if err != nil {
			return nil, err
		}
		list = append(list, g)
		doc, ok, err := settingOf(ctx, g.rows, settingSuccessor)
		if err != nil {
			return nil, err
		}
		if !ok {
			return list, nil
		}
		if id, ok = parseSuccessor(doc); !ok {
			return nil, fmt.Errorf("the store does not say which ledger of tenant %s goes on", d.tenant)
		}
	}
	return nil, fmt.Errorf("the ledgers of tenant %s follow each other without end", d.tenant)
}

// generationOf returns the generation with this id. An @ is in no tenant's name.
func (d *Daemon) generationOf(ctx context.Context, id string) (generation, error) {
	if id == "" {
		rows, err := d.db.Tenant(ctx, d.tenant)
		return generation{rows: rows}, err
	}
	rows, err := d.db.Tenant(ctx, d.tenant+"@"+vault.Tenant(id))
	return generation{id: id, rows: rows}, err
}

// unfinished refuses while a recovery is half done.
func (d *Daemon) unfinished() error {
	if _, err := os.Lstat(d.path(planFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.New("a recovery of the ledger was begun and not finished: run pvault audit recover again")
}

// unsound reports whether a ledger did not open for what stands in it, rather than
// because it could not be read.
func unsound(err error) bool {
	return errors.Is(err, ledger.ErrRollback) || errors.Is(err, ledger.ErrForeign) || errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, store.ErrWAL)
}

// recoverable adds to an error of a ledger that is not sound what to do.
func recoverable(err error) error {
	if unsound(err) {
		return fmt.Errorf("%w; if it is lost: pvault audit recover says what is there, and starts a new ledger", err)
	}
	return err
}

// replaceFile replaces a file so that a crash leaves the old or the new one.
func replaceFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return move(path+".new", path)
}

// move renames durably. What is not there has been moved already.
func move(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// earlierRuns returns the runs of a principal in the ledgers before this one, whose
// keys are still here.
func (d *Daemon) earlierRuns(ctx context.Context, subject string) ([]vault.TaskID, error) {
	list, err := d.generations(ctx)
	if err != nil {
		return nil, err
	}
	var runs []vault.TaskID
	for _, g := range list[:len(list)-1] {
		tasks, err := g.rows.Tasks(ctx, "")
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			if _, err := (fieldKeys{d.keys}).Lookup(string(t.ID)); t.Principal == subject && !errors.Is(err, ledger.ErrNoKey) {
				runs = append(runs, t.ID)
			}
		}
	}
	return runs, nil
}
