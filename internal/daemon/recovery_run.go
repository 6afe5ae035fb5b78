package daemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/ledger"
)

// Recovered says what goes on after a recovery.
type Recovered struct {
	Origin      string `json:"origin"`
	Cluster     string `json:"cluster"` // audience of capabilities from now on
	Key         string `json:"key"`     // to pin
	Kept        string `json:"kept"`    // directory of what was put aside
	Revocations int    `json:"revocations"`
}

// A plan is a recovery that was begun. It stands in a file while the daemon must not
// start, and holds what the first record of the new ledger says.
type plan struct {
	ID        string       `json:"id"`   // of the new generation
	From      string       `json:"from"` // of the old
	Size      uint64       `json:"size"` // records of the old
	Root      vault.Digest `json:"root"`
	Note      []byte       `json:"note,omitempty"` // its last checkpoint
	Cluster   string       `json:"cluster"`        // name, without the generation
	Origin    string       `json:"origin"`         // of the new
	At        time.Time    `json:"at"`
	By        string       `json:"by"`
	Why       string       `json:"why"`
	Statement []byte       `json:"statement"`
	Signature []byte       `json:"signature"`
}

// A statement says which ledger a new one follows, and why. It is the field
// predecessor of the first record, and what the approver signs.
type statement struct {
	Version    int              `json:"version"`
	Origin     string           `json:"origin"`               // of the old ledger
	Checkpoint string           `json:"checkpoint,omitempty"` // its last, whole
	Unreadable *unreadable      `json:"unreadable,omitempty"` // in its place, where it is none
	Signed     *FoundCheckpoint `json:"signed,omitempty"`
	Store      FoundStore       `json:"store"`
	Problem    string           `json:"problem"`
	Successor  followed         `json:"successor"`
	Why        string           `json:"why"`
	By         string           `json:"by"`
	Approver   string           `json:"approver_key"` // Ed25519, in base64
	At         time.Time        `json:"at"`
}

type unreadable struct {
	Bytes  int          `json:"bytes"`
	Digest vault.Digest `json:"digest"` // vault/checkpoint-file/v1
}

type followed struct {
	Origin string `json:"origin"`
	Key    string `json:"key"`
}

const (
	nextFile = "checkpoint.next" // of the new ledger, until it is the one
	maxWhy   = 1024              // bytes
	// maxStatement leaves room below what the ledger keeps of a field.
	maxStatement = 30 << 10
	maxPlan      = 256 << 10
	// maxFirstStatus leaves half of a status list to the new ledger, whatever the old
	// store says.
	maxFirstStatus = 4 << 20
)

// Run starts the new ledger: its first record names the old one, what is there of
// it, why, and who says so. Only revocations and labels are taken over, which take
// authority away. A recovery that was begun is finished as it was signed.
func (r *Recovery) Run(ctx context.Context, why string, approver *Approver) (Recovered, error) {
	if why == "" || len(why) > maxWhy || !utf8.ValidString(why) {
		return Recovered{}, fmt.Errorf("say why, in 1 to %d bytes", maxWhy)
	}
	if known, ok := r.d.approvers[approver.name]; !ok || !known.Public.Equal(approver.key.Public) {
		return Recovered{}, fmt.Errorf("%s is no approver of this data directory", approver.name)
	}
	var next generation
	var cfg ledger.Config
	for _, s := range []struct {
		name string
		run  func() error
	}{
		{"plan", func() error { return r.begin(ctx, why, approver) }},
		{"rows", func() (err error) { next, err = r.prepare(ctx); return err }},
		{"ledger", func() (err error) { cfg, err = r.write(ctx, next); return err }},
		{"successor", func() error { return r.point(ctx) }},
		{"aside", r.putAside},
		{"checkpoint", r.place},
		{"end", r.d.dropPlan},
	} {
		if err := s.run(); err != nil {
			return Recovered{}, fmt.Errorf("recover ledger: %s: %w", s.name, err)
		}
		if err := r.step(s.name); err != nil {
			return Recovered{}, err
		}
	}
	key, err := evidence.VerifierKey(cfg.Origin, cfg.Key.Public())
	if err != nil {
		return Recovered{}, err
	}
	return Recovered{
		Origin: cfg.Origin, Cluster: next.audience(r.plan.Cluster), Key: key,
		Kept: r.d.path(recoveredDir, r.plan.ID), Revocations: r.found.Carried,
	}, nil
}

// begin writes the plan, unless it stands. From here on the daemon does not start
// before the end.
func (r *Recovery) begin(ctx context.Context, why string, approver *Approver) error {
	if r.plan != nil {
		return nil
	}
	cluster := r.d.conf.Cluster
	if cluster == "" {
		doc, _, err := settingOf(ctx, r.from.rows, settingCluster)
		if err != nil {
			return err
		}
		if cluster = string(doc); cluster == "" {
			cluster = "cluster-" + vault.NewCallID()[2:]
		}
	}
	next := generation{id: newGenerationID()}
	p := &plan{
		ID: next.id, From: r.from.id, Size: r.in.Size, Root: r.in.Root, Note: r.in.Note, Cluster: cluster,
		Origin: r.d.originOf(next.audience(cluster)), At: time.Now().UTC().Truncate(time.Second),
		By: r.d.signedBy(approver.name), Why: why,
	}
	var err error
	if p.Statement, err = r.statement(p, approver); err != nil {
		return err
	}
	digest := vault.Hash("recovery", p.Statement)
	if p.Signature, err = approver.Sign(digest[:]); err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := replaceFile(r.d.path(planFile), b); err != nil {
		return err
	}
	r.plan = p
	return nil
}

