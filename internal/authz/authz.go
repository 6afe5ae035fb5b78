// Package authz lets other gateways ask Vault instead of competing with it: by
// AuthZEN (Authorization API 1.0, access evaluation) over HTTP and by Envoy's
// external authorization (ext_authz v3) over gRPC.
//
// It owns the two protocols and how a question becomes a [vault.Call]. It decides
// nothing: [Config.Decide] does, with every stage of the gateway, budgets and record
// included. Start with [New].
//
// It promises that whatever is not a clear yes is a no: a question that cannot be
// read, a caller that cannot be authenticated, and a decision that needs a person
// first all deny, with the reason beside it, and each is on record.
package authz

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// Config says whom the doors ask. All fields but Log are required.
type Config struct {
	// Authenticate returns what an HTTP request proves about its caller.
	Authenticate func(r *http.Request) (vault.Credential, error)
	// Server returns the id of a registered server.
	Server func(name string) (vault.ServerID, bool)
	// Decide takes a call through every stage. A nil error is a yes; every other
	// error is a *vault.Denial.
	Decide func(ctx context.Context, call *vault.Call) (vault.Result, error)
	// Refuse records that a question was refused before it became a call, and returns
	// the answer. The call has the credential, which may be nobody's.
	Refuse func(ctx context.Context, call *vault.Call, d *vault.Denial) *vault.Denial
	// Agent returns whose the capability of a credential is, empty if it is nobody's.
	Agent func(ctx context.Context, cred vault.Credential) vault.AgentID
	// TrustPrincipal takes the SPIFFE ID that Envoy says it authenticated for the
	// caller's. False: it is ignored.
	TrustPrincipal bool
	// Bearer says that a token alone counts for calls through Envoy, as it does on
	// the loopback listener. False: it does not.
	Bearer bool
	Log    *slog.Logger // nil means silence
}

// Doors answer other gateways. They are safe for concurrent use.
type Doors struct{ c Config }

// New returns doors that ask c.
func New(c Config) *Doors {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Doors{c}
}

// Bounds on a question. A question is a call without its effect, so it may be as
// large as arguments are.
const (
	maxQuestion  = vault.MaxArgsBytes + 64<<10
	maxQuestions = 64 // of one AuthZEN batch
	maxID        = 128
)

var (
	errTarget = errors.New("the resource is no target: want SERVER.NAME, or a host for egress")
	errID     = errors.New("the request id is longer than 128 bytes or not printable")
)

// newCall returns a call that nothing is known of but who makes it.
func newCall(edge string, cred vault.Credential) *vault.Call {
	return &vault.Call{ID: vault.NewCallID(), Generated: true, Edge: edge, At: time.Now(), Credential: cred}
}

// identify gives a call the id that its question has. An empty one is none.
func identify(c *vault.Call, id string) error {
	if id == "" {
		return nil
	}
	if len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return vault.NewDenial(vault.CodeRequestMalformed, "", errID) // it is not fit for a record
	}
	c.ID, c.Generated = id, false
	return nil
}

// aim gives a call the target that its question names.
func (d *Doors) aim(c *vault.Call, target string) error {
	if c.Kind == vault.KindEgress {
		if _, _, err := vault.ParseHost(target); err != nil {
			return vault.NewDenial(vault.CodeRequestMalformed, "", errTarget)
		}
		c.Target.Name = target
		return nil
	}
	server, name, ok := strings.Cut(target, ".")
	if !ok || name == "" {
		return vault.NewDenial(vault.CodeRequestMalformed, "", errTarget)
	}
	sid, ok := d.c.Server(server)
	if !ok {
		return vault.NewDenial(vault.CodeToolUnknown, "", nil)
	}
	c.Server, c.Target = server, vault.Target{Server: sid, Name: name}
	return nil
}

// decide answers a question: nil is a yes. bad says why it is none.
func (d *Doors) decide(ctx context.Context, c *vault.Call, bad error) *vault.Denial {
	if bad != nil {
		return d.c.Refuse(ctx, c, vault.DenialOf(bad))
	}
	_, err := d.c.Decide(ctx, c)
	return vault.DenialOf(err)
}
