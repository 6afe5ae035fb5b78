// Package daemon wires the parts of Vault into one running program.
//
// It owns the configuration, the order in which things start and stop, and the
// operations that need several parts at once: opening a task, registering a
// server, running an agent. It holds no rule about what may happen: those are in
// the parts. Start with [Open].
//
// It promises: what is configured and cannot be had refuses the start; a second
// daemon on the same data refuses to start; after a crash every open intent is
// closed as unknown before the first new call; the daemon says what it really
// enforces on this host.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/anchor"
	"github.com/pilox/vault/internal/approval"
	"github.com/pilox/vault/internal/authz"
	"github.com/pilox/vault/internal/egress"
	"github.com/pilox/vault/internal/flow"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/guard"
	"github.com/pilox/vault/internal/identity"
	"github.com/pilox/vault/internal/keystore"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/mcp"
	"github.com/pilox/vault/internal/oauth"
	"github.com/pilox/vault/internal/policy"
	"github.com/pilox/vault/internal/sandbox/process"
	"github.com/pilox/vault/internal/sink"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/telemetry"
	"github.com/pilox/vault/internal/tool"
)

// Version is the version of this build.
const Version = "0.2.0"

// rootKID names the key that signs root links. A successor gets another name.
const rootKID = "local-1"

// MaybeChild turns a re-executed copy of this program into the sandbox child it
// was started as, and returns otherwise. main and TestMain call it first.
func MaybeChild() { process.MaybeChild() }

// A Daemon is a running Vault. Make one with [Open].
type Daemon struct {
	conf    Config
	log     *slog.Logger
	started time.Time
	cluster string
	tenant  vault.Tenant

	keys      *keystore.Store
	db        *store.DB
	rows      *store.Tenant // of the ledger that goes on; see generation
	lease     *lease
	ledger    *ledger.Ledger
	anchors   *anchor.Anchorer // nil if nobody is asked
	sinks     *sink.Sinks      // nil if nothing is shipped
	metrics   *telemetry.Metrics
	scraper   []byte            // token of who reads metrics over TCP; nil if nobody may
	traces    *telemetry.Traces // nil if no call is followed
	jail      *process.Runner
	catalogue *tool.Catalogue
	verifier  *capability.Verifier
	revoked   *capability.Revocations
	issuer    capability.Signer
	flow      *flow.Flow
	policy    *policy.Policy
	desk      *approval.Desk
	egress    *egress.Client
	doors     *authz.Doors
	upstreams *mcp.Upstreams
	front     *mcp.Front
	gateway   *gateway.Gateway
	approvers map[string]keystore.Approver // by name
	prover    *oauth.Prover
	trust     *identity.Trust // of TLS clients; nil if none may show an SVID
	exchange  *exchange       // nil if nothing is configured
	statuses  int             // next index of the status list, -1 before it is known; under tasksMu
	views     views
	pending   pending // revocations that wait for the ledger
	keeps     string  // privileges that could not be given up, for the operator
	relists   relists

	tasksMu   sync.Mutex // opening and closing of tasks, one at a time
	serversMu sync.Mutex // registering of servers, one at a time

	listeners listeners
	ctx       context.Context // of background work; ends with Close
	stop      context.CancelFunc
	work      sync.WaitGroup
	closers   []func() error // in the order of opening; run backwards
}

