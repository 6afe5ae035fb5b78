package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/pilox/vault"
)

// Limits on one answer. A person reads the reasons, and each obligation is work
// on the hot path.
const (
	maxReasons     = 16
	maxObligations = 16
	maxMessage     = 1 << 10 // bytes of one reason's message
)

// parseDecision reads a hook's answer, decision document version 1. A boolean is
// accepted for allow and deny. Everything else that is not in the document is an
// error, and an error denies: what is silently left out may have been what the
// operator relied on.
func parseDecision(v ast.Value) (vault.Decision, error) {
	if allow, ok := v.(ast.Boolean); ok {
		if allow {
			return vault.Allowed(), nil
		}
		return vault.Denied(vault.CodePolicyDenied, "", ""), nil
	}
	o, ok := v.(ast.Object)
	if !ok {
		return vault.Decision{}, fmt.Errorf("decision is %s: want an object with effect, or a boolean", ast.ValueName(v))
	}
	var d struct{ effect, reasons, obligations, approval, labels ast.Value }
	err := members(o, map[string]*ast.Value{
		"effect": &d.effect, "reasons": &d.reasons, "obligations": &d.obligations, "approval": &d.approval, "labels": &d.labels,
	})
	if err != nil {
		return vault.Decision{}, err
	}
	effect, _ := d.effect.(ast.String)
	var out vault.Decision
	if err := out.Verdict.UnmarshalText([]byte(effect)); err != nil {
		return vault.Decision{}, fmt.Errorf("effect: want \"allow\", \"deny\" or \"ask\"")
	}
	code := vault.CodePolicyDenied
	if out.Verdict == vault.Ask {
		code = vault.CodePolicyAsks
	}
	reasons, err := parseReasons(d.reasons, code)
	if err != nil {
		return vault.Decision{}, fmt.Errorf("reasons: %w", err)
	}
	obligations, err := parseObligations(d.obligations)
	if err != nil {
		return vault.Decision{}, fmt.Errorf("obligations: %w", err)
	}
	labels, err := parseLabels(d.labels)
	if err != nil {
		return vault.Decision{}, fmt.Errorf("labels: %w", err)
	}
	obligations = append(obligations, labels...)
	groups, err := parseApproval(d.approval, out.Verdict)
	if err != nil {
		return vault.Decision{}, fmt.Errorf("approval: %w", err)
	}
	switch out.Verdict {
	case vault.Deny: // an obligation belongs to a call that runs
		out.Reasons = reasons
	case vault.Ask:
		out.Reasons, out.Groups, out.Obligations = reasons, groups, obligations
	case vault.Allow: // an allowed call has no ground to show; the catalogue has no code for one
		out.Obligations = obligations
	}
	return out, nil
}

// members puts the members of o where into says. A key that is not listed is an
// error; null counts as absent.
func members(o ast.Object, into map[string]*ast.Value) error {
	return o.Iter(func(k, v *ast.Term) error {
		name, _ := k.Value.(ast.String)
		to, ok := into[string(name)]
		if !ok {
			return fmt.Errorf("unknown field %s in %s", k, strings.Join(fields(o), ", "))
		}
		if _, isNull := v.Value.(ast.Null); !isNull {
			*to = v.Value
		}
		return nil
	})
}

// list returns the elements of an array or a set, which is what a partial rule
// gives; sets in their sorted order, so that an answer is always the same.
func list(v ast.Value, most int) ([]*ast.Term, error) {
	var items []*ast.Term
	switch v := v.(type) {
	case nil:
		return nil, nil
	case *ast.Array:
		for i := range v.Len() {
			items = append(items, v.Elem(i))
		}
	case ast.Set:
		items = v.Slice()
	default:
		return nil, fmt.Errorf("want an array or a set, not %s", ast.ValueName(v))
	}
	if len(items) > most {
		return nil, fmt.Errorf("%d entries, at most %d", len(items), most)
	}
	return items, nil
}

func str(v ast.Value, most int) (string, error) {
	if v == nil {
		return "", nil
	}
	s, ok := v.(ast.String)
	if !ok {
		return "", fmt.Errorf("want a string, not %s", ast.ValueName(v))
	}
	if len(s) > most {
		return "", fmt.Errorf("%d bytes, at most %d", len(s), most)
	}
	return string(s), nil
}

