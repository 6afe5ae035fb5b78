package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/taskfile"
)

// ReadTask reads a task file and the inputs it names, as the daemon wants them.
func ReadTask(path string) (file, inputs []byte, err error) {
	f, err := taskfile.Load(path)
	if err != nil {
		return nil, nil, err
	}
	if file, err = os.ReadFile(path); err != nil {
		return nil, nil, err
	}
	return file, []byte(f.Inputs.Text), nil
}

// TaskSchema returns the JSON Schema of task.yaml.
func TaskSchema() []byte { return taskfile.Schema() }

// A taskDoc is what the store keeps of a task beside its row.
type taskDoc struct {
	Agent    vault.AgentID `json:"agent"`
	Purpose  string        `json:"purpose"`
	Expires  time.Time     `json:"expires"`
	Issued   time.Time     `json:"issued"`
	Chain    vault.Digest  `json:"chain"`  // of the capability
	Root     vault.Digest  `json:"root"`   // id of the root link
	Token    string        `json:"token"`  // worth nothing without what it is bound to; empty if nothing binds it
	Holder   string        `json:"holder"` // what it is bound to
	Approver string        `json:"approver"`
	Status   *int          `json:"status,omitempty"` // index in the status list
	Revoked  bool          `json:"revoked,omitempty"`
	Autonomy string        `json:"autonomy,omitempty"` // level it began with; "" is none
}

var agentName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// errApprover says that only an approver can do this.
func errApprover(why string) error {
	return &admin.Error{Code: "approver_required", Message: why, Hint: "an approver mints it: pvault cap mint --task FILE, or add --approver NAME"}
}

func invalid(err error) error { return &admin.Error{Code: "invalid", Message: err.Error()} }

// openTask rejoins the open instance of a task file, or opens a new one if an
// approver signed for that.
func (d *Daemon) openTask(ctx context.Context, peer admin.Peer, r admin.TaskRequest, approver string) (admin.Task, error) {
	file, err := taskfile.Parse(r.File, func(string) ([]byte, error) { return r.Inputs, nil })
	if err != nil {
		return admin.Task{}, invalid(err)
	}
	holder, err := parseHolder(r.Bind, peer)
	if err != nil {
		return admin.Task{}, invalid(err)
	}
	d.tasksMu.Lock()
	defer d.tasksMu.Unlock()
	row, err := d.rows.OpenTask(ctx, file.Digest(), file.Principal)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if approver == "" {
			return admin.Task{}, errApprover("no approver has minted this task file as it stands now")
		}
	case err != nil:
		return admin.Task{}, err
	case !r.New && !d.over(ctx, row):
		return d.rejoin(row, holder)
	case !r.New && approver == "":
		return admin.Task{}, errApprover("this task is over: it was stopped, or its life has ended")
	default:
		if approver == "" {
			return admin.Task{}, errApprover("a new instance of a task starts its budgets afresh")
		}
		if err := d.closeTask(ctx, row, "a new instance was opened"); err != nil {
			return admin.Task{}, err
		}
	}
	return d.mint(ctx, file, holder, r.Agent, approver)
}

// parseHolder reads what a capability is to be bound to.
func parseHolder(bind string, peer admin.Peer) (*capability.Holder, error) {
	switch {
	case bind == "" || bind == "peer":
		return capability.HeldByUID(peer.UID), nil
	case bind == "bearer":
		return &capability.Holder{Bearer: true}, nil
	}
	if strings.HasPrefix(bind, "ed25519:") || strings.HasPrefix(bind, "p256:") {
		var key capability.Key
		if err := key.UnmarshalText([]byte(bind)); err != nil {
			return nil, fmt.Errorf("bind: %w", err)
		}
		return capability.HeldBy(key), nil
	}
	if strings.HasPrefix(bind, "spiffe://") {
		return &capability.Holder{SPIFFE: bind}, nil
	}
	text, ok := strings.CutPrefix(bind, "key:")
	if !ok {
		return nil, fmt.Errorf("bind %q: want peer, bearer, key:PUBLIC, ed25519:…, p256:… or spiffe://…", bind)
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, errors.New("bind: not an Ed25519 public key")
	}
	key, err := capability.KeyOf(ed25519.PublicKey(raw))
	if err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	return capability.HeldBy(key), nil
}

// over reports whether the capability of an open instance is worth nothing any
// more: expired, or stopped by its task, its agent, or everything.
func (d *Daemon) over(ctx context.Context, row store.Task) bool {
	doc, err := decodeTask(row)
	if err != nil || doc.Revoked || !time.Now().Before(doc.Expires) {
		return true
	}
	return d.verifier.Recheck(ctx, &vault.Grant{
		Chain: doc.Chain, Task: row.ID, Agent: doc.Agent, Agents: []vault.AgentID{doc.Agent}, Links: []vault.Digest{doc.Root}, Leaf: doc.Root,
		Issuer: rootKID, Issued: doc.Issued, Expires: doc.Expires,
	}) != nil
}

