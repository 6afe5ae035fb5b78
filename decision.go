package vault

import "slices"

// A Verdict says what may happen to a [Call], from strictest to loosest.
//
// The zero Verdict is Deny: a stage that is skipped, fails or forgets to answer
// cannot let a call through.
type Verdict uint8

// The verdicts, strictest first.
const (
	Deny  Verdict = iota // do not run it
	Ask                  // run it only if a person approves
	Allow                // run it
)

func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Ask:
		return "ask"
	case Deny:
	}
	return "deny"
}

// MarshalText returns allow, ask or deny.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText parses the words of [Verdict.String]. Anything else is an error
// and leaves Deny.
func (v *Verdict) UnmarshalText(b []byte) error {
	*v = Deny
	switch string(b) {
	case "allow":
		*v = Allow
	case "ask":
		*v = Ask
	case "deny":
	default:
		return errUnknownVerdict
	}
	return nil
}

// A Reason is one ground for a decision. Code and Path are safe to show to the
// agent. Detail is for people who may read the ledger: it can hold values.
type Reason struct {
	Code   Code   `json:"code"`
	Path   string `json:"path,omitempty"` // JSON Pointer into the arguments, or a rule name
	Detail string `json:"-"`
}

// An ObligationType names something that must be done with an allowed call.
type ObligationType string

// The obligations a stage may attach.
const (
	ObligeTransform ObligationType = "transform" // replace the arguments and start again at Verify, once
	ObligeRedact    ObligationType = "redact"    // remove a part of the result
	ObligeLabel     ObligationType = "label"     // join a label to the result
	ObligeNotify    ObligationType = "notify"    // tell somebody, after the fact
)

// An Obligation is something that must be done with an allowed call. The gateway
// unites those of all stages; one it cannot meet denies the call.
type Obligation struct {
	Type  ObligationType
	Path  string // redact: JSON Pointer into the result
	Args  Args   // transform: the new arguments
	Label Label  // label
	Text  string // notify: whom
}

// A Decision is a Verdict, the grounds for it, who has to be asked, and what
// must be done when it is carried out. The zero Decision denies without a word.
type Decision struct {
	Verdict     Verdict
	Reasons     []Reason
	Groups      []string // approval groups, each must say yes; meaningful with Ask
	Obligations []Obligation
}

// Allowed is the decision of a stage that has nothing against a call.
func Allowed() Decision { return Decision{Verdict: Allow} }

// Denied is a denying decision for one reason.
func Denied(code Code, path, detail string) Decision {
	return Decision{Verdict: Deny, Reasons: []Reason{{code, path, detail}}}
}

// Asked is a decision that a person of group must take.
func Asked(group string, code Code, path, detail string) Decision {
	return Decision{Verdict: Ask, Groups: []string{group}, Reasons: []Reason{{code, path, detail}}}
}

// Join returns the stricter verdict of d and e with the reasons, groups and
// obligations of both, so a later stage can tighten an earlier decision and
// never loosen it. The strictest stage's reasons come first.
func (d Decision) Join(e Decision) Decision {
	if e.Verdict < d.Verdict {
		d, e = e, d
	}
	groups := slices.Concat(d.Groups, e.Groups)
	slices.Sort(groups)
	return Decision{
		Verdict:     d.Verdict,
		Reasons:     slices.Concat(d.Reasons, e.Reasons),
		Groups:      slices.Compact(groups),
		Obligations: slices.Concat(d.Obligations, e.Obligations),
	}
}

// Reason returns the first reason, or an internal one if a stage gave none.
func (d Decision) Reason() Reason {
	if len(d.Reasons) == 0 {
		return Reason{Code: CodeInternal}
	}
	return d.Reasons[0]
}
