package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/ledger"
	"github.com/pilox/vault/internal/policy"
)

// Decisions yields the decision log: a view of the ledger, made when it is asked for.
// The operator's rules about the log have had their word before anything leaves.
func (b backend) Decisions(ctx context.Context, r admin.DecisionsRequest, out func(admin.Frame) error) error {
	l := decisionLog{d: b.d, runs: map[string]run{}}
	from, err := l.first(ctx, r)
	if err != nil {
		return err
	}
	records := b.d.ledger.Records(ctx, from, b.d.ledger.Head().Size, r.Run, true)
	if r.Follow {
		records = b.d.ledger.Tail(ctx, from, r.Run, true)
	}
	for rec, err := range records {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if rec.Time.Before(r.Since) {
			continue
		}
		e, err := l.event(ctx, &rec)
		if err != nil {
			return fmt.Errorf("decision %d: %w", rec.Index, err)
		}
		if e == nil {
			continue
		}
		line, bare, err := b.d.policy.Log(ctx, e)
		if err != nil {
			return fmt.Errorf("decision %d: %w", rec.Index, err)
		}
		f := admin.Frame{Event: line}
		switch {
		case line == nil:
			f.Left = admin.LeftDropped
		case bare:
			f.Left = admin.LeftBare
		}
		if err := out(f); err != nil {
			return err
		}
	}
	return nil
}

// A decisionLog makes decisions out of records.
type decisionLog struct {
	d    *Daemon
	runs map[string]run // what the openings of tasks say
}

// maxRuns bounds the openings that are remembered; one that was forgotten is read
// again.
const maxRuns = 4096

// first returns the first record to look at. Fields are opened from there on only.
func (l *decisionLog) first(ctx context.Context, r admin.DecisionsRequest) (uint64, error) {
	if r.Since.IsZero() {
		return r.From, nil
	}
	end := l.d.ledger.Head().Size
	for rec, err := range l.d.ledger.Records(ctx, r.From, end, r.Run, false) {
		if err != nil {
			return 0, err
		}
		if !rec.Time.Before(r.Since) {
			return rec.Index, nil
		}
	}
	return max(end, r.From), nil
}

// event returns the decision that a record is, nil if it is none.
func (l *decisionLog) event(ctx context.Context, rec *ledger.Record) (*policy.LogEvent, error) {
	beside := rec.Class == vault.ClassAccess && rec.Phase == vault.PhaseRefused // at a hook point, which stands for the tool
	if rec.Class != vault.ClassCall && !beside {
		return nil, nil
	}
	raw, err := eventJSON(rec)
	if err != nil {
		return nil, err
	}
	var r replayed
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("decode event: %w", err)
	}
	reasons := notes(rec)
	effect := ""
	switch {
	case rec.Phase == vault.PhaseIntent:
		effect = vault.Allow.String()
	case rec.Phase == vault.PhaseAsked:
		effect = vault.Ask.String()
	case rec.Phase == vault.PhaseRefused, rec.Phase.Closes() && slices.ContainsFunc(reasons, ofPolicy):
		effect = vault.Deny.String()
	default:
		return nil, nil // a step of the call's life that nobody decided
	}
	e := &policy.LogEvent{
		Labels:     map[string]string{"id": rec.Log, "app": "pvault", "epoch": strconv.FormatUint(rec.Epoch, 10)},
		DecisionID: rec.Call,
		Timestamp:  rec.Time,
		Result:     resultOf(effect, reasons),
		Vault:      policy.LogVault{Run: rec.Run, Phase: rec.Phase, Tool: rec.Tool, Effect: effect, ApprovalID: approvalOf(rec, reasons), Hash: rec.Hash, Seq: rec.Index},
	}
	if !rec.Policy.IsZero() {
		e.Bundles = map[string]policy.LogBundle{"policy": {Revision: rec.Policy.String()}}
	}
	if i := slices.IndexFunc(reasons, func(n noted) bool { return n.Code == vault.CodePolicyError }); i >= 0 {
		e.Error = &policy.LogError{Code: string(vault.CodePolicyError), Message: reasons[i].Detail}
	}
	if beside {
		e.Vault.Tool, e.Input = "", map[string]any{"version": 1, "hook": rec.Tool}
		return e, nil // what else the rules saw there no record has
	}
	if rec.Phase.Closes() {
		return e, nil // the rules saw a result, which is for its own record to tell
	}
	return e, l.input(ctx, rec, &r, e, slices.ContainsFunc(reasons, ofPolicy))
}