// Open starts everything but the listeners. On an error what was started is
// stopped again.
func Open(ctx context.Context, conf Config, log *slog.Logger) (d *Daemon, err error) {
	// The collector stays at its default percentage: what is alive is a few MB, and
	// a higher one buys little time for much memory. The limit makes it work
	// harder when large results are in flight.
	debug.SetMemoryLimit(512 << 20)

	d = newDaemon(ctx, conf, log)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"privileges", d.giveUp},
		{"data directory", d.openData},
		{"keys", d.openKeys},
		{"store", d.openStore},
		{"sandbox", d.openSandbox},
		{"metrics", d.openMetrics},
		{"traces", d.openTraces},
		{"ledger", d.openLedger},
		{"anchors", d.openAnchors},
		{"sinks", d.openSinks},
		{"capabilities", d.openCapabilities},
		{"servers", d.openServers},
		{"policy", d.openPolicy},
		{"approvals", d.openApprovals},
		{"gateway", d.openGateway},
		{"token exchange", d.openExchange},
		{"recovery", d.recover},
		{"record of the start", d.recordStart},
	} {
		if err := step.run(ctx); err != nil {
			return d, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	d.background()
	return d, nil
}

func newDaemon(ctx context.Context, conf Config, log *slog.Logger) *Daemon {
	d := &Daemon{conf: conf, log: log, started: time.Now(), tenant: vault.Tenant(conf.Tenant), statuses: -1}
	d.ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	return d
}

// Close stops the daemon: listeners first, then calls in flight, then the parts
// in the reverse order of their start. It can be called more than once.
func (d *Daemon) Close() error {
	d.listeners.close()
	d.stop()
	d.work.Wait()
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *Daemon) onClose(f func() error) { d.closers = append(d.closers, f) }

func (d *Daemon) path(elem ...string) string {
	return filepath.Join(append([]string{d.conf.Data}, elem...)...)
}

// giveUp gives up what the daemon does not need. What this build cannot give up is
// said among the warnings.
func (d *Daemon) giveUp(context.Context) error {
	err := giveUp()
	if errors.Is(err, errCgo) {
		d.keeps = err.Error()
		return nil
	}
	return err
}

func (d *Daemon) openData(context.Context) error {
	if err := os.MkdirAll(d.conf.Data, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(d.conf.Data)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be reached by others (mode %v): chmod 700 it", d.conf.Data, info.Mode().Perm())
	}
	return nil
}

func (d *Daemon) openKeys(context.Context) error {
	d.pending.path = d.path("revocations.pending")
	var err error
	if d.keys, err = keystore.Open(d.path("keys")); err != nil {
		return err
	}
	d.onClose(d.keys.Close)
	list, err := keystore.Approvers{Dir: d.path("approvers")}.List()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("approver keys: %w", err)
	}
	d.approvers = make(map[string]keystore.Approver, len(list))
	for _, a := range list {
		d.approvers[a.Name] = a
	}
	return nil
}

func (d *Daemon) openStore(ctx context.Context) error {
	if err := d.openRows(ctx); err != nil {
		return err
	}
	if err := d.openLease(ctx); err != nil {
		return err
	}
	list, err := d.generations(ctx)
	if err != nil {
		return err
	}
	if err := d.unfinished(); err != nil {
		return err
	}
	gen := list[len(list)-1]
	d.rows = gen.rows
	return d.openCluster(ctx, gen)
}

// openRows opens the store and the rows of the tenant's first ledger.
func (d *Daemon) openRows(ctx context.Context) error {
	var err error
	if store.IsPostgres(d.conf.Store) {
		d.db, err = store.OpenPostgres(ctx, d.conf.Store)
	} else {
		d.db, err = store.Open(ctx, d.path("vault.db"))
	}
	if err != nil {
		return err
	}
	d.onClose(d.db.Close)
	d.rows, err = d.db.Tenant(ctx, d.tenant)
	return err
}

// openCluster finds out the audience of this daemon's capabilities. It is made
// once and never changes by itself: a new one voids every capability, which is what
// a recovery wants.
func (d *Daemon) openCluster(ctx context.Context, gen generation) error {
	name, err := d.clusterName(ctx)
	if err != nil {
		return err
	}
	if name == "" {
		if name = d.conf.Cluster; name == "" {
			name = "cluster-" + vault.NewCallID()[2:]
		}
		if err := d.set(ctx, settingCluster, []byte(name)); err != nil {
			return err
		}
	}
	d.cluster = gen.audience(name)
	return nil
}

// clusterName returns the name of the cluster as it stands in the store, without
// what a recovery adds; empty if there is none.
func (d *Daemon) clusterName(ctx context.Context) (string, error) {
	doc, ok, err := d.setting(ctx, settingCluster)
	if err == nil && ok && d.conf.Cluster != "" && d.conf.Cluster != string(doc) {
		err = fmt.Errorf("this data directory belongs to cluster %q, the configuration says %q", doc, d.conf.Cluster)
	}
	return string(doc), err
}

// originOf names the ledger with this audience.
func (d *Daemon) originOf(cluster string) string {
	return d.conf.Domain + "/" + d.conf.Tenant + "/" + cluster
}

func (d *Daemon) openSandbox(ctx context.Context) error {
	var err error
	if d.jail, err = process.Open(ctx, process.Config{UID: guestUID, GID: guestUID, Log: d.log}); err != nil {
		return err
	}
	least, err := vault.ParseGrade(d.conf.Sandbox.MinGrade)
	if err != nil {
		return err
	}
	if least == vault.GradeNone {
		return nil // the operator accepts whatever this host gives; every record says what it is
	}
	report := d.jail.Report()
	if err := report.Demand(least); err != nil {
		return fmt.Errorf("this host gives grade %v and sandbox.min_grade asks for %v; pvault doctor says what to change: %w", report.Grade, least, err)
	}
	return nil
}

