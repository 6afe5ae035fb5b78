// Package admin is the edge for operators: an HTTP API over the daemon's Unix
// socket, its client, and the signature by which an approver allows what peer
// credentials alone may not.
//
// It owns the shape of the requests and who may make them. What a request does is
// behind [Backend], which the daemon implements. Start with [Backend] and [Client].
//
// It promises: whoever can open the socket may read, call, open tasks that were
// approved before, and stop things, because stopping only takes authority away.
// Minting from a task file that is new or changed, registering and reviewing
// servers need the signature of an approver key over the exact request and a
// challenge that is used once.
package admin

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/pilox/vault"
)

// A Peer is who is at the other end of the socket, as the kernel says.
type Peer struct {
	UID int
	PID int
}

// Rules says how the operator's rules fare since the daemon started.
type Rules struct {
	Evaluated  uint64 `json:"evaluated"`  // answers that counted
	Shadowed   uint64 `json:"shadowed"`   // answers of hooks in mode shadow
	Mismatches uint64 `json:"mismatches"` // of them, those that would have been stricter
	Age        int64  `json:"age_s"`      // seconds since the rules in force were loaded
}

// A Status is what a running daemon says about itself.
type Status struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Data      string    `json:"data"`
	HTTP      string    `json:"http"`
	Tenant    string    `json:"tenant"`
	Cluster   string    `json:"cluster"`    // audience of its capabilities
	Ledger    uint64    `json:"ledger"`     // events
	LedgerKey string    `json:"ledger_key"` // note verifier key, for pinning
	Grade     string    `json:"grade"`      // of the process sandbox
	Policy    string    `json:"policy"`
	Rules     *Rules    `json:"rules,omitempty"` // nil where no rule is asked
	Approvers int       `json:"approvers"`
	OpenAsks  int       `json:"open_approvals"`
	Resident  uint64    `json:"resident_bytes"`
	Warnings  []string  `json:"warnings"`
	// Anchors says how far those are who vouch for the ledger; nil if nobody is asked.
	Anchors []Anchor `json:"anchors,omitempty"`
	// Sinks says how far each receiver of events is; nil if there is none.
	Sinks []Sink `json:"sinks,omitempty"`
	// Metrics is the address where Prometheus finds metrics, "" if there is none.
	Metrics string `json:"metrics,omitempty"`
	// ApprovalKey signs questions; what a person answers must verify under it.
	ApprovalKey []byte `json:"approval_key"`
	// SessionKey signs the gateway's half of a session; holders of keys pin it.
	SessionKey string `json:"session_key"`
	// IssuerKey signs root links; whoever verifies a capability offline pins it.
	IssuerKey string `json:"issuer_key"`
	// StatusKey signs status lists.
	StatusKey string `json:"status_key"`
	// TLS is the address of the TLS listener, "" if there is none.
	TLS string `json:"tls,omitempty"`
	// Tiles is where the ledger is served as a transparency log, "" for none or a socket.
	Tiles string `json:"tiles,omitempty"`
}

// A TaskRequest opens a task instance from a task file.
type TaskRequest struct {
	File   []byte `json:"file"`             // the exact bytes of task.yaml
	Inputs []byte `json:"inputs,omitempty"` // the exact bytes of the file it names
	Agent  string `json:"agent,omitempty"`  // name of the agent; empty means "local"
	New    bool   `json:"new,omitempty"`    // a new instance even if one is open
	// Bind says what the capability is bound to: "peer" (the caller's uid, the
	// default), "bearer", "key:" and the base64url of an Ed25519 public key, a key in
	// the form of capability.Key (ed25519:…, p256:…), or a SPIFFE ID.
	Bind string `json:"bind,omitempty"`
}

// A Task is an open task instance and the capability that carries it.
type Task struct {
	ID        vault.TaskID  `json:"id"`
	Agent     vault.AgentID `json:"agent"`
	Principal string        `json:"principal"`
	Purpose   string        `json:"purpose"`
	Opened    time.Time     `json:"opened"`
	Expires   time.Time     `json:"expires"`
	State     string        `json:"state"` // open, closed, revoked
	Rejoined  bool          `json:"rejoined,omitempty"`
	Token     string        `json:"token,omitempty"`
	Status    *int          `json:"status,omitempty"` // index in the status list
	Autonomy  *Autonomy     `json:"autonomy,omitempty"`
}

// An Autonomy is the level of a task.
type Autonomy struct {
	Began string `json:"began"` // the level of its file
	Now   string `json:"now"`   // after violations
	Means string `json:"means"` // of the level now, in a sentence
}

