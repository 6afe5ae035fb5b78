package capability

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/pilox/vault"
)

// An Instant is a time in Unix milliseconds. Zero is absent.
type Instant int64

// InstantOf returns t to the millisecond.
func InstantOf(t time.Time) Instant { return Instant(t.UnixMilli()) }

// Time returns i as a UTC time.
func (i Instant) Time() time.Time { return time.UnixMilli(int64(i)).UTC() }

// MarshalText returns RFC 3339.
func (i Instant) MarshalText() ([]byte, error) {
	return i.Time().AppendFormat(nil, time.RFC3339Nano), nil
}

// A Link is one link of a chain, as it is signed.
//
// In a root, Tenant, Principal, Agent, Task, Audience, Issued, NotBefore, Expires,
// Depth, Holder, Grants and Budgets.Calls are required. In a child, Parent is
// required and set by [Attenuate]; Tenant, Principal, Task, Audience, Issued and
// NotBefore must be absent; for the rest, absent inherits and an empty map or set
// allows nothing.
type Link struct {
	Parent    vault.Digest  `cbor:"1,keyasint,omitzero" json:"parent,omitzero"`    // child only: SHA-256 of the link before
	Tenant    vault.Tenant  `cbor:"2,keyasint,omitzero" json:"tenant,omitzero"`    // must be the issuer's
	Principal string        `cbor:"3,keyasint,omitzero" json:"principal,omitzero"` // for whom: user:clerk@example.com
	Agent     vault.AgentID `cbor:"4,keyasint,omitzero" json:"agent,omitzero"`     // a child may name another one if Delegates lets it
	Task      *Task         `cbor:"5,keyasint,omitzero" json:"task,omitzero"`      //
	Audience  string        `cbor:"6,keyasint,omitzero" json:"audience,omitzero"`  // exactly one budget domain: the cluster id
	Issued    Instant       `cbor:"7,keyasint,omitzero" json:"issued,omitzero"`    // what the kill switch compares with
	NotBefore Instant       `cbor:"8,keyasint,omitzero" json:"not_before,omitzero"`
	Expires   Instant       `cbor:"9,keyasint,omitzero" json:"expires,omitzero"` // the earliest in the chain counts

	// Depth says how many links may follow, 0 to 15; a child has at most one less
	// than its parent, also when it is absent or says more.
	Depth *int `cbor:"10,keyasint,omitzero" json:"depth,omitzero"`
	// Holder is who may use the chain up to here, and who may sign the next link.
	Holder *Holder `cbor:"11,keyasint,omitzero" json:"holder,omitzero"`
	// Delegates are the agents that later links may name. Absent from the root,
	// the chain keeps its agent.
	Delegates []vault.AgentID `cbor:"12,keyasint,omitzero" json:"delegates,omitzero"`
	// Grants are what may be called and how.
	Grants Grants `cbor:"13,keyasint,omitzero" json:"grants,omitzero"`
	// Budgets are counters that this link declares. All its descendants share them.
	Budgets *Budgets `cbor:"14,keyasint,omitzero" json:"budgets,omitzero"`
	// MinGrade is the least sandbox grade. The strictest in the chain counts.
	MinGrade vault.Grade `cbor:"15,keyasint,omitzero" json:"min_grade,omitzero"`
	// MayRead are the compartments the agent may read. Absent from the root: none.
	MayRead []string `cbor:"16,keyasint,omitzero" json:"may_read,omitzero"`
	// MaySendTo are the recipients that private data may go to: domains and hosts.
	// Absent from the root: none.
	MaySendTo []string `cbor:"17,keyasint,omitzero" json:"may_send_to,omitzero"`
	// Caveats are CEL expressions over a call; each of every link has to be true.
	// What can evaluate them is configured ([Config.Engines]); without it the chain
	// is refused.
	Caveats []string `cbor:"18,keyasint,omitzero" json:"caveats,omitzero"`
	// ThirdParty are parties that have to agree to every call.
	ThirdParty []ThirdParty `cbor:"19,keyasint,omitzero" json:"third_party,omitzero"`
	// SignAt is the least risk of a target from which on a call has to carry a
	// signature of its own. The strictest in the chain counts; absent: none does.
	SignAt SignAt `cbor:"20,keyasint,omitzero" json:"sign_at,omitzero"`
	// DelegateKeys are the thumbprints (RFC 9679) of the keys that later links may be
	// bound to. Absent: any key.
	DelegateKeys []vault.Digest `cbor:"21,keyasint,omitzero" json:"delegate_keys,omitzero"`
}

// A ThirdParty is a group of people who discharge a caveat by answering a
// question, and the gateway they answer to. Only the gateway with that audience
// can put the question; every other one refuses the chain.
type ThirdParty struct {
	Group    string `cbor:"1,keyasint" json:"group"`
	Audience string `cbor:"2,keyasint" json:"audience"` // cluster id
}

// A SignAt is a least risk: low, medium or high. The empty SignAt demands nothing.
type SignAt string

// risk returns the least risk from which on s demands a signature.
func (s SignAt) risk() (r vault.Risk, ok bool) {
	for _, r := range []vault.Risk{vault.RiskLow, vault.RiskMedium, vault.RiskHigh} {
		if r.String() == string(s) {
			return r, true
		}
	}
	return vault.RiskHigh, false
}

// A Task is the purpose a chain serves.
type Task struct {
	ID      vault.TaskID `cbor:"1,keyasint" json:"id"`                       // of the instance
	File    vault.Digest `cbor:"2,keyasint,omitzero" json:"file,omitzero"`   // of the task file; zero if there is none
	Purpose string       `cbor:"3,keyasint" json:"purpose"`                  // one line, for people
	Inputs  string       `cbor:"4,keyasint,omitzero" json:"inputs,omitzero"` // the user's own words: the only trusted task text
}

