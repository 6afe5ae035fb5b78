package capability

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// A world is one gateway with its issuer, one agent with a key, and a clock.
type world struct {
	t       testing.TB
	issuer  ed25519.PrivateKey
	agent   ed25519.PrivateKey
	session ed25519.PrivateKey
	clock   time.Time
	cfg     Config
}

// seeded returns a key that is the same in every run, so that vectors are.
func seeded(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func seededP256(t testing.TB, name string) *ecdsa.PrivateKey {
	d := sha256.Sum256([]byte(name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyOf(t testing.TB, s crypto.Signer) Key {
	t.Helper()
	k, err := KeyOf(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const (
	testTask     = vault.TaskID("t-0123456789abcdefghjkmnpqrs")
	testAgent    = vault.AgentID("spiffe://example.org/agent/acme/clerk/1")
	testMailer   = vault.AgentID("spiffe://example.org/agent/acme/mailer/1")
	testTenant   = vault.Tenant("acme")
	testAudience = "cluster-1"
)

var testStart = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, issuer: seeded("issuer"), agent: seeded("agent"), session: seeded("session"), clock: testStart,
	}
	w.cfg = Config{
		Roots:    []RootIssuer{{KID: "k1", Key: keyOf(t, w.issuer), Tenant: testTenant, Own: true}},
		Audience: testAudience, Now: func() time.Time { return w.clock },
		SessionKey: w.session, Revocations: new(Revocations),
		SameUID: func(vault.Binding) bool { return false },
	}
	return w
}

func (w *world) verifier() *Verifier {
	w.t.Helper()
	v, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

var (
	filesServer = vault.ServerID(vault.Hash("test", []byte("files")))
	payServer   = vault.ServerID(vault.Hash("test", []byte("pay")))
	readFile    = vault.Target{Server: filesServer, Name: "read_file"}
	transfer    = vault.Target{Server: payServer, Name: "transfer"}
)

func ptr[T any](v T) *T { return &v }

// root is a root link for the agent's key that grants one rule on read_file.
func (w *world) root(r Rule) Link {
	return Link{
		Tenant: testTenant, Principal: "user:clerk@example.com", Agent: testAgent,
		Task:     &Task{ID: testTask, Purpose: "test", Inputs: "please"},
		Audience: testAudience, Issued: InstantOf(testStart), NotBefore: InstantOf(testStart),
		Expires: InstantOf(testStart.Add(time.Hour)), Depth: Depth(8), Holder: HeldBy(keyOf(w.t, w.agent)),
		Grants:  Grants{vault.KindTool: {readFile: r}},
		Budgets: &Budgets{Calls: Limit(50)},
	}
}

func (w *world) mint(l Link) Chain {
	w.t.Helper()
	c, err := Mint(l, Signer{Key: w.issuer, KID: "k1"})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) attenuate(c Chain, l Link, key crypto.Signer) Chain {
	w.t.Helper()
	c, err := Attenuate(c, l, Signer{Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func newCall(args string) *vault.Call {
	return &vault.Call{ID: "c-1", Kind: vault.KindTool, Target: readFile, Args: vault.MustArgs(args)}
}

// open opens a session for c with key.
func (w *world) open(v *Verifier, c Chain, key crypto.Signer) *Session {
	w.t.Helper()
	s := &Session{Chain: c, Key: key, Gateway: v.SessionKey()}
	request, err := s.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := v.OpenSession(w.t.Context(), request, vault.Binding{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.Finish(answer); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// code returns the reason code and path of an error, "" for none.
func code(err error) vault.Code {
	if err == nil {
		return ""
	}
	return vault.DenialOf(err).Reason.Code
}

// verify signs call for c, held by key, in a fresh session and verifies it.
func (w *world) verify(v *Verifier, c Chain, key crypto.Signer, call *vault.Call) (vault.Grant, error) {
	w.t.Helper()
	nonce, err := v.Nonce()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := SignCall(call, c, key, nonce); err != nil {
		w.t.Fatal(err)
	}
	return v.Verify(w.t.Context(), call)
}