func (r *Recovery) statement(p *plan, approver *Approver) ([]byte, error) {
	key, err := r.d.keys.Signer(keystore.Ledger)
	if err != nil {
		return nil, err
	}
	vkey, err := evidence.VerifierKey(p.Origin, key.Public())
	if err != nil {
		return nil, err
	}
	f := &r.found
	s := statement{
		Version: 1, Origin: f.Origin, Signed: f.Signed, Store: f.Store, Problem: f.Problem,
		Successor: followed{Origin: p.Origin, Key: vkey}, Why: p.Why, By: p.By,
		Approver: base64.StdEncoding.EncodeToString(approver.key.Public), At: p.At,
	}
	if f.Signed != nil {
		s.Checkpoint = string(p.Note)
	}
	b, err := json.Marshal(s)
	if err == nil && len(b) > maxStatement || f.Signed == nil && p.Note != nil {
		s.Checkpoint, s.Unreadable = "", &unreadable{Bytes: len(p.Note), Digest: vault.Hash("checkpoint-file", p.Note)}
		b, err = json.Marshal(s)
	}
	if err == nil && len(b) > maxStatement {
		err = fmt.Errorf("a statement of %d bytes", len(b))
	}
	return b, err
}

// prepare makes the rows of the new ledger. Of the old ones it takes over the name of
// the cluster and what is stricter than nothing.
func (r *Recovery) prepare(ctx context.Context) (generation, error) {
	next, err := r.d.generationOf(ctx, r.plan.ID)
	if err != nil || r.last {
		return next, err
	}
	first, err := r.statuses(ctx)
	if err != nil {
		return next, err
	}
	if err := setOf(ctx, next.rows, settingStatuses, []byte(strconv.Itoa(first))); err != nil {
		return next, err
	}
	labels, ok, err := settingOf(ctx, r.from.rows, settingLabels)
	if err != nil {
		return next, err
	}
	if _, bad := decodeLabels(labels); ok && bad == nil {
		if err := setOf(ctx, next.rows, settingLabels, labels); err != nil {
			return next, err
		}
		r.labels = true
	}
	return next, setOf(ctx, next.rows, settingCluster, []byte(r.plan.Cluster))
}

// statuses returns the first index of the status list for new tasks. All that can
// have been given out is below: each task is a record, and of those that were lost
// the last checkpoint counts all but the last second's.
func (r *Recovery) statuses(ctx context.Context) (int, error) {
	const unsigned = 1 << 10
	used := 0
	if doc, ok, err := settingOf(ctx, r.from.rows, settingStatuses); err != nil {
		return 0, err
	} else if ok {
		used, _ = strconv.Atoi(string(doc)) // of a store that is in doubt
	}
	tasks, err := r.from.rows.Tasks(ctx, "")
	if err != nil {
		return 0, err
	}
	for _, row := range tasks {
		if doc, err := decodeTask(row); err == nil && doc.Status != nil {
			used = max(used, min(*doc.Status, maxFirstStatus)+1)
		}
	}
	if !r.in.Own { // nobody can tell how many were given out
		return maxFirstStatus, nil
	}
	return min(max(used, 0)+int(min(r.found.Lost, maxFirstStatus))+unsigned, maxFirstStatus), nil
}

// write makes the new ledger: what it follows, what stays revoked, and that this is
// all. What an earlier attempt wrote stays.
func (r *Recovery) write(ctx context.Context, next generation) (ledger.Config, error) {
	key, err := r.d.keys.Signer(keystore.Ledger)
	if err != nil {
		return ledger.Config{}, err
	}
	dir := r.d.path(recoveredDir, r.plan.ID)
	cfg := ledger.Config{
		Store: next.rows, Origin: r.plan.Origin, Key: key, Keys: fieldKeys{r.d.keys},
		CheckpointFile: r.d.path(recoveredDir, r.plan.ID, nextFile), Confirm: r.d.lease.confirm, Log: r.d.log,
	}
	if r.last {
		return cfg, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cfg, err
	}
	if err := errors.Join(syncDir(r.d.path(recoveredDir)), syncDir(r.d.conf.Data)); err != nil {
		return cfg, err
	}
	l, err := ledger.Open(ctx, cfg)
	if unsound(err) {
		return cfg, errors.Join(fmt.Errorf("what was begun is damaged, and dropped; recover again: %w", err), r.d.dropPlan())
	}
	if err != nil {
		return cfg, err
	}
	return cfg, errors.Join(r.fill(ctx, l), l.Close())
}

