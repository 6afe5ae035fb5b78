package vault

import (
	"context"
	"encoding/json"
	"time"
)

// A Call is one attempt to have an effect. An edge makes it from its protocol
// once; every stage, the approval, the record and the dispatch see the same one.
// Stages must not change it.
type Call struct {
	ID        string    // the client's id, else generated; unique within Task
	Generated bool      // the edge made ID up, so nobody can retry under it
	Task      TaskID    // the task instance it belongs to
	Tenant    Tenant    // owner of the task
	Agent     AgentID   // who calls
	Principal string    // for whom: user:clerk@example.com
	Kind      Kind      // what sort of effect
	Target    Target    // on what
	Server    string    // the registered name of the target's server, for people
	Args      Args      // canonical arguments
	Params    Args      // the protocol's other parameters in canonical form, without arguments and id
	Edge      string    // mcp, cli, egress: where it came in
	At        time.Time // when the edge had decoded it

	Credential Credential
}

// A Credential is what the caller brought to show its authority: a capability
// chain and what proves that it may use it. Binding is filled in by the edge
// from the transport and never from anything the caller wrote.
type Credential struct {
	Chain   []byte  // encoded capability chain
	Binding Binding // what the transport itself proves

	Session   []byte // session id, when the call is MAC'd in a session
	Seq       uint64
	MAC       []byte
	Signature []byte // per-call signature instead of a MAC
	Nonce     []byte // 16 bytes, part of the proven bytes
}

// A Binding is what a transport proves about the caller without its help. The
// zero Binding proves nothing.
type Binding struct {
	Channel  string // a socket that the daemon holds for one sandbox generation
	PeerUID  int    // uid at the other end of a Unix socket; valid if Peer
	Peer     bool
	Bearer   bool   // the token came alone over loopback HTTP
	Exporter []byte // tls-exporter value of the connection
	SPIFFE   string // SPIFFE ID that mutual TLS authenticated
	DPoP     Digest // RFC 7638 thumbprint of the key that signed a fresh DPoP proof for this request
	Remote   bool   // the other end of a TLS connection is another host
}

// A ProofKind says how a caller proved possession of its capability. The zero
// ProofKind is none and denies.
type ProofKind string

// The kinds of proof, strongest first.
const (
	ProofSignature ProofKind = "signature" // one signature for this call
	ProofSession   ProofKind = "session"   // MAC under a session key
	ProofDPoP      ProofKind = "dpop"      // a signature for this HTTP request: method, URL and token, not the body (RFC 9449)
	ProofSVID      ProofKind = "svid"      // the transport authenticated a SPIFFE ID
	ProofChannel   ProofKind = "channel"   // a socket the daemon holds for the sandbox
	ProofPeer      ProofKind = "peer"      // Unix peer credentials
	ProofBearer    ProofKind = "bearer"    // nothing but the token, loopback only
)

// A Grant is what a verified chain allows for one call, compiled. The zero Grant
// allows nothing.
type Grant struct {
	Chain     Digest    // of the whole chain with signatures
	Leaf      Digest    // id of the last link
	Issuer    string    // key id that signed the root
	Issued    time.Time // when the root was signed
	Links     []Digest  // ids, root first
	Tenant    Tenant    //
	Task      TaskID    //
	Agent     AgentID   // who calls: the last of Agents
	Agents    []AgentID // everyone the chain was delegated through, root first
	Principal string    //
	Purpose   string    //
	Inputs    string    // the user's own words, the only trusted task text
	Expires   time.Time //
	Proof     ProofKind //
	Holders   []Digest  // RFC 9679 thumbprints of the keys the links are bound to, root first; none of them may approve
	AnyArgs   bool      // the rule says args: any; marked in every record
	SameUID   bool      // agent and daemon share a uid outside our sandbox

	Definition Digest   // the tool definition the chain pins, if it does
	Ask        []string // approval groups the chain demands for this call
	Choices    []Choice // the values the root itself names, for provenance
	Debits     []Debit  // what the call costs, one per counter on its path
	MinGrade   Grade    // least sandbox grade
	MustSign   bool     // targets of SignAt and riskier need a signature per call
	SignAt     Risk     // valid with MustSign
	MayRead    []string // label clearance: compartments the agent may read
	MaySendTo  []string // recipients (domains, hosts) private data may go to
}

// A Choice is one argument whose values the root of the capability lists or fixes,
// which counts as a person's decision about them. Later links are signed by agents.
type Choice struct {
	Path  string // JSON Pointer of the argument
	Fixed bool   // exactly one value is possible
}

// Units of debits whose amount the gateway finds out: how many recipients or hosts
// a call reaches that no earlier call under the counter did, and how many
// milliseconds it runs.
const (
	UnitRecipients = "recipients"
	UnitHosts      = "hosts"
	UnitWall       = "ms"
)

// A Debit is one counter and what a call takes from it. Counters belong to the
// link that declares them and are shared by all its descendants. A burnt
// approval is a debit of 1 on a counter with limit 1.
type Debit struct {
	Counter string `json:"counter"` // link id ‖ "/" ‖ budget key, or "approval/" ‖ id
	Amount  int64  `json:"amount"`  // in the smallest unit of Unit
	Limit   int64  `json:"limit"`   // the counter never exceeds it
	Unit    string `json:"unit"`    // calls, bytes, EUR·10^-6, …
	// Kept reports a debit that outlives failure; calls are never refunded, the
	// others only when the call was provably not dispatched.
	Kept bool `json:"kept,omitempty"`
}

// A Result is what a call brought back: the protocol's result object as bytes,
// and the label that the gateway gave it.
type Result struct {
	Raw      json.RawMessage // exact result object
	IsError  bool            // the server says that the call failed
	Refused  bool            // Raw is the protocol's error object instead of a result; IsError is set too
	Partial  bool            // Raw asks the caller for input (MCP input_required) and is no final result
	Label    Label
	Withheld bool // the effect happened and the content is not released
	Event    uint64
}

// A Stream carries what goes back to the caller before the result. Every frame
// is a result: the gateway labels, scans and releases it before it leaves. A
// Stream is safe for concurrent use and refuses frames after the call is over.
type Stream interface {
	// Notify releases one notification: progress, a log line, list changed.
	Notify(ctx context.Context, method string, params json.RawMessage) error
	// Request asks the caller's side for something on the server's behalf:
	// sampling, elicitation, roots. It fails with a [Denial] unless the
	// capability grants kind server_request with this method.
	Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error)
}
