package vault

import (
	"errors"
	"fmt"
)

var errUnknownVerdict = errors.New("unknown verdict: want allow, ask or deny")

// A Code is a reason from the fixed catalogue. It says what kind of rule decided
// and never a value, a threshold or the name of another source: a denial is no
// oracle.
type Code string

// The catalogue. The part before the dot is the stage that decides.
const (
	CodeArgsMalformed    Code = "args.malformed"     // not strict JSON, or not an object
	CodeArgsDuplicate    Code = "args.duplicate_key" // a key twice, or twice under case folding
	CodeNumberUnsafe     Code = "args.number_unsafe" // a number that a double does not keep
	CodeArgsTooLarge     Code = "args.too_large"     // size, depth or count
	CodeArgsSchema       Code = "args.schema"        // does not match the tool's schema
	CodeRequestMalformed Code = "request.malformed"  // the protocol message around the arguments

	CodeCapabilityMissing   Code = "capability.missing"
	CodeCapabilityMalformed Code = "capability.malformed"
	CodeCapabilitySignature Code = "capability.signature"
	CodeCapabilityIssuer    Code = "capability.issuer" // no such root issuer, or beyond its ceiling
	CodeCapabilityAudience  Code = "capability.audience"
	CodeCapabilityExpired   Code = "capability.expired"
	CodeCapabilityNotYet    Code = "capability.not_yet"
	CodeCapabilityRevoked   Code = "capability.revoked"
	CodeCapabilityTarget    Code = "capability.target"   // kind or target not granted
	CodeCapabilityArgument  Code = "capability.argument" // constraint not met, at Path
	CodeCapabilityBudget    Code = "capability.budget"
	CodeCapabilityDiffers   Code = "capability.definition" // the chain pins another definition
	CodeCapabilityCaveat    Code = "capability.caveat"     // a caveat does not hold, or nobody here can tell
	CodeProof               Code = "proof"                 // possession not proven, or replayed

	CodeToolUnknown     Code = "tool.unknown"
	CodeToolQuarantined Code = "tool.quarantined" // definition differs from the pinned one
	CodeServerDown      Code = "server.unavailable"

	CodeFlowDeadlyThree Code = "flow.deadly_three" // private data, untrusted content, a way out
	CodeFlowProvenance  Code = "flow.provenance"   // a consequential value of unknown origin, at Path
	CodeFlowReaders     Code = "flow.readers"      // the recipient may not read what is in scope
	CodeFlowClearance   Code = "flow.clearance"    // the task is not cleared for what the target holds

	CodePolicyDenied    Code = "policy_denied"
	CodePolicyUndefined Code = "policy_undefined"
	CodePolicyError     Code = "policy_error"
	CodePolicyAsks      Code = "policy_asks"
	CodePolicyNotify    Code = "policy_notify" // somebody is to be told
	CodeScan            Code = "scan.content"  // a scanner objects, at Path
	CodeScanError       Code = "scan.error"

	CodeApprovalRequired Code = "approval.required" // pending: a person has to answer
	CodeApprovalDenied   Code = "approval.denied"
	CodeApprovalTimeout  Code = "approval.timeout"
	CodeApprovalInvalid  Code = "approval.invalid" // spent, expired, or of another call
	CodeApprovalNobody   Code = "approval.nobody"  // no surface to ask on

	CodeCallArgsDiffer Code = "call.args_differ" // same id, other arguments
	CodeCallUnknown    Code = "call.unknown"     // an earlier attempt with this id has no known outcome
	CodeCallClosed     Code = "call.closed"      // ran before; its result is no longer kept
	CodePermitted      Code = "call.permitted"   // another gateway has the effect; no denial
	CodeTaskClosed     Code = "task.closed"
	CodeBusy           Code = "busy" // a bound on concurrent work was reached

	CodeLedger         Code = "ledger.unavailable"
	CodeSandboxGrade   Code = "sandbox.grade" // this host cannot give the demanded grade
	CodeSandboxMissing Code = "sandbox.unavailable"

	CodeToolError        Code = "tool.error" // the tool itself reports a failure
	CodeUpstreamFailed   Code = "upstream.failed"
	CodeUpstreamTimeout  Code = "upstream.timeout"
	CodeUpstreamTooLarge Code = "upstream.too_large"
	CodeUpstreamGarbage  Code = "upstream.malformed"
	CodeResultSchema     Code = "result.schema"
	CodeResultWithheld   Code = "result.withheld"
	CodeEgressAddress    Code = "egress.address"
	CodeCancelled        Code = "cancelled"
	CodeKilled           Code = "killed"
	CodeInternal         Code = "internal"
)

