package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/approval"
	"github.com/pilox/vault/internal/console"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/mcp"
	"github.com/pilox/vault/internal/sandbox/process"
	"github.com/pilox/vault/internal/store"
)

// A backend does what the admin API asks.
type backend struct{ d *Daemon }

var _ admin.Backend = backend{}

// Status says what the daemon is.
func (b backend) Status(context.Context) (admin.Status, error) { return b.d.status(), nil }

func (d *Daemon) status() admin.Status {
	key := d.desk.PublicKey()
	return admin.Status{
		Version: Version, PID: os.Getpid(), Started: d.started, Data: d.conf.Data, HTTP: d.listeners.http,
		Tenant: string(d.tenant), Cluster: d.cluster, Ledger: d.ledger.Head().Size, LedgerKey: d.ledger.VerifierKey(),
		Grade: d.jail.Grade().String(), Policy: d.policy.Revision().String(), Rules: d.rules(), Approvers: len(d.approvers),
		OpenAsks: len(d.desk.Pending()), Resident: resident(), Warnings: d.warnings(), ApprovalKey: key,
		SessionKey: d.verifier.SessionKey().String(), IssuerKey: d.issuerKey(), StatusKey: d.statusKey(), TLS: d.listeners.tls, Tiles: d.listeners.tiles, Anchors: d.anchorStatus(),
		Sinks: d.sinkStatus(), Metrics: d.listeners.metrics,
	}
}

// rules says how the operator's rules fare, nil without any.
func (d *Daemon) rules() *admin.Rules {
	s := d.policy.Status()
	if s.Revision.IsZero() {
		return nil
	}
	return &admin.Rules{Evaluated: s.Evaluated, Shadowed: s.Shadowed, Mismatches: s.Mismatches, Age: int64(s.Age.Seconds())}
}

// issuerKey is the public half of the key that signs root links.
func (d *Daemon) issuerKey() string {
	key, err := capability.KeyOf(d.issuer.Key.Public())
	if err != nil {
		return "" // openCapabilities has made this key's text form before
	}
	return key.String()
}

// warnings says aloud what this configuration does not protect against.
func (d *Daemon) warnings() []string {
	w := d.keys.Describe()
	if d.conf.Listen.Bearer {
		w = append(w, "bearer capabilities are accepted on loopback: whoever reads the token can use it; every record says so")
	}
	if s := d.policy.Status(); s.Err != nil {
		w = append(w, fmt.Sprintf("the policy in force is %v old, because the last reload failed: %v", s.Age.Round(time.Second), s.Err))
	}
	w = append(w, d.conf.sinkWarnings()...)
	if d.keeps != "" {
		w = append(w, d.keeps)
	}
	if len(d.approvers) == 0 {
		w = append(w, "no approver is set up: every call that needs a person is refused; pvault init makes one")
	}
	for _, a := range d.approvers {
		if a.Unprotected {
			w = append(w, fmt.Sprintf("the key of approver %s has no passphrase", a.Name))
		}
	}
	return append(w, "agents that run outside a sandbox as this user can reach the keys of this user: separation is not claimed for them (same_uid)")
}

// resident returns the resident memory of this process in bytes, 0 if unknown.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// Doctor says what this host really enforces. It needs no daemon.
func Doctor(ctx context.Context) (json.RawMessage, error) {
	report, err := process.Diagnose(ctx, process.Config{})
	raw, merr := json.Marshal(report)
	if merr != nil {
		return nil, fmt.Errorf("encode report: %w", merr)
	}
	return raw, err
}

// OpenTask rejoins or opens a task.
func (b backend) OpenTask(ctx context.Context, peer admin.Peer, r admin.TaskRequest) (admin.Task, error) {
	return b.d.openTask(ctx, peer, r, "")
}

// MintTask opens a task with an approver's signature.
func (b backend) MintTask(ctx context.Context, peer admin.Peer, approver string, r admin.TaskRequest) (admin.Task, error) {
	return b.d.openTask(ctx, peer, r, approver)
}

