package policy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/pilox/vault"
)

// A LogEvent is one decision in the form of OPA's decision log (EventV1 of OPA's
// package plugins/logs), with what only Vault knows beside it. What is not known is
// absent.
type LogEvent struct {
	Labels     map[string]string    `json:"labels"`
	DecisionID string               `json:"decision_id"`
	Bundles    map[string]LogBundle `json:"bundles,omitempty"`
	Path       string               `json:"path,omitempty"`   // of the rule, without data: vault/toolcall/decision
	Input      any                  `json:"input,omitempty"`  // input document version 1
	Result     any                  `json:"result,omitempty"` // decision document version 1
	Erased     []string             `json:"erased,omitempty"` // paths of what is gone
	Masked     []string             `json:"masked,omitempty"` // paths of what was replaced
	Error      *LogError            `json:"error,omitempty"`
	Timestamp  time.Time            `json:"timestamp"`
	Vault      LogVault             `json:"vault"`
}

// A LogBundle is what a decision log says of a bundle.
type LogBundle struct {
	Revision string `json:"revision,omitempty"`
}

// A LogError is why there is no answer, or none in the clear.
type LogError struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
}

// A LogVault is what a decision log says beyond OPA's.
type LogVault struct {
	Run        vault.TaskID   `json:"run,omitempty"`
	Phase      vault.Phase    `json:"phase"`
	ChainID    vault.Digest   `json:"chain_id,omitzero"`
	LinkIDs    []vault.Digest `json:"link_ids,omitempty"`
	Agent      string         `json:"agent,omitempty"`
	Tool       string         `json:"tool,omitempty"`
	ArgsDigest vault.Digest   `json:"args_digest,omitzero"` // the ledger's salted commitment to the arguments
	Effect     string         `json:"effect"`
	ApprovalID string         `json:"approval_id,omitempty"`
	Hash       vault.Digest   `json:"hash"` // of the leaf
	Seq        uint64         `json:"seq"`  // its index in the ledger
}

// Codes of a [LogError] of ours.
const (
	LogMaskError = "mask_error" // data.system.log.mask
	LogDropError = "drop_error" // data.system.log.drop
)

// logRules are the operator's rules about the decision log.
type logRules struct{ mask, drop *regoEngine }

var (
	logPackage = ast.MustParseRef("data.system.log")
	logMask    = ast.MustParseRef("data.system.log.mask")
	logDrop    = ast.MustParseRef("data.system.log.drop")
)

// logRules prepares the rules about the decision log. They are asked whether or not a
// bundle has them: data.json could.
func (r *rules) logRules() (*logRules, error) {
	mask, err1 := r.engine(logMask, defaultDeadline, defaultSteps)
	drop, err2 := r.engine(logDrop, defaultDeadline, defaultSteps)
	return &logRules{mask, drop}, errors.Join(err1, err2)
}

// masksLogs reports whether the bundles have a word about the decision log.
func (r *rules) masksLogs(ctx context.Context) bool {
	if len(r.compiler.GetRulesWithPrefix(logPackage)) > 0 {
		return true
	}
	_, err := r.store.Read(ctx, r.txn, []string{"system", "log"})
	return err == nil
}

// Log returns a decision as one line of JSON, after data.system.log.drop and
// data.system.log.mask of the bundles in use. It is nil if they drop it. Where one of
// them cannot be evaluated, the line has nothing that the rules could have hidden, and
// its error says why; bare reports that.
func (p *Policy) Log(ctx context.Context, e *LogEvent) (line []byte, bare bool, err error) {
	doc, err := encode(e)
	if err != nil {
		return nil, false, err
	}
	rules := p.state.Load().log
	if rules == nil {
		return doc, false, nil
	}
	drop, masks, failed := rules.ask(ctx, doc)
	switch {
	case failed != nil:
		p.cfg.Log.WarnContext(ctx, "decision is logged without its input", "call", e.DecisionID, "rule", failed.Code, "err", failed.Message)
		e := *e
		e.Input, e.Result, e.Path, e.Erased, e.Masked, e.Error = nil, nil, "", nil, nil, failed
		e.Vault.Agent, e.Vault.Tool = "", ""
		line, err = encode(&e)
		return line, true, err
	case drop:
		return nil, false, nil
	case len(masks) == 0:
		return doc, false, nil
	}
	line, err = applyMasks(doc, masks)
	return line, false, err
}