// Executed says whether the effect of a refused call can have happened.
type Executed string

// The zero Executed is not valid on the wire; [NewDenial] sets ExecutedNo.
const (
	ExecutedNo      Executed = "no"
	ExecutedYes     Executed = "yes"
	ExecutedUnknown Executed = "unknown"
)

// A Retry says whether trying again can help.
type Retry string

// The kinds of retry.
const (
	RetryNever      Retry = "never"
	RetrySameCallID Retry = "same_call_id" // the same call with the same id, after a person answered
	RetryAfter      Retry = "after"        // later
)

// A Denial is the answer to a call that does not go through, in the shape that
// agents get under _meta["dev.pilox.vault/denial"]. It holds nothing secret.
type Denial struct {
	Verdict    string   `json:"verdict"` // deny, pending, withheld or error
	Reason     Reason   `json:"reason"`
	Executed   Executed `json:"executed"`
	Retry      Retry    `json:"retry"`
	HowToAsk   string   `json:"how_to_ask,omitempty"`
	ApprovalID string   `json:"approval_id,omitempty"`
	DecisionID string   `json:"decision_id,omitempty"` // the call id
	Event      *uint64  `json:"event,omitempty"`       // ledger index that records it

	Err error `json:"-"` // cause; logged, never shown
}

// DenialKey is where a denial stands in the _meta of an MCP result.
const DenialKey = "dev.pilox.vault/denial"

// NewDenial returns a denial with verdict deny, not executed, no retry.
func NewDenial(code Code, path string, cause error) *Denial {
	return &Denial{
		Verdict:  "deny",
		Reason:   Reason{Code: code, Path: path},
		Executed: ExecutedNo,
		Retry:    RetryNever,
		HowToAsk: code.HowToAsk(),
		Err:      cause,
	}
}

// DenialOf returns the first Denial in err's tree, or an internal one that wraps
// err, so that no error reaches an agent unclassified. A nil err gives nil.
func DenialOf(err error) *Denial {
	if err == nil {
		return nil
	}
	if d, ok := errors.AsType[*Denial](err); ok {
		return d
	}
	return NewDenial(CodeInternal, "", err)
}

func (d *Denial) Error() string {
	s := fmt.Sprintf("%s: %s", d.Verdict, d.Reason.Code)
	if d.Reason.Path != "" {
		s += " at " + d.Reason.Path
	}
	if d.HowToAsk != "" {
		s += ": " + d.HowToAsk
	}
	return s
}

func (d *Denial) Unwrap() error { return d.Err }

// HowToAsk says, for a code, what the agent or its operator can do next.
func (c Code) HowToAsk() string { return howToAsk[c] }