// A Holder is who may use a chain. Exactly one field is set. Only a holder with a
// key signs further links itself; for the others the gateway that minted them
// does, and no other gateway accepts them.
type Holder struct {
	Key     Key     `cbor:"1,keyasint,omitzero" json:"key,omitzero"`     // proves possession by session or signature
	SPIFFE  string  `cbor:"2,keyasint,omitzero" json:"spiffe,omitzero"`  // a peer that the transport authenticated as this id
	Channel string  `cbor:"3,keyasint,omitzero" json:"channel,omitzero"` // a socket the daemon holds for one sandbox generation
	UID     *uint32 `cbor:"4,keyasint,omitzero" json:"uid,omitzero"`     // the other end of a Unix socket
	Bearer  bool    `cbor:"5,keyasint,omitzero" json:"bearer,omitzero"`  // whoever has the token; loopback only
}

// HeldBy returns a Holder with a key.
func HeldBy(k Key) *Holder { return &Holder{Key: k} }

// HeldByUID returns a Holder for a local peer.
func HeldByUID(uid int) *Holder {
	u := uint32(uid)
	return &Holder{UID: &u}
}

// Grants are the rules by kind and target. The name "*" stands for every name of
// the server and is legal in a root only; a rule for the exact name replaces it.
type Grants map[vault.Kind]map[vault.Target]Rule

// A Rule says how one target may be called. In a root it has Any or Args. In a
// child, absent Args inherit.
type Rule struct {
	// Any leaves the arguments open. Only a root says so, and it is marked in
	// every record.
	Any bool `cbor:"1,keyasint,omitzero" json:"any,omitzero"`
	// Args are the arguments that may be given, by JSON Pointer (RFC 6901) through
	// objects; an empty map allows none. Those that are not named are refused, those
	// that are named are required unless optional.
	Args Args `cbor:"2,keyasint,omitzero" json:"args,omitzero"`
	// Ask are approval groups; each of every link has to say yes.
	Ask []string `cbor:"3,keyasint,omitzero" json:"ask,omitzero"`
	// Definition pins the digest of the tool's definition.
	Definition vault.Digest `cbor:"4,keyasint,omitzero" json:"definition,omitzero"`
	// Budgets count this rule's calls. Their sums leave the target out.
	Budgets *Budgets `cbor:"5,keyasint,omitzero" json:"budgets,omitzero"`
}

// Budgets are counters. A link that has Budgets sets at least one.
type Budgets struct {
	Calls    *int64 `cbor:"1,keyasint,omitzero" json:"calls,omitzero"`     // calls, never refunded
	BytesOut *int64 `cbor:"2,keyasint,omitzero" json:"bytes_out,omitzero"` // bytes of canonical arguments; calls of kind egress are refused under it
	Sums     []Sum  `cbor:"3,keyasint,omitzero" json:"sums,omitzero"`
	// Recipients and Hosts bound how many different ones the calls may reach. Who is
	// a recipient of a call, and which host it reaches, is for the gateway to say,
	// which knows the roles of arguments.
	Recipients *int64 `cbor:"4,keyasint,omitzero" json:"recipients,omitzero"`
	Hosts      *int64 `cbor:"5,keyasint,omitzero" json:"hosts,omitzero"`
	Wall       *int64 `cbor:"6,keyasint,omitzero" json:"wall_ms,omitzero"` // milliseconds that calls may run, added up
}

// A Sum bounds the total of one numeric argument of one target. The argument is
// required, may not be negative and has at most six decimal places.
type Sum struct {
	Kind    vault.Kind     `cbor:"1,keyasint,omitzero" json:"kind,omitzero"`     // absent in a rule
	Server  vault.ServerID `cbor:"2,keyasint,omitzero" json:"server,omitzero"`   // absent in a rule
	Name    string         `cbor:"3,keyasint,omitzero" json:"name,omitzero"`     // absent in a rule
	Arg     string         `cbor:"4,keyasint" json:"arg"`                        // JSON Pointer of the amount
	UnitArg string         `cbor:"5,keyasint,omitzero" json:"unit_arg,omitzero"` // JSON Pointer of the argument that must equal Unit; absent if the target knows one unit only
	Unit    string         `cbor:"6,keyasint" json:"unit"`                       // EUR
	Limit   Decimal        `cbor:"7,keyasint" json:"limit"`
}

// Limit returns n for the fields of [Budgets].
func Limit(n int64) *int64 { return &n }

// Depth returns n for [Link.Depth].
func Depth(n int) *int { return &n }

// linkID is SHA-256("vault/link/v1" ‖ protected ‖ payload). The protected header is
// one CBOR item and delimits itself.
func linkID(protected, payload []byte) vault.Digest {
	b := make([]byte, 0, len(typLink)+len(protected)+len(payload))
	return sha256.Sum256(append(append(append(b, typLink...), protected...), payload...))
}

// String names the holder for people.
func (h *Holder) String() string {
	switch {
	case h == nil:
		return "nobody"
	case !h.Key.IsZero():
		return h.Key.String()
	case h.SPIFFE != "":
		return h.SPIFFE
	case h.Channel != "":
		return "channel " + h.Channel
	case h.UID != nil:
		return fmt.Sprintf("uid %d", *h.UID)
	case h.Bearer:
		return "bearer"
	}
	return "nobody"
}
