package capability

import (
	"context"

	"github.com/pilox/vault"
)

// Attend checks chain, time, revocation and possession for a request that has no
// effect, such as a list. It uses up nothing, so the proof that comes with a call
// is still good for [Verifier.Verify]: a holder without a key is shown by the
// transport, as for a call; a holder with a key by a DPoP proof that the edge has checked,
// or by naming its live session on the connection that the session belongs to. The grant names task, agent and links
// and allows nothing. Errors are *vault.Denial.
func (v *Verifier) Attend(_ context.Context, call *vault.Call) (vault.Grant, error) {
	cred := &call.Credential
	a, err := v.authority(cred.Chain)
	if err != nil {
		return vault.Grant{}, vault.DenialOf(err)
	}
	now := v.cfg.Now()
	proof := vault.ProofSession
	if a.holder.Key.IsZero() {
		proof, err = v.prove(a, nil, call, now)
	} else if a.signsRequest(cred) {
		proof = vault.ProofDPoP
	} else if s := v.session(cred.Session); s == nil || s.authority.key != a.key || !now.Before(s.expires) || !s.on(&cred.Binding) {
		err = errSession
	}
	if err != nil {
		return vault.Grant{}, vault.NewDenial(vault.CodeProof, "", err)
	}
	if d := v.now(a, now); d != nil {
		return vault.Grant{}, d
	}
	g := a.grant
	v.finish(&g, proof, call)
	return g, nil
}