func (d *Daemon) openLedger(ctx context.Context) error {
	key, err := d.keys.Signer(keystore.Ledger)
	if err != nil {
		return err
	}
	witnesses, err := d.conf.Anchor.policy()
	if err != nil {
		return err
	}
	var rows ledger.Store = d.rows
	if d.conf.Ledger.WAL {
		w, err := d.rows.OpenWAL(ctx, d.path(walFile))
		if err != nil {
			return recoverable(err)
		}
		d.onClose(func() error {
			err := w.Close()
			d.lease.owes = err != nil
			return err
		})
		rows = w
	}
	d.ledger, err = ledger.Open(ctx, ledger.Config{
		Store:          rows,
		Origin:         d.origin(),
		Key:            key,
		Keys:           fieldKeys{d.keys},
		CheckpointFile: d.path(checkpointFile),
		Confirm:        d.lease.confirm,
		Anchors:        d.keptAnchors,
		Witnesses:      witnesses,
		Committed:      d.metrics.Committed,
		Log:            d.log,
	})
	if err != nil {
		return recoverable(err)
	}
	d.onClose(d.ledger.Close)
	return nil
}

// origin names the ledger.
func (d *Daemon) origin() string { return d.originOf(d.cluster) }

func (d *Daemon) openCapabilities(context.Context) error {
	root, err := d.keys.Signer(keystore.TenantRoot)
	if err != nil {
		return err
	}
	rootKey, err := capability.KeyOf(root.Public())
	if err != nil {
		return err
	}
	session, err := d.keys.Signer(keystore.Gateway)
	if err != nil {
		return err
	}
	d.issuer = capability.Signer{Key: root, KID: rootKID}
	d.revoked = new(capability.Revocations)
	d.verifier, err = capability.New(capability.Config{
		Roots:       []capability.RootIssuer{{KID: rootKID, Key: rootKey, Tenant: d.tenant, Own: true}},
		Audience:    d.cluster,
		AllowBearer: d.conf.Listen.Bearer,
		Revocations: d.revoked,
		SessionKey:  session,
		Engines:     &capability.Engines{Caveat: policy.CompileCaveat, Value: policy.CompileValue, Schema: tool.CompileValue},
	})
	return err
}

func (d *Daemon) openApprovals(context.Context) error {
	key, err := d.keys.Signer(keystore.Approval)
	if err != nil {
		return err
	}
	var people []approval.Approver
	for _, a := range d.approvers {
		people = append(people, approval.Approver{ID: a.ID(), Public: a.Public, Unprotected: a.Unprotected})
	}
	d.desk, err = approval.New(approval.Config{
		Signer: key, Recorder: d.ledger, Approvers: people, Groups: d.conf.Approvals.Groups,
		Life: d.conf.Approvals.Timeout, Logger: d.log, Resolve: d.hookResolve,
	})
	return err
}

func (d *Daemon) openGateway(context.Context) error {
	levels, err := d.conf.Autonomy.levels()
	if err != nil {
		return err
	}
	d.prover = oauth.NewProver(nil)
	d.flow = flow.New(flow.Config{})
	out := d.conf.egress
	out.Timeout, out.MaxResponse = d.conf.Limits.Call, int64(d.conf.Limits.Result)
	out.Allow = d.hookConnect
	d.egress = egress.New(out)
	d.onClose(func() error { d.egress.Close(); return nil })
	d.gateway = &gateway.Gateway{
		Verifier:       d.verifier,
		Catalogue:      d.catalogue,
		Flow:           d.flow,
		Policy:         d.policy,
		Scanner:        guard.New(guard.Config{MaxBytes: d.conf.Limits.Result}),
		Approver:       d.desk,
		Runner:         &runner{d: d},
		Recorder:       d.ledger,
		OutcomeDurable: d.conf.Ledger.outcomeDurable(),
		Meter:          d.metrics,
		Tasks:          &gateway.Tasks{MaxInFlight: d.conf.Limits.InFlight},
		Log:            d.log,
		ApprovalWait:   d.conf.Approvals.Wait,
		Autonomy:       gateway.Autonomy{Levels: gatewayLevels(levels), Strikes: d.conf.Autonomy.Strikes},
	}
	if d.traces != nil {
		d.gateway.Tracer = tracer{d.traces}
	}
	d.front, err = mcp.NewFront(mcp.FrontConfig{
		Gateway:      d.gateway,
		Authenticate: d.authenticate,
		Refused: func(ctx context.Context, cred *vault.Credential, denial *vault.Denial) {
			_ = d.refuseEarly(ctx, &vault.Call{ID: vault.NewCallID(), Edge: "mcp", Credential: *cred}, denial) // the front answers by itself
		},
		Upstreams: d.upstreams,
		Challenge: challenge,
		Name:      "vault",
		Version:   Version,
		Log:       d.log,
	})
	if err != nil {
		return err
	}
	d.onClose(func() error {
		d.front.Close() // calls of sessions outlive their connections, and end with this
		if !d.listeners.wait() {
			d.log.Error("requests do not end; what they did is closed as unknown at the next start")
		}
		return nil
	})
	return nil
}