// input adds what the rules saw, as far as the record tells it.
func (l *decisionLog) input(ctx context.Context, rec *ledger.Record, r *replayed, e *policy.LogEvent, ruled bool) error {
	has := map[string]bool{}
	if r.Fields == nil { // the key of the run is gone
		r.Fields, e.Erased = map[string]string{}, []string{"/input"}
	}
	for i := range rec.Fields {
		f := &rec.Fields[i]
		has[f.Name] = !f.Erased && !f.NotKept && len(f.Value) > 0
		if f.Name == "args" {
			e.Vault.ArgsDigest = f.Commit()
		}
		if f.Erased && f.Name == "args" {
			e.Erased = append(e.Erased, "/input/call/args")
		}
	}
	if !has["args"] {
		r.Fields["args"] = "{}"
	}
	if !has["target"] {
		delete(r.Fields, "target")
	}
	if has["caller"] {
		e.Vault.Agent = r.Fields["caller"]
	}
	known, err := l.opening(ctx, rec)
	if err != nil {
		return err
	}
	f, err := r.facts(known, has["context"])
	if err != nil {
		// A record that is odd must not end the log for all that come after it.
		has["args"], has["context"], r.Fields["args"] = false, false, "{}"
		e.Error = &policy.LogError{Code: string(vault.CodeInternal), Message: "the arguments or the context on record cannot be read"}
		if f, err = r.facts(known, false); err != nil {
			return err
		}
	}
	e.Vault.ChainID, e.Vault.LinkIDs = f.Grant.Chain, f.Grant.Links
	switch e.Vault.Tool = f.Call.Target.Name; {
	case f.Call.Server != "":
		e.Vault.Tool = f.Call.Server + "." + f.Call.Target.Name
	case rec.Server == (vault.ServerID{}) && f.Call.Target.Name != "":
		e.Vault.Tool = string(rec.Kind) + "." + f.Call.Target.Name // as a hook's match has it
	}
	if has["context"] && (rec.Phase != vault.PhaseRefused || ruled) {
		e.Path = l.d.policy.PathOf(rec.Policy, f)
	}
	doc, err := l.d.policy.Recorded(f)
	if err != nil {
		return err
	}
	forget := func(section string, names ...string) {
		if s, ok := doc[section].(map[string]any); ok {
			for _, n := range names {
				delete(s, n)
			}
		}
	}
	if !has["args"] {
		forget("call", "args")
	}
	if !has["caller"] {
		delete(doc, "agent")
	}
	if known.principal == "" {
		delete(doc, "principal")
	}
	if known.purpose == "" {
		forget("task", "purpose")
	}
	if !has["context"] {
		delete(doc, "data")
		delete(doc, "history")
		forget("grant", "chain_id", "link_ids", "depth", "exp", "ask", "may_read", "may_send_to")
		forget("env", "sandbox_grade") // it is found out later than what refused here
		forget("call", "server", "schema_digest", "risk", "read_only", "local", "roles")
	}
	e.Input = doc
	return nil
}

// opening returns what the opening of a record's task says.
func (l *decisionLog) opening(ctx context.Context, rec *ledger.Record) (run, error) {
	id := string(rec.Run)
	if known, ok := l.runs[id]; ok || id == "" {
		return known, nil
	}
	var known run
	for first, err := range l.d.ledger.Records(ctx, 0, rec.Index, rec.Run, true) {
		if err != nil {
			return run{}, fmt.Errorf("opening of run %s: %w", id, err)
		}
		for _, f := range first.Fields {
			switch {
			case first.Class != vault.ClassTask || f.Erased || f.NotKept:
			case f.Name == "principal":
				known.principal = string(f.Value)
			case f.Name == "purpose":
				known.purpose = string(f.Value)
			}
		}
		break // the first record of a run is its opening
	}
	if len(l.runs) == maxRuns {
		clear(l.runs)
	}
	l.runs[id] = known
	return known, nil
}

// A noted is a reason in the note of a record.
type noted struct {
	Code   vault.Code `json:"code"`
	Path   string     `json:"path"`
	Detail string     `json:"detail"`
}

func ofPolicy(n noted) bool {
	// The reason of a withheld result says in its detail which code it stands for.
	return strings.HasPrefix(string(n.Code), "policy_") || n.Code == vault.CodeResultWithheld && strings.HasPrefix(n.Detail, "policy_")
}

// notes returns the reasons of a record: the code in the leaf where the note is gone.
func notes(rec *ledger.Record) []noted {
	var out []noted
	for _, f := range rec.Fields {
		if f.Name == "note" && !f.Erased && !f.NotKept && json.Unmarshal(f.Value, &out) == nil && len(out) > 0 {
			return out
		}
	}
	if rec.Reason == "" {
		return nil
	}
	return []noted{{Code: rec.Reason}}
}

// resultOf returns a decision document version 1. Obligations are not on record.
func resultOf(effect string, reasons []noted) map[string]any {
	out := map[string]any{"effect": effect}
	var list []any
	for _, n := range reasons {
		r := map[string]any{"code": string(n.Code)}
		if n.Detail != "" {
			r["msg"] = n.Detail
		}
		switch {
		case n.Path == "":
		case strings.HasPrefix(string(n.Code), "policy_"):
			r["rule"] = n.Path
		default:
			r["path"] = n.Path
		}
		list = append(list, r)
	}
	if list != nil {
		out["reasons"] = list
	}
	return out
}

// approvalOf returns the question that a record asks or whose answer it spends.
func approvalOf(rec *ledger.Record, reasons []noted) string {
	for i := range rec.Debits {
		if id, ok := strings.CutPrefix(rec.Debits[i].Counter, "approval/"); ok {
			return id
		}
	}
	if rec.Phase == vault.PhaseAsked && len(reasons) > 0 && reasons[0].Code == vault.CodeApprovalRequired {
		return reasons[0].Detail
	}
	return ""
}