// rejoin returns an open instance to the holder it is bound to. A restarted client
// gets the same capability, and so the same budgets.
func (d *Daemon) rejoin(row store.Task, holder *capability.Holder) (admin.Task, error) {
	doc, err := decodeTask(row)
	if err != nil {
		return admin.Task{}, err
	}
	if doc.Holder != holder.String() {
		return admin.Task{}, errApprover(fmt.Sprintf("the open instance of this task is bound to %s", doc.Holder))
	}
	if doc.Token == "" {
		return admin.Task{}, errApprover("a capability that nothing binds is shown once and not kept")
	}
	t := describe(row, doc)
	t.Rejoined, t.Token = true, doc.Token
	return t, nil
}

func decodeTask(row store.Task) (taskDoc, error) {
	var doc taskDoc
	if err := json.Unmarshal(row.Doc, &doc); err != nil {
		return taskDoc{}, fmt.Errorf("task %s: %w", row.ID, err)
	}
	return doc, nil
}

func describe(row store.Task, doc taskDoc) admin.Task {
	t := admin.Task{ID: row.ID, Status: doc.Status, Agent: doc.Agent, Principal: row.Principal, Purpose: doc.Purpose, Opened: row.Opened, Expires: doc.Expires, State: string(row.State)}
	switch {
	case doc.Revoked:
		t.State = "revoked"
	case row.State == store.TaskOpen && !time.Now().Before(doc.Expires):
		t.State = "expired"
	}
	return t
}

// mint opens a new instance: its opening is on record before the capability exists
// outside the daemon.
func (d *Daemon) mint(ctx context.Context, file *taskfile.File, holder *capability.Holder, agent, approver string) (admin.Task, error) {
	if agent == "" {
		agent = "local"
	}
	if !agentName.MatchString(agent) {
		return admin.Task{}, invalid(fmt.Errorf("agent %q: want lower-case letters, digits, '.', '_' and '-'", agent))
	}
	levels, err := d.conf.Autonomy.levels()
	if err != nil {
		return admin.Task{}, err
	}
	if file, err = file.Under(levels); err != nil {
		return admin.Task{}, invalid(err)
	}
	link, err := file.Claims(func(name string) (vault.ServerID, bool) {
		s, err := d.catalogue.Server(name)
		return s.ID, err == nil
	})
	if err != nil {
		return admin.Task{}, invalid(err)
	}
	now := time.Now()
	id := vault.NewTaskID()
	link.Tenant = d.tenant
	link.Agent = vault.AgentID(fmt.Sprintf("spiffe://%s/agent/%s/%s/%s", d.conf.Domain, d.tenant, agent, id))
	link.Task.ID = id
	link.Audience = d.cluster
	for i := range link.ThirdParty {
		link.ThirdParty[i].Audience = d.cluster
	}
	link.Issued, link.NotBefore, link.Expires = capability.InstantOf(now), capability.InstantOf(now), capability.InstantOf(now.Add(file.Life))
	link.Holder = holder
	if holder.Key.IsZero() {
		// One link is the gateway's own: it binds the capability to a sandbox.
		depth := 1
		if link.Depth != nil {
			depth += *link.Depth
		}
		link.Depth = &depth
	}
	if err := d.hookMint(ctx, &link, approver); err != nil {
		return admin.Task{}, err
	}
	chain, err := capability.Mint(link, d.issuer)
	if err != nil {
		return admin.Task{}, invalid(err)
	}
	if err := d.verifier.Check(chain); err != nil {
		return admin.Task{}, invalid(err)
	}
	doc := taskDoc{
		Agent: link.Agent, Purpose: file.Purpose, Issued: link.Issued.Time(), Expires: link.Expires.Time(),
		Chain: chain.Digest(), Root: chain.IDs()[0], Holder: holder.String(), Approver: approver,
		Autonomy: file.Autonomy,
	}
	if doc.Autonomy != "" {
		if err := d.gateway.Autonomy.Set(id, doc.Autonomy, 0); err != nil {
			return admin.Task{}, err
		}
	}
	if !holder.Bearer {
		doc.Token = chain.Text()
	}
	status, err := d.nextStatus(ctx)
	if err != nil {
		return admin.Task{}, err
	}
	doc.Status = &status
	view, err := json.Marshal(capability.Inspect(chain))
	if err != nil {
		return admin.Task{}, fmt.Errorf("describe capability: %w", err)
	}
	_, err = d.ledger.Commit(ctx, &vault.Event{
		Run: id, Class: vault.ClassTask, Phase: vault.PhaseOpened, Verdict: vault.Allow,
		Fields: []vault.Field{
			{Name: "agent", Value: []byte(link.Agent)},
			{Name: "by", Value: []byte(d.signedBy(approver))},
			{Name: "capability", Value: view},
			{Name: "inputs", Value: []byte(file.Inputs.Text)},
			{Name: "principal", Value: []byte(file.Principal)},
			{Name: "purpose", Value: []byte(file.Purpose)},
		},
	})
	if err != nil {
		return admin.Task{}, err
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return admin.Task{}, fmt.Errorf("encode task: %w", err)
	}
	row := store.Task{ID: id, FileDigest: file.Digest(), Principal: file.Principal, State: store.TaskOpen, Opened: now, Doc: raw}
	if err := d.rows.PutTask(ctx, row); err != nil {
		return admin.Task{}, err
	}
	t := describe(row, doc)
	t.Token = chain.Text()
	return t, nil
}