var howToAsk = map[Code]string{
	CodeArgsMalformed:       "send the arguments as one JSON object without duplicate keys",
	CodeArgsDuplicate:       "send each key once; keys that differ only in case count as the same",
	CodeNumberUnsafe:        "send large or very precise numbers as strings",
	CodeArgsTooLarge:        "send smaller arguments",
	CodeArgsSchema:          "match the tool's input schema",
	CodeRequestMalformed:    "send a well-formed request",
	CodeCapabilityMissing:   "present a capability: pvault mcp --task FILE, or a token from pvault cap mint",
	CodeCapabilityMalformed: "mint the token again with pvault cap mint",
	CodeCapabilitySignature: "mint the token again with pvault cap mint",
	CodeCapabilityIssuer:    "use a token minted by this Vault",
	CodeCapabilityAudience:  "use a token minted for this Vault",
	CodeCapabilityExpired:   "ask the operator to mint a new capability for the task",
	CodeCapabilityNotYet:    "wait until the capability becomes valid",
	CodeCapabilityRevoked:   "this task was stopped; ask the operator",
	CodeCapabilityTarget:    "ask the operator to add this tool to the task file",
	CodeCapabilityArgument:  "use a value that the task allows, or ask the operator to widen the task file",
	CodeCapabilityBudget:    "the task's budget is spent; ask the operator for a new task",
	CodeCapabilityDiffers:   "ask the operator to review the tool and mint the task again",
	CodeCapabilityCaveat:    "a condition of the capability does not hold for this call; the operator sees which with pvault policy explain",
	CodeProof:               "open a new session with the key this capability is bound to",
	CodeToolUnknown:         "list the tools; ask the operator to register the server with pvault server add",
	CodeToolQuarantined:     "ask the operator to look at the change with pvault server review",
	CodeServerDown:          "try again later; the operator can see why with pvault server show",
	CodeFlowDeadlyThree:     "ask a person: private and untrusted data are in scope and this call leads out",
	CodeFlowProvenance:      "ask a person: this value does not come from the task or a trusted source",
	CodeFlowReaders:         "ask a person: the recipient may not read the data in scope",
	CodePolicyDenied:        "the operator's policy refuses this; the operator sees the rule with pvault audit tail --disclose",
	CodePolicyUndefined:     "the operator's policy has no answer for this call and that denies",
	CodePolicyError:         "the operator's policy failed and that denies; the operator sees why in the log",
	CodePolicyAsks:          "wait for a person to answer, then retry with the same call id",
	CodeScan:                "remove the content that was found",
	CodeScanError:           "a scanner failed and that denies; the operator sees why in the log",
	CodeFlowClearance:       "ask the operator for a task whose labels.may_read names what this server holds",
	CodeApprovalRequired:    "a person has to answer: pvault approve ls; then retry with the same call id",
	CodeApprovalDenied:      "a person refused; do not repeat the call",
	CodeApprovalTimeout:     "nobody answered in time; ask again",
	CodeApprovalInvalid:     "the approval is spent, expired or for another call; ask again",
	CodeApprovalNobody:      "nobody can answer: ask the operator to make an approver with pvault init and to list the group in vault.yaml",
	CodeCallArgsDiffer:      "use a new call id for other arguments",
	CodeCallUnknown:         "the outcome of the earlier attempt is not known; check before you use a new call id",
	CodeCallClosed:          "the call ran and its result is no longer kept; use a new call id to run it again",
	CodeTaskClosed:          "the task is over; ask the operator for a new one",
	CodeBusy:                "try again later",
	CodeLedger:              "try again later; nothing runs while the ledger cannot be written",
	CodeSandboxGrade:        "this host cannot isolate as demanded; pvault doctor says what to change",
	CodeSandboxMissing:      "this host cannot isolate; pvault doctor says what to change",
	CodeUpstreamFailed:      "the server failed; its operator sees why in the log",
	CodeUpstreamTimeout:     "the server did not answer in time; the effect may have happened",
	CodeUpstreamTooLarge:    "the answer is larger than the limit; ask for less",
	CodeUpstreamGarbage:     "the server answered something that is not the protocol",
	CodeResultSchema:        "the server's answer does not match its own schema; the effect happened",
	CodeResultWithheld:      "the effect happened and its result is withheld",
	CodeEgressAddress:       "this address may never be reached: private, local or metadata range",
	CodeCancelled:           "the call was cancelled",
	CodeKilled:              "the operator stopped the task",
	CodeInternal:            "an internal error; nothing more is known to you",
}