// ask evaluates the rules about an event, which is their input.
func (l *logRules) ask(ctx context.Context, event []byte) (drop bool, masks []mask, failed *LogError) {
	doc, err := ast.ValueFromReader(bytes.NewReader(event))
	if err != nil {
		return false, nil, &LogError{LogMaskError, "the event cannot be read"}
	}
	v, err := l.drop.eval(ctx, &input{doc: doc})
	if err != nil {
		return false, nil, logError(LogDropError, logDrop, err)
	}
	if v != nil {
		b, ok := v.(ast.Boolean)
		if !ok {
			return false, nil, &LogError{LogDropError, logDrop.String() + " is neither true nor false"}
		}
		if bool(b) {
			return true, nil, nil
		}
	}
	if v, err = l.mask.eval(ctx, &input{doc: doc}); err == nil && v != nil {
		masks, err = parseMasks(v)
	}
	if err != nil {
		return false, nil, logError(LogMaskError, logMask, err)
	}
	return false, masks, nil
}

// logError says which rule failed and where. OPA's message would quote the values that
// the rule is there to hide.
func logError(code string, rule ast.Ref, err error) *LogError {
	out := &LogError{code, rule.String() + " could not be evaluated"}
	if e, ok := errors.AsType[*topdown.Error](err); ok {
		out.Message += ": " + e.Code
		if e.Location != nil {
			out.Message += fmt.Sprintf(" at %s:%d", e.Location.File, e.Location.Row)
		}
		return out
	}
	for _, known := range []error{errSteps, errDeadline, errMask, errMaskMany, errMaskPath, errMaskOp} {
		if errors.Is(err, known) {
			out.Message += ": " + known.Error()
		}
	}
	return out
}

// encode writes JSON as it is, without the escapes for HTML.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode decision: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// PathOf returns the rule that decided about a call under a revision, in the form of
// a decision log. It is empty unless these rules are in use and exactly one of them,
// in Rego, was asked: then nobody can tell.
func (p *Policy) PathOf(revision vault.Digest, f *vault.Facts) string {
	s := p.state.Load()
	if revision.IsZero() || revision != s.revision {
		return ""
	}
	path, n := "", 0
	for i := range s.hooks {
		h := &s.hooks[i]
		if h.at != AtToolCall || h.mode != Enforce || !h.match.matches(f) {
			continue
		}
		n++
		if _, ok := h.engine.(*regoEngine); ok {
			path = strings.ReplaceAll(strings.TrimPrefix(h.name, "data."), ".", "/")
		}
	}
	if n != 1 {
		return ""
	}
	return path
}

// Recorded returns the document version 1 about a call as far as a record tells it.
// Members that the rules saw and no record has are left out.
func (p *Policy) Recorded(f *vault.Facts) (map[string]any, error) {
	in := input{f: f, at: AtToolCall}
	v, err := in.value(&needs{all: true})
	if err != nil {
		return nil, err
	}
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	obj, ok := doc.(map[string]any)
	if !ok {
		return nil, errors.New("encode input: no object")
	}
	for _, path := range []string{
		"time", "approvals", "principal/tenant", "task/opened_at", "grant/budgets", "call/seq", "env/gateway",
		"call/args_digest", // without a salt it could be guessed from a copy of the log
	} {
		section, name, nested := strings.Cut(path, "/")
		if !nested {
			delete(obj, section)
		} else if s, ok := obj[section].(map[string]any); ok {
			delete(s, name)
		}
	}
	return obj, nil
}

// A mask is one rule about what is not to be seen.
type mask struct {
	upsert bool
	parts  []string // of the path, as the rule has them
	value  any
}

const maxMasks = 1000 // of one event

var (
	errMask     = errors.New("want a set of paths, or of {op, path, value}")
	errMaskMany = fmt.Errorf("more than %d masks", maxMasks)
	errMaskPath = errors.New("a path starts with /input, /result or /error, or is /vault/agent or /vault/tool")
	errMaskOp   = errors.New("op is remove or upsert")
)

// parseMasks reads the answer of data.system.log.mask: an array or set of paths, which
// are removed, and of {op: remove or upsert, path, value}.
func parseMasks(v ast.Value) ([]mask, error) {
	doc, err := ast.JSON(v)
	if err != nil {
		return nil, errMask
	}
	list, ok := doc.([]any)
	switch {
	case !ok:
		return nil, errMask
	case len(list) > maxMasks:
		return nil, errMaskMany
	}
	out := make([]mask, 0, len(list))
	for _, e := range list {
		var m mask
		path, ok := e.(string)
		if obj, structured := e.(map[string]any); structured {
			switch obj["op"] {
			case "remove":
			case "upsert":
				m.upsert, m.value = true, obj["value"]
			default:
				return nil, errMaskOp
			}
			path, ok = obj["path"].(string)
		}
		if !ok {
			return nil, errMask
		}
		if m.parts, err = maskPath(path); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func maskPath(path string) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, errMaskPath
	}
	parts := strings.Split(rest, "/")
	switch cmp.Or(parts[0], "?") {
	case "input", "result", "error", "nd_builtin_cache":
		return parts, nil
	case "vault":
		if len(parts) == 2 && (parts[1] == "agent" || parts[1] == "tool") {
			return parts, nil
		}
	}
	return nil, errMaskPath
}