// parseReasons maps the operator's reasons. The rule name goes where agents may
// see it; code and message are for people.
func parseReasons(v ast.Value, code vault.Code) ([]vault.Reason, error) {
	items, err := list(v, maxReasons)
	if err != nil {
		return nil, err
	}
	var reasons []vault.Reason
	for _, t := range items {
		o, ok := t.Value.(ast.Object)
		if !ok {
			return nil, fmt.Errorf("want objects with code, msg and rule, not %s", ast.ValueName(t.Value))
		}
		var c, m, r ast.Value
		if err := members(o, map[string]*ast.Value{"code": &c, "msg": &m, "rule": &r}); err != nil {
			return nil, err
		}
		own, err1 := str(c, 64)
		msg, err2 := str(m, maxMessage)
		rule, err3 := str(r, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		if strings.ContainsFunc(rule, func(r rune) bool {
			return r != '.' && r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) {
			return nil, errors.New("rule: agents see it, so only letters, digits, dot, dash and underscore")
		}
		reasons = append(reasons, vault.Reason{Code: code, Path: rule, Detail: strings.TrimSuffix(own+": "+msg, ": ")})
	}
	if len(reasons) == 0 {
		reasons = []vault.Reason{{Code: code}}
	}
	return reasons, nil
}

func parseObligations(v ast.Value) ([]vault.Obligation, error) {
	items, err := list(v, maxObligations)
	if err != nil {
		return nil, err
	}
	var out []vault.Obligation
	transforms := 0
	for _, t := range items {
		o, ok := t.Value.(ast.Object)
		if !ok {
			return nil, fmt.Errorf("want objects with a type, not %s", ast.ValueName(t.Value))
		}
		ob, err := parseObligation(o)
		if err != nil {
			return nil, err
		}
		if ob.Type == vault.ObligeTransform {
			if transforms++; transforms > 1 {
				return nil, errors.New("more than one transform")
			}
		}
		out = append(out, ob)
	}
	return out, nil
}

func parseObligation(o ast.Object) (vault.Obligation, error) {
	kind, path, to, args, label := ast.Value(nil), ast.Value(nil), ast.Value(nil), ast.Value(nil), ast.Value(nil)
	if err := members(o, map[string]*ast.Value{"type": &kind, "path": &path, "to": &to, "args": &args, "label": &label}); err != nil {
		return vault.Obligation{}, err
	}
	name, _ := kind.(ast.String)
	only := func(used ast.Value) error { // exactly the one field that belongs to the type
		n := 0
		for _, v := range []ast.Value{path, to, args, label} {
			if v != nil {
				n++
			}
		}
		if used == nil || n != 1 {
			return fmt.Errorf("%s: want type and its one field, not %s", name, strings.Join(fields(o), ", "))
		}
		return nil
	}
	ob := vault.Obligation{Type: vault.ObligationType(name)}
	var err error
	switch ob.Type {
	case vault.ObligeTransform:
		if err = only(args); err == nil {
			ob.Args, err = parseArgs(args)
		}
	case vault.ObligeRedact:
		if err = only(path); err == nil {
			ob.Path, err = str(path, maxMessage)
			if err == nil && !isPointer(ob.Path) {
				err = errors.New("path: want a JSON Pointer below the result, as in /content/0/text")
			}
		}
	case vault.ObligeNotify:
		if err = only(to); err == nil {
			ob.Text, err = str(to, maxMessage)
		}
	case vault.ObligeLabel:
		if err = only(label); err == nil {
			ob.Label, err = parseLabel(label)
		}
	default:
		return vault.Obligation{}, fmt.Errorf("unknown type %q: want transform, redact, label or notify", string(name))
	}
	if err != nil {
		return vault.Obligation{}, fmt.Errorf("%s: %w", name, err)
	}
	return ob, nil
}

// isPointer reports whether s is a JSON Pointer (RFC 6901) to something below
// the document.
func isPointer(s string) bool {
	if s == "" || s[0] != '/' {
		return false
	}
	for i := range len(s) {
		if s[i] == '~' && (i+1 == len(s) || s[i+1] != '0' && s[i+1] != '1') {
			return false
		}
	}
	return true
}

// parseArgs makes canonical arguments. They go through the one strict parser, so
// a rule cannot make what a caller could not have sent.
func parseArgs(v ast.Value) (vault.Args, error) {
	if _, ok := v.(ast.Object); !ok {
		return vault.Args{}, fmt.Errorf("args: want an object, not %s", ast.ValueName(v))
	}
	raw, err := appendJSON(nil, v)
	if err != nil {
		return vault.Args{}, fmt.Errorf("args: %w", err)
	}
	a, err := vault.ParseArgs(raw)
	if err != nil {
		return vault.Args{}, fmt.Errorf("args: %w", err)
	}
	return a, nil
}

// appendJSON writes a value without the detour over Go maps, in which numbers
// would lose their text.
func appendJSON(b []byte, v ast.Value) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case ast.Null, ast.Boolean, ast.Number:
		return append(b, v.String()...), nil
	case ast.String:
		return vault.AppendQuoted(b, string(v)), nil
	case *ast.Array:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendJSON(b, v.Elem(i).Value); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case ast.Object:
		b = append(b, '{')
		first := true
		err = v.Iter(func(k, e *ast.Term) error {
			name, ok := k.Value.(ast.String)
			if !ok {
				return fmt.Errorf("key %s is not a string", k)
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(vault.AppendQuoted(b, string(name)), ':')
			b, err = appendJSON(b, e.Value)
			return err
		})
		return append(b, '}'), err
	}
	return nil, fmt.Errorf("a %s has no JSON form", ast.ValueName(v))
}

// parseLabels reads the short form of label obligations.
func parseLabels(v ast.Value) ([]vault.Obligation, error) {
	items, err := list(v, maxObligations)
	if err != nil {
		return nil, err
	}
	var out []vault.Obligation
	for _, t := range items {
		l, err := parseLabel(t.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, vault.Obligation{Type: vault.ObligeLabel, Label: l})
	}
	return out, nil
}

// parseLabel reads {integrity, readers}. What is left out joins as nothing: a
// label can only make data less trusted and less readable.
func parseLabel(v ast.Value) (vault.Label, error) {
	o, ok := v.(ast.Object)
	if !ok {
		return vault.Label{}, fmt.Errorf("want an object with integrity or readers, not %s", ast.ValueName(v))
	}
	var integrity, readers ast.Value
	if err := members(o, map[string]*ast.Value{"integrity": &integrity, "readers": &readers}); err != nil {
		return vault.Label{}, err
	}
	if integrity == nil && readers == nil {
		return vault.Label{}, errors.New("want integrity or readers: a label without both does nothing")
	}
	l := vault.Clean()
	if integrity != nil {
		word, err := str(integrity, 16)
		if err != nil {
			return vault.Label{}, fmt.Errorf("integrity: %w", err)
		}
		if l.Integrity, err = vault.ParseIntegrity(word); err != nil {
			return vault.Label{}, err
		}
	}
	if word, ok := readers.(ast.String); ok && word == "public" {
		return l, nil
	}
	if readers != nil {
		items, err := list(readers, 64)
		if err != nil {
			return vault.Label{}, fmt.Errorf("readers: %w: or \"public\"", err)
		}
		names := make([]string, len(items))
		for i, t := range items {
			if names[i], err = str(t.Value, 64); err != nil || names[i] == "" {
				return vault.Label{}, errors.New("readers: want compartment names")
			}
		}
		l.Readers = vault.Only(names...)
	}
	return l, nil
}

// parseApproval returns the groups an ask goes to. What version 1 of approvals
// cannot keep (several yeses of one group, another life, another scope than this
// once) is refused.
func parseApproval(v ast.Value, verdict vault.Verdict) ([]string, error) {
	if v == nil {
		if verdict == vault.Ask {
			return nil, errors.New("effect ask needs approval.group")
		}
		return nil, nil
	}
	if verdict != vault.Ask {
		return nil, errors.New("only effect ask has one")
	}
	o, ok := v.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("want an object with a group, not %s", ast.ValueName(v))
	}
	var group, least, scope ast.Value
	if err := members(o, map[string]*ast.Value{"group": &group, "min": &least, "scope": &scope}); err != nil {
		return nil, err
	}
	if n, ok := least.(ast.Number); least != nil && (!ok || n.String() != "1") {
		return nil, errors.New("min: one yes per group is all that is kept; name several groups in several hooks")
	}
	if s, ok := scope.(ast.String); scope != nil && (!ok || s != "once") {
		return nil, errors.New("scope: an approval is for this call once")
	}
	name, err := str(group, 64)
	if err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	if name == "" || slices.Contains([]byte(name), ' ') {
		return nil, errors.New("group: want the name of an approval group")
	}
	return []string{name}, nil
}
