package vault

import "time"

// A Risk is how much harm a tool can do, least first. The zero Risk is the
// highest: what nobody classified is taken for the worst.
type Risk uint8

// The risks. They compare with [Risk.AtLeast], not with <.
const (
	RiskHigh Risk = iota
	RiskMedium
	RiskLow
)

func (r Risk) String() string {
	switch r {
	case RiskLow:
		return "low"
	case RiskMedium:
		return "medium"
	case RiskHigh:
	}
	return "high"
}

// AtLeast reports whether r is s or riskier.
func (r Risk) AtLeast(s Risk) bool { return r <= s }

// A Role says what an argument of a tool decides. Flow rules hang on it.
type Role string

// The roles of an argument. An argument without a role of a tool that is not
// read-only is consequential.
const (
	RoleRecipient Role = "recipient" // who gets the data: address, account, channel
	RoleHost      Role = "host"      // where the data goes: host or URL
	RolePath      Role = "path"      // which file
	RoleCommand   Role = "command"   // what is executed
	RoleAmount    Role = "amount"    // how much
	RoleContent   Role = "content"   // what is sent; not consequential by itself
	RoleSelector  Role = "selector"  // which record is read; not consequential for read-only tools
)

// A Tool is what is known of the target of a call: its registration and the
// pinned definition. For kinds without a server it is made from the grant. The
// zero Tool is one nobody knows: high risk, writes, leads out, from the web.
type Tool struct {
	Server     string   // registered name
	ID         ServerID //
	Name       string   // name inside the server
	Definition Digest   // of name, description, schemas and annotations, as pinned
	Installed  bool     // Vault installed the tree and runs it in a sandbox
	ReadOnly   bool     // changes nothing, by the operator's word or reviewed annotation
	Local      bool     // cannot reach beyond its sandbox: no way out
	Risk       Risk
	Source     Integrity       // of what it returns
	Holds      Readers         // who may read what it returns
	Roles      map[string]Role // by JSON Pointer of the argument
}

// Label is the label of what the tool returns.
func (t *Tool) Label(kind Kind) Label {
	return Label{Integrity: t.Source, Readers: t.Holds, Sources: []Source{{kind, t.Server, t.Name}}}
}

// An Origin says where the value of one argument was found, if anywhere.
type Origin struct {
	Path    string   // JSON Pointer of the argument
	Found   []string // task, capability, catalogue, or a source's name
	Trusted bool
}

// Facts is a call with everything known about it at the moment it is decided.
// The gateway fills it in from stage to stage; stages only read it.
type Facts struct {
	Call    *Call
	Grant   *Grant
	Tool    *Tool
	Scope   Label    // joined labels of all the agent instance has seen
	Origins []Origin // provenance of the consequential arguments
	Calls   int      // calls of this task so far
	Denies  int      // refusals of this task so far
	Grade   Grade    // of the sandbox that would run it
	Outside bool     // another gateway has the effect: nothing here runs it, and no grade is claimed
	Lowered *Label   // what stages join to the label of the result; nil for nothing
}

// A Question is what a person is asked about one call, as the approver sees it.
type Question struct {
	ID      string    // approval id
	Bytes   []byte    // the signed question; its digest binds the answer
	Expires time.Time //
	Shown   bool      // it was recorded and shown before
}

// An Approval is a person's yes to one question: single-use, burnt at Admit.
type Approval struct {
	ID       string
	Approver string // who, as authenticated by the key
	Expires  time.Time
}
