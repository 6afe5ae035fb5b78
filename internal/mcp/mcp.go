// Package mcp is the edge for the Model Context Protocol, on both sides: [Front]
// takes an agent's requests and makes a [vault.Call] of each one that can have an
// effect; [Upstreams] carries an admitted call to the server it is for. In between
// stands the gateway, which this package knows only as an interface.
//
// It owns the JSON-RPC layer, the transports and the two eras of the protocol:
// 2026-07-28, where every request stands alone, and 2024-11-05 to 2025-11-25, which
// open a session with initialize. Client and server may be of different eras; the
// edge translates. It does not decide anything: which tools a task sees comes in as
// a [View], who the caller is comes in through [FrontConfig.Authenticate], and
// whether a call may run is the gateway's answer.
//
// Promises: every request is authenticated and has its Host and Origin checked
// before its body is read; bodies are decoded strictly and header copies must equal
// them; an upstream sees the canonical arguments that were decided on and never a
// header of the client; a request is never sent a second time after its first byte
// went out; whatever an upstream sends is bounded.
//
// Hot paths use no reflection. The official SDK is the oracle of the tests.
package mcp

import "slices"

// The protocol versions, newest first.
const (
	Version20260728 = "2026-07-28"
	Version20251125 = "2025-11-25"
	Version20250618 = "2025-06-18"
	Version20250326 = "2025-03-26"
	Version20241105 = "2024-11-05"
)

var (
	allVersions    = []string{Version20260728, Version20251125, Version20250618, Version20250326, Version20241105}
	legacyVersions = allVersions[1:]
)

// modern reports whether v belongs to the era without sessions. Versions are
// dates, so later eras compare greater.
func modern(v string) bool { return v >= Version20260728 }

func isLegacy(v string) bool { return slices.Contains(legacyVersions, v) }

// The methods that the edge knows by name.
const (
	methodInitialize        = "initialize"
	methodDiscover          = "server/discover"
	methodPing              = "ping"
	methodToolsCall         = "tools/call"
	methodToolsList         = "tools/list"
	methodPromptsGet        = "prompts/get"
	methodPromptsList       = "prompts/list"
	methodResourcesRead     = "resources/read"
	methodResourcesList     = "resources/list"
	methodTemplatesList     = "resources/templates/list"
	methodSubscribe         = "resources/subscribe"
	methodUnsubscribe       = "resources/unsubscribe"
	methodComplete          = "completion/complete"
	methodSetLevel          = "logging/setLevel"
	methodListen            = "subscriptions/listen"
	methodSampling          = "sampling/createMessage"
	methodElicitation       = "elicitation/create"
	methodRoots             = "roots/list"
	noteInitialized         = "notifications/initialized"
	noteCancelled           = "notifications/cancelled"
	noteProgress            = "notifications/progress"
	noteMessage             = "notifications/message"
	noteToolsChanged        = "notifications/tools/list_changed"
	notePromptsChanged      = "notifications/prompts/list_changed"
	noteResourcesChanged    = "notifications/resources/list_changed"
	noteResourceUpdated     = "notifications/resources/updated"
	noteSubscriptionsListen = "notifications/subscriptions/acknowledged"
)

// Keys of _meta. Those under reservedMeta are the protocol's own: the edge writes
// them for each side and never passes a caller's on.
const (
	reservedMeta   = "io.modelcontextprotocol/"
	metaVersion    = reservedMeta + "protocolVersion"
	metaClientInfo = reservedMeta + "clientInfo"
	metaClientCaps = reservedMeta + "clientCapabilities"
	metaLogLevel   = reservedMeta + "logLevel"
	metaServerInfo = reservedMeta + "serverInfo"
	metaListenID   = reservedMeta + "subscriptionId"

	// CallIDKey is where a client names its call in _meta, so that a retry finds
	// the same call.
	CallIDKey = "dev.pilox.vault/call_id"
)

// JSON-RPC error codes, of the base specification and of MCP.
const (
	codeParse          = -32700
	codeInvalidRequest = -32600
	codeMethodNotFound = -32601
	codeInvalidParams  = -32602
	codeInternal       = -32603
	codeHeaderMismatch = -32020
	codeVersion        = -32022
	codeRefused        = -32001 // a vault.Denial, which stands in data
)

// Limits that are no matter of configuration.
const (
	// maxDepth bounds nesting in what an upstream sends; the canonical arguments
	// have the same bound.
	maxDepth = 64
	// maxHeaderValue bounds one header copied from a body. Servers commonly stop at 8 KiB for all.
	maxHeaderValue = 4 << 10
	// DefaultMaxResult bounds one message of an upstream: results hold base64 images,
	// and beyond this no model reads them.
	DefaultMaxResult = 8 << 20
)
