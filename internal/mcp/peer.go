package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/pilox/vault"
)

// A peer is one live connection to an upstream in one era: HTTP, an HTTP session,
// or a stdio process. It is safe for concurrent use.
type peer interface {
	// era returns the protocol version spoken.
	era() string
	// hello returns the result object of server/discover or initialize.
	hello() json.RawMessage
	// call sends one request, once, and returns the result object. params is an
	// object without _meta, or nil; the peer adds _meta from meta. Notifications that belong to
	// the request, and requests of the server, go to in, which may be called from
	// another goroutine until call returns. An error object of the server is a
	// *RemoteError; every other error is a *vault.Denial, with Executed no only if
	// nothing was sent. When ctx ends the peer tells the server.
	call(ctx context.Context, method string, params json.RawMessage, meta requestMeta, in inbound) (json.RawMessage, error)
	// close ends the connection and waits for its goroutines.
	close() error
}

// An inbound takes what the server sends while it works on one request.
type inbound interface {
	// notify takes a notification. Its params may be nil; a progress token in
	// them is the peer's and stands for the call. An error ends the call.
	notify(ctx context.Context, method string, params json.RawMessage) error
	// request answers a request of the server with a result object. A *RemoteError is
	// sent back as it is, any other error as a refusal without its text.
	request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error)
}

// requestMeta is what a request says about its client. The zero requestMeta is a
// client without capabilities that wants no progress.
type requestMeta struct {
	capabilities json.RawMessage // the client's; nil means {}
	logLevel     string          // modern era; empty asks for no log messages
	progress     bool            // the peer adds a progress token of its own
	extra        json.RawMessage // further _meta members as an object, nil for none
	name         string          // tool or prompt name or URI for the Mcp-Name header
	headers      []paramHeader   // Mcp-Param headers, values not yet encoded
}

// A paramHeader is one argument that a tool wants repeated as a header.
type paramHeader struct{ name, value string }

// A RemoteError is a JSON-RPC error object that a server sent.
type RemoteError struct {
	Code int64
	Raw  json.RawMessage // the error object as received
}

func (e *RemoteError) Error() string { return fmt.Sprintf("server answered error %d", e.Code) }

// An Instance names what a connection may be shared by: nothing outside these three.
type Instance struct {
	Tenant vault.Tenant
	Server vault.ServerID
	Task   vault.TaskID // empty if the connection is shared by all tasks of the tenant
}

// A Dialer opens a connection to one server. [DialHTTP] and [DialStdio] make them.
type Dialer struct {
	// dial connects. want is the protocol version to prefer, empty for the newest;
	// the peer may speak another.
	dial func(ctx context.Context, inst Instance, want string, opts peerOptions) (peer, error)
	// many reports that a connection of the era with sessions is opened per client
	// session; otherwise one serves all.
	many bool
}

// peerOptions is what every peer gets from Upstreams.
type peerOptions struct {
	// stray takes notifications that belong to no call. It does not block. Nil drops
	// them.
	stray func(method string, params json.RawMessage)
	// clientCaps is what the client declared, for initialize; nil declares everything that
	// a client of the gateway could be asked for, since each request is checked anyway.
	clientCaps json.RawMessage
	// info is how the gateway introduces itself, an Implementation object. Never nil.
	info json.RawMessage
	// maxMessage bounds one message in bytes. Never zero.
	maxMessage int
	log        *slog.Logger // never nil
}

// capabilities returns what initialize declares.
func (o *peerOptions) capabilities() json.RawMessage {
	if o.clientCaps != nil {
		return o.clientCaps
	}
	return json.RawMessage(`{"sampling":{},"elicitation":{},"roots":{}}`)
}

func (o *peerOptions) clientInfo() json.RawMessage { return o.info }

// appendMeta appends the _meta object of a request with the id to a server that speaks
// version, or nothing if it needs none. The progress token is the id, so that it is unique
// in the connection.
func (o *peerOptions) appendMeta(b []byte, version, id string, meta requestMeta) []byte {
	if !modern(version) && !meta.progress && meta.extra == nil {
		return b
	}
	b = append(b, '{')
	if modern(version) {
		b = append(b, `"`+metaVersion+`":"`...)
		b = append(append(b, version...), `","`+metaClientInfo+`":`...)
		b = append(append(b, o.info...), `,"`+metaClientCaps+`":`...)
		if meta.capabilities != nil {
			b = append(b, meta.capabilities...)
		} else {
			b = append(b, "{}"...)
		}
		if meta.logLevel != "" {
			b = appendQuoted(append(b, `,"`+metaLogLevel+`":`...), meta.logLevel)
		}
		b = append(b, ',')
	}
	if meta.progress {
		b = append(append(append(b, `"progressToken":`...), id...), ',')
	}
	if len(meta.extra) > len("{}") {
		b = append(append(b, meta.extra[1:len(meta.extra)-1]...), ',')
	}
	if b[len(b)-1] == '{' {
		return append(b, '}')
	}
	b[len(b)-1] = '}'
	return b
}