// Tasks lists all task instances.
func (b backend) Tasks(ctx context.Context) ([]admin.Task, error) {
	rows, err := b.d.rows.Tasks(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []admin.Task
	for _, row := range rows {
		doc, err := decodeTask(row)
		if err != nil {
			return nil, err
		}
		t := describe(row, doc)
		t.Autonomy = b.d.standing(row.ID, doc.Autonomy)
		out = append(out, t)
	}
	return out, nil
}

// CloseTask ends a task instance.
func (b backend) CloseTask(ctx context.Context, id vault.TaskID) error {
	b.d.tasksMu.Lock()
	defer b.d.tasksMu.Unlock()
	row, err := b.d.rows.Task(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return notFound("task", string(id))
	}
	if err != nil {
		return err
	}
	if row.State == store.TaskClosed {
		return nil
	}
	return b.d.closeTask(ctx, row, "closed by the operator")
}

// Revoke stops something. It counts at once, also while the ledger is down; the
// record follows as soon as it can be written.
func (b backend) Revoke(ctx context.Context, peer admin.Peer, r admin.RevokeRequest) (uint64, error) {
	v := capability.Revocation{At: time.Now()}
	switch r.What {
	case "task":
		v.Task = vault.TaskID(r.ID)
		if ok, err := b.d.rows.RunExists(ctx, v.Task); err == nil && !ok {
			return 0, notFound("task", r.ID)
		}
	case "agent":
		v.Agent = vault.AgentID(r.ID)
	case "link":
		id, err := vault.ParseDigest(r.ID)
		if err != nil {
			return 0, invalid(err)
		}
		v.Link = id
	case "issuer":
		if r.ID != rootKID {
			return 0, notFound("issuer", r.ID)
		}
		v.Issuer = r.ID
	case "all":
		v.Everything = true
	default:
		return 0, invalid(fmt.Errorf("revoke %q: want task, agent, link, issuer or all", r.What))
	}
	if err := b.d.revoked.Add(v); err != nil {
		return 0, invalid(err)
	}
	p := &pendingRevocation{By: "uid " + strconv.Itoa(peer.UID), Note: r.Why, What: v}
	e, err := p.event()
	if err != nil {
		return 0, err
	}
	receipt, err := b.d.ledger.Commit(ctx, e)
	if err != nil {
		err = fmt.Errorf("revoked, and it counts from now on; the record waits for the ledger: %w", err)
		if kept := b.d.recordLater(p, e); kept != nil {
			err = fmt.Errorf("%w; it could not be kept either, so a restart before that would forget it: %w", err, kept)
		}
		return 0, err
	}
	b.d.markRevoked(ctx, v.Task)
	return receipt.Index, nil
}

// markRevoked notes on the task's row, for lists, that it was stopped.
func (d *Daemon) markRevoked(ctx context.Context, id vault.TaskID) {
	if id == "" {
		return
	}
	d.tasksMu.Lock()
	defer d.tasksMu.Unlock()
	row, err := d.rows.Task(ctx, id)
	if err != nil {
		return
	}
	doc, err := decodeTask(row)
	if err != nil {
		return
	}
	doc.Revoked = true
	if row.Doc, err = json.Marshal(doc); err == nil {
		err = d.rows.PutTask(ctx, row)
	}
	if err != nil {
		d.log.WarnContext(ctx, "revocation not noted in the list of tasks", "task", string(id), "err", err)
	}
}

// Call makes one call for a command line.
func (b backend) Call(ctx context.Context, peer admin.Peer, r admin.CallRequest) (admin.CallAnswer, error) {
	chain, err := capability.DecodeText(r.Token)
	if err != nil {
		return admin.CallAnswer{}, vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	return b.d.call(ctx, r, vault.Credential{Chain: chain, Binding: vault.Binding{Peer: true, PeerUID: peer.UID}})
}

func (d *Daemon) call(ctx context.Context, r admin.CallRequest, cred vault.Credential) (admin.CallAnswer, error) {
	call := &vault.Call{ID: r.ID, Kind: r.Kind, Target: vault.Target{Name: r.Name}, Server: r.Server, Edge: "cli", At: time.Now(), Credential: cred}
	if _, err := vault.ParseKind(string(r.Kind)); err != nil {
		return admin.CallAnswer{}, invalid(err)
	}
	if call.ID == "" {
		call.ID, call.Generated = vault.NewCallID(), true
	} else if err := mcp.CheckCallID(call.ID); err != nil {
		call.ID = vault.NewCallID() // the one that came is not fit for a record
		return admin.CallAnswer{Denial: d.refuseEarly(ctx, call, vault.NewDenial(vault.CodeRequestMalformed, "", err))}, nil
	}
	var err error
	if call.Args, err = vault.ParseArgs(r.Args); err != nil {
		return admin.CallAnswer{Denial: d.refuseEarly(ctx, call, vault.DenialOf(err))}, nil
	}
	if target, err := d.catalogue.Target(r.Server, r.Name); err == nil && r.Server != "" {
		// A server that is not registered keeps the zero id, which no capability
		// names: the refusal is the verifier's, and on record like any other.
		call.Target = target
	}
	res, err := d.gateway.Handle(ctx, call, deaf{})
	if err != nil {
		return admin.CallAnswer{Denial: vault.DenialOf(err)}, nil
	}
	return admin.CallAnswer{Result: res.Raw, IsError: res.IsError, Event: &res.Event}, nil
}

// refuseEarly records a refusal of something that never became a call: in the
// run of the caller if it is known, else in the sum of strangers.
func (d *Daemon) refuseEarly(ctx context.Context, call *vault.Call, denial *vault.Denial) *vault.Denial {
	var grant vault.Grant
	if g, err := d.verifier.Attend(ctx, &vault.Call{Credential: call.Credential}); err == nil {
		grant = g
	}
	return d.gateway.Refuse(ctx, call, grant, denial)
}

// Approvals lists the questions that were shown.
func (b backend) Approvals(context.Context) ([]admin.Approval, error) {
	var out []admin.Approval
	for _, p := range b.d.desk.Pending() {
		q := p.Question
		out = append(out, admin.Approval{ID: p.ID, State: p.State, Agent: q.Agent, Target: questionTarget(q), Groups: q.Groups, Expires: q.Expires(), Text: approval.Render(q), Question: p.Signed})
	}
	return out, nil
}

// questionTarget names what a question is about. Kinds without a server stand where
// the server would.
func questionTarget(q *approval.Question) string {
	if q.Server == "" {
		return q.Kind + ":" + q.Tool
	}
	return q.Server + "." + q.Tool
}

func (d *Daemon) consoleApproval(p approval.Pending) console.Approval {
	return console.Approval{ID: p.ID, State: p.State, Expires: p.Question.Expires(), Text: approval.Render(p.Question), Allowed: p.Allowed}
}

// Answer takes in an answer that an approver key signed.
func (b backend) Answer(ctx context.Context, id string, answer []byte) error {
	p, err := b.d.desk.Submit(ctx, answer)
	switch {
	case errors.Is(err, approval.ErrUnknown):
		return &admin.Error{Code: "not_found", Message: err.Error(), Hint: "pvault approve ls lists the open questions"}
	case errors.Is(err, approval.ErrClosed), errors.Is(err, approval.ErrNotApprover), errors.Is(err, approval.ErrInvalid):
		return &admin.Error{Code: string(vault.CodeApprovalInvalid), Message: err.Error(), Hint: vault.CodeApprovalInvalid.HowToAsk()}
	case err != nil:
		return err
	case p.ID != id:
		return &admin.Error{Code: string(vault.CodeApprovalInvalid), Message: "the answer is for another question"}
	}
	return nil
}

// Servers lists the registered servers.
func (b backend) Servers(context.Context) ([]admin.Server, error) {
	var out []admin.Server
	for _, s := range b.d.catalogue.Servers() {
		v, err := b.d.describeServer(s.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// AddServer installs and registers a server.
func (b backend) AddServer(ctx context.Context, approver string, r admin.ServerRequest, out func(admin.Frame) error) (admin.Server, error) {
	return b.d.addServer(ctx, approver, r, func(line string) {
		if err := out(admin.Frame{Progress: line}); err != nil {
			b.d.log.DebugContext(ctx, "progress not delivered", "err", err)
		}
	})
}

// ReviewServer shows what changed in a server.
func (b backend) ReviewServer(ctx context.Context, name string) (admin.Server, error) {
	return b.d.reviewServer(ctx, name)
}

// AcceptServer pins what was shown.
func (b backend) AcceptServer(ctx context.Context, approver, name string, r admin.AcceptRequest) (admin.Server, error) {
	return b.d.acceptServer(ctx, approver, name, r)
}

// RemoveServer unregisters a server.
func (b backend) RemoveServer(ctx context.Context, approver, name string) error {
	return b.d.removeServer(ctx, approver, name)
}

// Tail yields events as JSON.
func (b backend) Tail(ctx context.Context, from uint64, run vault.TaskID, follow, disclose bool, out func(admin.Frame) error) error {
	records := b.d.ledger.Records(ctx, from, b.d.ledger.Head().Size, run, disclose)
	if follow {
		records = b.d.ledger.Tail(ctx, from, run, disclose)
	}
	for rec, err := range records {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		e, err := eventJSON(&rec)
		if err != nil {
			return err
		}
		if err := out(admin.Frame{Event: e}); err != nil {
			return err
		}
	}
	return nil
}

// eventJSON is a record as people and scripts read it: the exact leaf and the
// fields that were opened.
func eventJSON(rec *ledger.Record) (json.RawMessage, error) {
	leaf, err := rec.Append(nil)
	if err != nil {
		return nil, fmt.Errorf("encode leaf %d: %w", rec.Index, err)
	}
	e := struct {
		Leaf   json.RawMessage   `json:"leaf"`
		Hash   vault.Digest      `json:"hash"`
		Fields map[string]string `json:"fields,omitempty"`
	}{Leaf: leaf, Hash: rec.Hash}
	for _, f := range rec.Fields {
		if e.Fields == nil {
			e.Fields = map[string]string{}
		}
		e.Fields[f.Name] = string(f.Value)
		if f.NotKept {
			e.Fields[f.Name] = fmt.Sprintf("(%d bytes, not kept)", f.Size)
		}
		if f.Erased {
			e.Fields[f.Name] = "(erased)"
		}
	}
	// Marshal would write < and a few more as escapes, and the leaf is exact bytes.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode event %d: %w", rec.Index, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Prove returns the proof of one event in the tlog-proof format.
func (b backend) Prove(ctx context.Context, index uint64) ([]byte, error) {
	if index >= b.d.ledger.Head().Size {
		return nil, notFound("event", strconv.FormatUint(index, 10))
	}
	_, p, err := b.d.ledger.Prove(ctx, index)
	if err != nil {
		return nil, err
	}
	return p.Marshal(), nil
}

// Approver returns the public key of an approver.
func (b backend) Approver(name string) ([]byte, bool) {
	a, ok := b.d.approvers[name]
	return a.Public, ok
}