// A CallRequest is one call made by hand or by a script.
type CallRequest struct {
	Token  string          `json:"token"`
	ID     string          `json:"id,omitempty"`
	Kind   vault.Kind      `json:"kind"`
	Server string          `json:"server,omitempty"`
	Name   string          `json:"name"`
	Args   json.RawMessage `json:"args"`
}

// A CallAnswer is a result or a denial, never both.
type CallAnswer struct {
	Result  json.RawMessage `json:"result,omitempty"`
	IsError bool            `json:"is_error,omitempty"`
	Event   *uint64         `json:"event,omitempty"`
	Denial  *vault.Denial   `json:"denial,omitempty"`
}

// An Approval is a question to people as they see it.
type Approval struct {
	ID       string    `json:"id"`
	State    string    `json:"state"`
	Agent    string    `json:"agent"`
	Target   string    `json:"target"`
	Groups   []string  `json:"groups"`
	Expires  time.Time `json:"expires"`
	Text     string    `json:"text"`     // rendered from Question
	Question []byte    `json:"question"` // the signed bytes an answer is bound to
}

// A ServerRequest registers a server.
type ServerRequest struct {
	Name         string          `json:"name"`
	Registration json.RawMessage `json:"registration"` // see package tool
}

// A Server is a registered server as the operator sees it.
type Server struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`
	Source      string            `json:"source"` // where it was installed from, or its URL
	Integrity   string            `json:"integrity"`
	Holds       string            `json:"holds"`
	Tools       []string          `json:"tools"`
	Quarantined map[string]string `json:"quarantined,omitempty"` // tool → what changed
	New         []string          `json:"new,omitempty"`         // tools nobody has reviewed
	Findings    []string          `json:"findings,omitempty"`
	State       string            `json:"state"`
	Offers      []Offer           `json:"offers,omitempty"` // what an approver can accept
	Review      string            `json:"review,omitempty"` // names exactly these offers; empty if there are none
}

// An Offer is a definition that a server lists and that is not pinned. Who accepts
// names the digest, so that what the server lists by then makes no difference.
type Offer struct {
	Kind   vault.Kind   `json:"kind"`
	Name   string       `json:"name"`
	Digest vault.Digest `json:"digest"`
	Text   string       `json:"text,omitempty"` // the definition; empty if it is what was pinned before
}

// ReviewOf names a list of offers by its digest. It is not shortened: a server
// that makes both halves of a collision needs only the root of the work.
func ReviewOf(offers []Offer) string {
	if len(offers) == 0 {
		return ""
	}
	var parts [][]byte
	for _, o := range offers {
		parts = append(parts, []byte(o.Kind), []byte(o.Name), o.Digest[:])
	}
	return vault.Hash("review", parts...).String()
}

// An AcceptRequest pins definitions that were looked at.
type AcceptRequest struct {
	Offers []Offer `json:"offers"` // texts are not needed
}

// A RunRequest starts a program in a sandbox under a task's capability.
type RunRequest struct {
	Token     string   `json:"token"`
	Argv      []string `json:"argv"`
	ReadOnly  []string `json:"read_only,omitempty"`
	ReadWrite []string `json:"read_write,omitempty"`
}

// An Anchor says how far somebody is who vouches for the ledger.
type Anchor struct {
	Target string    `json:"target"`          // rekor, rekor_v1, tsa, or witness NAME
	Size   uint64    `json:"size"`            // records that it vouches for since the daemon started
	Lag    uint64    `json:"lag"`             // records since
	At     time.Time `json:"at,omitzero"`     // when it did
	Error  string    `json:"error,omitempty"` // of the last attempt, if that failed
}

// A Sink says how far a receiver of events is.
type Sink struct {
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`
	Next    uint64    `json:"next"`              // first event that it has not got
	Lag     uint64    `json:"lag"`               // events since
	At      time.Time `json:"at,omitzero"`       // when it last got something since the daemon started
	Error   string    `json:"error,omitempty"`   // of the last attempt, if that failed
	Refused uint64    `json:"refused,omitempty"` // events that it dropped and said so
}

// A Frame is one piece of a streamed answer. Exactly one member is set.
type Frame struct {
	Progress string          `json:"progress,omitempty"`
	Stdout   []byte          `json:"stdout,omitempty"`
	Stderr   []byte          `json:"stderr,omitempty"`
	Exit     *int            `json:"exit,omitempty"`
	Server   *Server         `json:"server,omitempty"`
	Event    json.RawMessage `json:"event,omitempty"`
	Left     string          `json:"left,omitempty"` // why an event is not here, or not whole: dropped or bare
	Error    *Error          `json:"error,omitempty"`
}

