package capability

import (
	"time"

	"github.com/pilox/vault"
)

// A View is a chain for people and programs that read JSON.
type View struct {
	Verified  bool          `json:"verified"` // signatures, issuer, audience and time were checked
	Digest    vault.Digest  `json:"digest"`   // SHA-256 of the chain with signatures
	Issuer    string        `json:"issuer"`   // key id that the root names
	Tenant    vault.Tenant  `json:"tenant"`
	Principal string        `json:"principal"`
	Agent     vault.AgentID `json:"agent"` // of the last link
	Task      Task          `json:"task"`
	Audience  string        `json:"audience"`
	NotBefore time.Time     `json:"not_before"`
	Expires   time.Time     `json:"expires"` // the earliest of the chain
	Depth     int           `json:"depth"`   // links that may follow
	Holder    Holder        `json:"holder"`  // of the last link
	Bytes     int           `json:"bytes"`   // encoded length
	Links     []LinkView    `json:"links"`   // root first; a call must pass each
}

// A LinkView is one link of a [View].
type LinkView struct {
	ID  vault.Digest `json:"id"`
	KID string       `json:"kid,omitzero"` // set where an issuer signed
	Link
}

// Inspect returns what a chain says. It checks no signature: Verified is false.
func Inspect(c Chain) View {
	if c.IsZero() {
		return View{}
	}
	root := &c.links[0]
	v := View{
		Digest: c.Digest(), Issuer: string(root.kid), Tenant: root.Tenant, Principal: root.Principal, Agent: c.agent(),
		Task: *root.Task, Audience: root.Audience, NotBefore: root.NotBefore.Time(), Expires: root.Expires.Time(),
		Depth: c.depthLeft(), Holder: *c.holder(), Bytes: len(c.raw),
	}
	for i := range c.links {
		l := &c.links[i]
		if e := l.Expires.Time(); l.Expires != 0 && e.Before(v.Expires) {
			v.Expires = e
		}
		v.Links = append(v.Links, LinkView{ID: l.id, KID: string(l.kid), Link: l.Link})
	}
	return v
}

// Verify checks an encoded chain without a daemon: signatures, issuer, audience
// and time. It knows of no revocation and of no proof of possession. Errors are
// *vault.Denial.
func Verify(raw []byte, roots []RootIssuer, audience string, now time.Time) (View, error) {
	v, err := New(Config{Roots: roots, Audience: audience, Now: func() time.Time { return now }})
	if err != nil {
		return View{}, vault.NewDenial(vault.CodeCapabilityIssuer, "", err)
	}
	a, err := v.authority(raw)
	if err != nil {
		return View{}, err
	}
	if denial := v.now(a, now); denial != nil {
		return View{}, denial
	}
	view := Inspect(a.chain)
	view.Verified = true
	return view, nil
}