func (r *Recovery) fill(ctx context.Context, l *ledger.Ledger) error {
	size := l.Head().Size
	if size == 0 {
		if _, err := l.Commit(ctx, &vault.Event{
			Class: vault.ClassRecovery, Phase: vault.PhaseOpened, Verdict: vault.Allow,
			Fields: []vault.Field{
				{Name: "by", Value: []byte(r.plan.By)},
				{Name: "predecessor", Value: r.plan.Statement},
				{Name: "signature", Value: []byte(base64.StdEncoding.EncodeToString(r.plan.Signature))},
				{Name: "why", Value: []byte(r.plan.Why)},
			},
		}); err != nil {
			return err
		}
	}
	if size > 0 {
		for rec, err := range l.Records(ctx, size-1, size, "", false) {
			if err != nil {
				return err
			}
			if rec.Class == vault.ClassRecovery && rec.Phase == vault.PhaseClosed {
				return nil
			}
		}
	}
	// Twice, after a crash, is no harm.
	for _, v := range r.in.Revocations {
		what, err := readRevocation(v, r.plan.At)
		if err != nil {
			continue
		}
		p := pendingRevocation{
			By:   string(v.Fields["by"]),
			Note: fmt.Sprintf("record %d of %s: %s", v.Index, r.in.Origin, v.Fields["note"]),
			What: what,
		}
		e, err := p.event()
		if err != nil {
			return err
		}
		if _, err := l.Sequence(ctx, e); err != nil {
			return err
		}
	}
	taken, err := json.Marshal(map[string]any{"labels": r.labels, "revocations": r.found.Carried, "unreadable": r.found.Unreadable})
	if err != nil {
		return err
	}
	_, err = l.Commit(ctx, &vault.Event{
		Class: vault.ClassRecovery, Phase: vault.PhaseClosed, Verdict: vault.Allow,
		Fields: []vault.Field{{Name: "predecessor", Value: taken}},
	})
	return err
}

// maxRevocation bounds what is taken over, in bytes: written again, with every byte
// escaped, it is still kept by the ledger. One that is not could not be read at the
// next start, and would end it.
const maxRevocation = 4 << 10

// readRevocation reads a record of the old ledger as the daemon will read it again.
// No clock of that store ends what is made from now on.
func readRevocation(v ledger.Revocation, now time.Time) (capability.Revocation, error) {
	var what capability.Revocation
	if len(v.What()) > maxRevocation {
		return what, fmt.Errorf("a revocation of %d bytes", len(v.What()))
	}
	if err := json.Unmarshal([]byte(v.What()), &what); err != nil {
		return what, err
	}
	if what.At.After(now) {
		what.At = now
	}
	return what, new(capability.Revocations).Add(what)
}

// point says in the old rows which ledger goes on. Daemons on other hosts find it, and
// one that believes it still serves the old can append no more.
func (r *Recovery) point(ctx context.Context) error {
	if r.last {
		return nil
	}
	head, err := r.from.rows.Head(ctx)
	if err != nil {
		return err
	}
	if _, err := r.from.rows.Seize(ctx, head); err != nil {
		return err
	}
	doc, err := json.Marshal(successor{ID: r.plan.ID})
	if err != nil {
		return err
	}
	return setOf(ctx, r.from.rows, settingSuccessor, doc)
}

// putAside moves what belongs to the old ledger.
func (r *Recovery) putAside() error {
	for _, name := range []string{anchorsDir, sinksDir, walFile + ".0", walFile + ".1"} {
		if err := move(r.d.path(name), r.d.path(recoveredDir, r.plan.ID, name)); err != nil {
			return err
		}
	}
	return nil
}

// place puts the new checkpoint where the old one was, and keeps that beside.
func (r *Recovery) place() error {
	kept, next := r.d.path(recoveredDir, r.plan.ID, checkpointFile), r.d.path(recoveredDir, r.plan.ID, nextFile)
	if !exists(next) {
		return nil
	}
	if !exists(kept) {
		if err := move(r.d.path(checkpointFile), kept); err != nil {
			return err
		}
	}
	return move(next, r.d.path(checkpointFile))
}

// readPlan returns the recovery that was begun, nil if there is none.
func (d *Daemon) readPlan() (*plan, error) {
	info, err := os.Stat(d.path(planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPlan {
		return nil, fmt.Errorf("%s is larger than %d bytes", d.path(planFile), maxPlan)
	}
	b, err := os.ReadFile(d.path(planFile))
	if err != nil {
		return nil, err
	}
	p := new(plan)
	if err := json.Unmarshal(b, p); err != nil || !generationForm.MatchString(p.ID) || p.From != "" && !generationForm.MatchString(p.From) {
		return nil, fmt.Errorf("%s cannot be read: remove it, and recover again", d.path(planFile))
	}
	return p, nil
}

// dropPlan ends a recovery.
func (d *Daemon) dropPlan() error {
	if err := os.Remove(d.path(planFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(d.conf.Data)
}