// signedBy names an approver for the record, and says if no passphrase protects the key.
func (d *Daemon) signedBy(approver string) string {
	a, ok := d.approvers[approver]
	if !ok {
		return approver
	}
	if a.Unprotected {
		return a.ID() + " (unprotected)"
	}
	return a.ID()
}

// closeWait is how long the end of a task waits for calls that were cancelled. It
// is more than a server needs to let go; a client that does not read takes longer.
const closeWait = 2 * time.Second

// closeTask ends an instance: its capability is revoked, which cancels the calls in
// flight, and when they have ended its run gets the closing record that makes it
// complete. If that takes long, it happens in the background or at the next start.
func (d *Daemon) closeTask(ctx context.Context, row store.Task, why string) error {
	if err := d.revoked.Add(capability.Revocation{Task: row.ID, At: time.Now()}); err != nil {
		return err
	}
	row.State = store.TaskClosed
	if err := d.rows.PutTask(ctx, row); err != nil {
		return err
	}
	d.upstreams.EndTask(d.tenant, row.ID)
	last := &vault.Event{
		Run: row.ID, Class: vault.ClassTask, Phase: vault.PhaseClosed, Verdict: vault.Allow, Reason: vault.CodeTaskClosed,
		Fields: []vault.Field{{Name: "by", Value: []byte(why)}},
	}
	if o := d.hookEnd(ctx, &vault.Grant{Tenant: d.tenant, Task: row.ID, Principal: row.Principal}, why); o != nil {
		last.Reason, last.Policy = o.Reason.Code, d.policy.Revision()
		last.Fields[0].Value = fmt.Appendf(nil, "%s; the policy objects: %s", why, o.Reason.Detail)
	}
	idle := d.gateway.Tasks.Idle(row.ID)
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-idle:
		return d.closeRun(ctx, last)
	case <-t.C:
	}
	if d.ctx.Err() != nil {
		return nil // the next start closes it
	}
	d.work.Go(func() {
		select {
		case <-idle:
			if err := d.closeRun(d.ctx, last); err != nil {
				d.log.ErrorContext(d.ctx, "run not closed", "task", string(row.ID), "err", err)
			}
		case <-d.ctx.Done():
		}
	})
	return nil
}

// closeRun writes the last record of a run in which nothing is in flight.
func (d *Daemon) closeRun(ctx context.Context, last *vault.Event) error {
	if _, err := d.ledger.Commit(ctx, last); err != nil {
		return err
	}
	d.gateway.Tasks.Forget(last.Run)
	d.gateway.Autonomy.Forget(last.Run)
	return nil
}

// commitLate records what may come after the end of its run: then it stands in the
// daemon's own, because a closed run is complete and takes no more.
func (d *Daemon) commitLate(ctx context.Context, e *vault.Event) error {
	_, err := d.ledger.Commit(ctx, e)
	if denial := vault.DenialOf(err); denial != nil && denial.Reason.Code == vault.CodeTaskClosed {
		e.Run = ""
		_, err = d.ledger.Commit(ctx, e)
	}
	return err
}

// expireTasks closes the instances whose life is over.
func (d *Daemon) expireTasks(ctx context.Context) error {
	d.tasksMu.Lock()
	defer d.tasksMu.Unlock()
	open, err := d.rows.Tasks(ctx, store.TaskOpen)
	if err != nil {
		return fmt.Errorf("list open tasks: %w", err)
	}
	var errs []error
	for _, row := range open {
		doc, err := decodeTask(row)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if time.Now().After(doc.Expires) {
			errs = append(errs, d.closeTask(ctx, row, "its life is over"))
		}
	}
	return errors.Join(errs...)
}