// Why an event of the decision log is not in its frame, or not whole.
const (
	LeftDropped = "dropped" // data.system.log.drop says so
	LeftBare    = "bare"    // a rule about the log failed, so that what it could have hidden is not there
)

// A DecisionsRequest chooses decisions; the zero one takes them all.
type DecisionsRequest struct {
	From   uint64       // first index in the ledger
	Since  time.Time    // not before; zero is the beginning
	Run    vault.TaskID // of one task; empty is all
	Follow bool         // wait for more
}

// An Error is what the API answers instead of a result.
type Error struct {
	Code    string `json:"code"` // a vault.Code, or not_found, invalid, approver_required, internal
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do next
}

func (e *Error) Error() string { return e.Message }

// A RevokeRequest names what is stopped: one of link, agent, task, issuer, all.
type RevokeRequest struct {
	What string `json:"what"`
	ID   string `json:"id,omitempty"`
	Why  string `json:"why,omitempty"`
}

// An ExportRequest says what goes into a bundle. The zero value is the whole ledger,
// with every sensitive field closed.
type ExportRequest struct {
	Run      vault.TaskID
	Disclose bool     // open the sensitive fields
	Redact   []string // fields that stay closed all the same
	Since    uint64   // size of a ledger that the verifier holds; 0 is none
	// Only opens one field of one record, and nothing else. An empty Field: no such limit.
	Only struct {
		Index uint64
		Field string
	}
}

// An EraseRequest names what is erased: one field of one event, or everything that
// was recorded for a principal. Exactly one of Field and Subject is set.
type EraseRequest struct {
	Index   uint64 `json:"index,omitempty"`
	Field   string `json:"field,omitempty"`
	Subject string `json:"subject,omitempty"` // principal of the task file
	Basis   string `json:"basis"`             // legal basis, up to 1 KiB
}

// An Erasure is what was erased.
type Erasure struct {
	Events []uint64       `json:"events"`         // that record it, one a field or run
	Runs   []vault.TaskID `json:"runs,omitempty"` // whose keys are gone
}

// A Backend does what the API asks. Methods marked signed are called only after
// an approver's signature over the request was verified; approver is its name.
type Backend interface {
	Status(ctx context.Context) (Status, error)

	// OpenTask rejoins or opens an instance of a task file that an approver has
	// minted from before. Else the error has code approver_required.
	OpenTask(ctx context.Context, peer Peer, r TaskRequest) (Task, error)
	MintTask(ctx context.Context, peer Peer, approver string, r TaskRequest) (Task, error) // signed
	Tasks(ctx context.Context) ([]Task, error)
	CloseTask(ctx context.Context, id vault.TaskID) error
	Revoke(ctx context.Context, peer Peer, r RevokeRequest) (event uint64, err error)
	// StatusList returns the Status List Token of all root links, to be found at uri.
	StatusList(ctx context.Context, uri string) (string, error)

	Call(ctx context.Context, peer Peer, r CallRequest) (CallAnswer, error)
	Run(ctx context.Context, peer Peer, r RunRequest, out func(Frame) error) error

	Approvals(ctx context.Context) ([]Approval, error)
	Answer(ctx context.Context, id string, answer []byte) error // carries its own signature

	Servers(ctx context.Context) ([]Server, error)
	AddServer(ctx context.Context, approver string, r ServerRequest, out func(Frame) error) (Server, error) // signed
	ReviewServer(ctx context.Context, name string) (Server, error)
	AcceptServer(ctx context.Context, approver, name string, r AcceptRequest) (Server, error) // signed
	RemoveServer(ctx context.Context, approver, name string) error                            // signed

	Tail(ctx context.Context, from uint64, run vault.TaskID, follow, disclose bool, out func(Frame) error) error
	// Decisions yields the decisions on record in the form of OPA's decision log.
	Decisions(ctx context.Context, r DecisionsRequest, out func(Frame) error) error
	Prove(ctx context.Context, index uint64) ([]byte, error)
	// Metrics writes metrics in the text format of Prometheus, Samples returns them as
	// a list of names, labels and values.
	Metrics(ctx context.Context, w io.Writer) error
	Samples(ctx context.Context) (json.RawMessage, error)
	// Anchor asks everybody who vouches for the ledger now and says how far they are.
	Anchor(ctx context.Context) ([]Anchor, error)
	Export(ctx context.Context, r ExportRequest, w io.Writer) error
	Erase(ctx context.Context, approver string, r EraseRequest) (Erasure, error) // signed

	// Approver returns the public key of an approver by name.
	Approver(name string) (key []byte, ok bool)
}
