package daemon

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/console"
	"github.com/pilox/vault/internal/mcp"
)

// views keeps what each capability may see, until the catalogue changes.
type views struct {
	mu         sync.Mutex
	generation int
	byChain    map[vault.Digest]*mcp.View
}

// maxViews bounds the views kept; beyond it all are made again.
const maxViews = 1024

// changed forgets every view.
func (v *views) changed() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.generation++
	v.byChain = nil
}

func (v *views) get(chain vault.Digest) (view *mcp.View, generation int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.byChain[chain], v.generation
}

// put keeps a view unless the catalogue changed while it was made.
func (v *views) put(chain vault.Digest, view *mcp.View, generation int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if generation != v.generation {
		return
	}
	if v.byChain == nil || len(v.byChain) >= maxViews {
		v.byChain = make(map[vault.Digest]*mcp.View)
	}
	v.byChain[chain] = view
}

// channelKey is the context key of a sandbox's channel.
type channelKey struct{}

// A channel is a socket that the daemon holds for one sandbox generation, and the
// capability that only this socket can use.
type channel struct {
	id    string
	chain []byte
}

// authenticate finds out who sends a request: a sandbox by its channel, a local
// process by its Unix socket, a TLS client by its SVID, the holder of a key by a DPoP
// proof, or the bearer of a token on loopback. Whether the binding suffices for the
// capability is the verifier's word. A proof is used up once it has shown a holder.
func (d *Daemon) authenticate(r *http.Request) (mcp.Caller, error) {
	cred, err := d.credentialOf(r)
	if err != nil {
		return mcp.Caller{}, err
	}
	if cred.Session, err = base64.RawURLEncoding.DecodeString(r.Header.Get("Vault-Session")); err != nil {
		return mcp.Caller{}, vault.NewDenial(vault.CodeProof, "", err)
	}
	probe := &vault.Call{Credential: cred}
	grant, err := d.verifier.Attend(r.Context(), probe)
	if err != nil {
		d.gateway.CountStranger("mcp", vault.DenialOf(err).Reason.Code)
		return mcp.Caller{}, err
	}
	if err := d.useProof(r); err != nil {
		d.gateway.CountStranger("mcp", vault.DenialOf(err).Reason.Code)
		return mcp.Caller{}, err
	}
	view, generation := d.views.get(grant.Chain)
	if view == nil {
		if err := d.hookAdmit(r.Context(), "mcp", &grant); err != nil {
			return mcp.Caller{}, err
		}
		view = d.view(r.Context(), probe, &grant)
		d.views.put(grant.Chain, view, generation)
	}
	cred.Session = nil // the front fills in the proof
	return mcp.Caller{Key: grant.Chain.String() + string(grant.Proof), Credential: cred, View: view, Over: d.verifier.Revoked(&grant)}, nil
}

// credentialOf takes the binding from the connection and the chain from the
// channel or the Authorization header.
func (d *Daemon) credentialOf(r *http.Request) (vault.Credential, error) {
	if c, ok := r.Context().Value(channelKey{}).(channel); ok {
		return vault.Credential{Chain: c.chain, Binding: vault.Binding{Channel: c.id}}, nil
	}
	b, err := d.bindingOf(r)
	if err != nil {
		return vault.Credential{}, vault.NewDenial(vault.CodeProof, "", err)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if proof := proofOf(r); proof != nil {
		token, ok = strings.CutPrefix(r.Header.Get("Authorization"), dpopScheme)
		b.DPoP = proof.Thumbprint()
	}
	if !ok {
		if strings.HasPrefix(r.Header.Get("Authorization"), dpopScheme) {
			return vault.Credential{}, vault.NewDenial(vault.CodeProof, "", errors.New("no DPoP proof is checked at this door"))
		}
		return vault.Credential{}, vault.NewDenial(vault.CodeCapabilityMissing, "", nil)
	}
	chain, err := capability.DecodeText(token)
	if err != nil {
		return vault.Credential{}, vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	return vault.Credential{Chain: chain, Binding: b}, nil
}

// bindingOf says what the connection of a request proves about the other end.
func (d *Daemon) bindingOf(r *http.Request) (vault.Binding, error) {
	if p, ok := console.PeerFrom(r.Context()); ok {
		return vault.Binding{Peer: true, PeerUID: p.UID}, nil
	}
	if r.TLS != nil {
		return d.tlsBinding(r)
	}
	return vault.Binding{Bearer: fromLoopback(r)}, nil
}

// fromLoopback reports whether the other end of a TCP connection is this host.
func fromLoopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// view compiles what a capability may see.
func (d *Daemon) view(ctx context.Context, call *vault.Call, grant *vault.Grant) *mcp.View {
	var servers []mcp.ServerView
	index := map[string]int{}
	for _, def := range d.catalogue.View(ctx, d.verifier.Granted(call, grant)) {
		i, ok := index[def.Server]
		if !ok {
			i = len(servers)
			index[def.Server] = i
			servers = append(servers, mcp.ServerView{ID: def.Target.Server, Name: def.Server})
		}
		s := &servers[i]
		item := mcp.Definition{Name: def.Target.Name, Raw: def.Raw}
		switch {
		case def.Kind == vault.KindTool:
			s.Tools = append(s.Tools, item)
		case def.Kind == vault.KindPrompt:
			s.Prompts = append(s.Prompts, item)
		case def.Template:
			s.Templates = append(s.Templates, item)
		case def.Kind == vault.KindResource:
			s.Resources = append(s.Resources, item)
		}
	}
	v := mcp.NewView(servers)
	for _, line := range v.Hidden() {
		d.log.WarnContext(ctx, "definition not shown", "what", line)
	}
	return v
}
