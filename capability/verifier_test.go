package capability

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// TestVerifyCodes reads as the list of what ends a chain or a proof, and the code
// that the agent sees.
func TestVerifyCodes(t *testing.T) {
	stranger := seeded("stranger")
	other := vault.Target{Server: payServer, Name: "read_file"}
	for _, tt := range []struct {
		name  string
		setup func(*world, *Link)       // before minting
		after func(*world, *vault.Call) // after signing
		key   crypto.Signer             // who signs the call; nil: the agent
		want  vault.Code                //
		known bool                      // the refusal is recorded in the task's run
	}{
		{name: "valid"},
		{name: "valid thirty seconds early", setup: func(w *world, l *Link) { l.NotBefore += 30_000; l.Expires += 60_000 }},
		{name: "not yet", setup: func(w *world, l *Link) { l.NotBefore += 30_001; l.Expires += 60_000 }, want: vault.CodeCapabilityNotYet, known: true},
		{name: "expired, to the millisecond", setup: func(w *world, l *Link) { w.clock = l.Expires.Time() }, want: vault.CodeCapabilityExpired, known: true},
		{name: "for another audience", setup: func(w *world, l *Link) { l.Audience = "cluster-2" }, want: vault.CodeCapabilityAudience},
		{name: "for a tenant that is not the issuer's", setup: func(w *world, l *Link) { l.Tenant = "evil" }, want: vault.CodeCapabilityIssuer},
		{name: "an issuer that is over", setup: func(w *world, l *Link) { w.cfg.Roots[0].NotAfter = testStart }, want: vault.CodeCapabilityIssuer, known: true},
		{name: "an issuer that is not yet", setup: func(w *world, l *Link) { w.cfg.Roots[0].NotBefore = testStart.Add(1) }, want: vault.CodeCapabilityIssuer, known: true},
		{name: "an unknown issuer", setup: func(w *world, l *Link) { w.cfg.Roots[0].KID = "k2" }, want: vault.CodeCapabilityIssuer},
		{name: "an issuer's id with another key", setup: func(w *world, l *Link) { w.cfg.Roots[0].Key = keyOf(w.t, stranger) }, want: vault.CodeCapabilitySignature},
		{name: "no issuers at all", setup: func(w *world, l *Link) { w.cfg.Roots = nil }, want: vault.CodeCapabilityIssuer},
		{name: "longer than the ceiling allows", setup: func(w *world, l *Link) {
			w.cfg.Roots[0].Ceiling = &Ceiling{Grants: l.Grants, Life: time.Minute}
		}, want: vault.CodeCapabilityIssuer},
		{name: "beyond the ceiling", setup: func(w *world, l *Link) { w.cfg.Roots[0].Ceiling = &Ceiling{} }, want: vault.CodeCapabilityIssuer, known: true},
		{name: "below the ceiling", setup: func(w *world, l *Link) {
			w.cfg.Roots[0].Ceiling = &Ceiling{Grants: Grants{vault.KindTool: {{Server: filesServer, Name: "*"}: {Any: true}}}}
		}},
		{name: "no chain", after: func(w *world, c *vault.Call) { c.Credential.Chain = nil }, want: vault.CodeCapabilityMissing},
		{name: "garbage", after: func(w *world, c *vault.Call) { c.Credential.Chain = []byte("garbage") }, want: vault.CodeCapabilityMalformed},
		{name: "a byte of the chain changed", after: func(w *world, c *vault.Call) {
			c.Credential.Chain = slices.Clone(c.Credential.Chain)
			c.Credential.Chain[len(c.Credential.Chain)-1] ^= 1
		}, want: vault.CodeCapabilitySignature},
		{name: "another server with the same name", after: func(w *world, c *vault.Call) { c.Target = other }, want: vault.CodeProof},
		{name: "the call is for another target", setup: func(w *world, l *Link) { l.Grants = Grants{vault.KindTool: {other: {Any: true}}} }, want: vault.CodeCapabilityTarget, known: true},
		{name: "the call is of another kind", setup: func(w *world, l *Link) { l.Grants = Grants{vault.KindPrompt: {readFile: {Any: true}}} }, want: vault.CodeCapabilityTarget, known: true},
		{name: "nothing is granted", setup: func(w *world, l *Link) { l.Grants = Grants{} }, want: vault.CodeCapabilityTarget, known: true},
		{name: "no calls in the budget", setup: func(w *world, l *Link) { l.Budgets.Calls = Limit(0) }, want: vault.CodeCapabilityBudget, known: true},
		{name: "signed by somebody else", key: stranger, want: vault.CodeProof},
		{name: "no proof", after: func(w *world, c *vault.Call) { c.Credential.Signature = nil }, want: vault.CodeProof},
		{name: "two proofs", after: func(w *world, c *vault.Call) { c.Credential.MAC = make([]byte, 32) }, want: vault.CodeProof},
		{name: "a MAC without a session", after: func(w *world, c *vault.Call) {
			c.Credential.Signature, c.Credential.MAC = nil, make([]byte, 32)
		}, want: vault.CodeProof},
		{name: "another nonce", after: func(w *world, c *vault.Call) { c.Credential.Nonce = make([]byte, 16) }, want: vault.CodeProof},
		{name: "a short nonce", after: func(w *world, c *vault.Call) { c.Credential.Nonce = c.Credential.Nonce[:15] }, want: vault.CodeProof},
		{name: "a nonce that is too old", after: func(w *world, c *vault.Call) { w.clock = w.clock.Add(nonceLife + 1) }, want: vault.CodeProof},
		{name: "a sequence number without a session", after: func(w *world, c *vault.Call) { c.Credential.Seq = 1 }, want: vault.CodeProof},
		{name: "other arguments than signed", after: func(w *world, c *vault.Call) { c.Args = vault.MustArgs(`{"b":1}`) }, want: vault.CodeProof},
		{name: "another call id than signed", after: func(w *world, c *vault.Call) { c.ID = "c-2" }, want: vault.CodeProof},
		{name: "another kind than signed", after: func(w *world, c *vault.Call) { c.Kind = vault.KindPrompt }, want: vault.CodeProof},
		{name: "the edge believes in another task", after: func(w *world, c *vault.Call) { c.Task = "t-x" }, want: vault.CodeProof},
		{name: "the edge believes in another tenant", after: func(w *world, c *vault.Call) { c.Tenant = "x" }, want: vault.CodeProof},
		{name: "the edge believes in the same task", after: func(w *world, c *vault.Call) { c.Task, c.Agent = testTask, testAgent }},
		{name: "revoked task", setup: revoke(Revocation{Task: testTask}), want: vault.CodeCapabilityRevoked, known: true},
		{name: "revoked agent", setup: revoke(Revocation{Agent: testAgent}), want: vault.CodeCapabilityRevoked, known: true},
		{name: "revoked issuer", setup: revoke(Revocation{Issuer: "k1"}), want: vault.CodeCapabilityRevoked, known: true},
		{name: "the kill switch", setup: revoke(Revocation{Everything: true, At: testStart}), want: vault.CodeCapabilityRevoked, known: true},
		{name: "issued after the kill switch", setup: revoke(Revocation{Everything: true, At: testStart.Add(-time.Millisecond)})},
		{name: "another task revoked", setup: revoke(Revocation{Task: "t-other"})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(Rule{Any: true})
			if tt.setup != nil {
				tt.setup(w, &l)
			}
			c, v := w.mint(l), w.verifier()
			nonce, err := v.Nonce()
			if err != nil {
				t.Fatal(err)
			}
			call := newCall(`{"a":1}`)
			var key crypto.Signer = w.agent
			if tt.key != nil {
				key = tt.key
			}
			if err := SignCall(call, c, key, nonce); err != nil {
				t.Fatal(err)
			}
			if tt.after != nil {
				tt.after(w, call)
			}
			g, err := v.Verify(t.Context(), call)
			if code(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if known := g.Task == testTask && g.Agent == testAgent && len(g.Links) == 1 && g.Proof == vault.ProofSignature; known != (tt.known || tt.want == "") {
				t.Errorf("grant beside %v names task %q, agent %q, proof %q", err, g.Task, g.Agent, g.Proof)
			}
			if tt.want == "" {
				if _, err := v.Verify(t.Context(), call); code(err) != vault.CodeProof {
					t.Errorf("the same proof again: %v", err)
				}
			}
		})
	}
}

func revoke(r Revocation) func(*world, *Link) {
	return func(w *world, _ *Link) {
		if err := w.cfg.Revocations.Add(r); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestBinding lists the holders without a key and what of a transport shows them.
func TestBinding(t *testing.T) {
	bearer := func(w *world) { w.cfg.AllowBearer = true }
	foreign := func(w *world) { w.cfg.Roots[0].Own = false }
	for _, tt := range []struct {
		name   string
		holder Holder
		bound  vault.Binding
		setup  func(*world)
		want   vault.Code
		proof  vault.ProofKind
	}{
		{"the channel", Holder{Channel: "ch-1"}, vault.Binding{Channel: "ch-1"}, nil, "", vault.ProofChannel},
		{"another channel", Holder{Channel: "ch-1"}, vault.Binding{Channel: "ch-2"}, nil, vault.CodeProof, ""},
		{"no channel", Holder{Channel: "ch-1"}, vault.Binding{Bearer: true}, bearer, vault.CodeProof, ""},
		{"the peer", Holder{UID: ptr(uint32(1000))}, vault.Binding{Peer: true, PeerUID: 1000}, nil, "", vault.ProofPeer},
		{"another peer", Holder{UID: ptr(uint32(1000))}, vault.Binding{Peer: true, PeerUID: 1001}, nil, vault.CodeProof, ""},
		{"a uid that the socket did not show", Holder{UID: ptr(uint32(0))}, vault.Binding{}, nil, vault.CodeProof, ""},
		{"the SPIFFE ID", Holder{SPIFFE: "spiffe://a/b"}, vault.Binding{SPIFFE: "spiffe://a/b"}, nil, "", vault.ProofSVID},
		{"another SPIFFE ID", Holder{SPIFFE: "spiffe://a/b"}, vault.Binding{SPIFFE: "spiffe://a/c"}, nil, vault.CodeProof, ""},
		{"a bearer where that is allowed", Holder{Bearer: true}, vault.Binding{Bearer: true}, bearer, "", vault.ProofBearer},
		{"a bearer where it is not", Holder{Bearer: true}, vault.Binding{Bearer: true}, nil, vault.CodeProof, ""},
		{"a bearer on a transport that does not say so", Holder{Bearer: true}, vault.Binding{}, bearer, vault.CodeProof, ""},
		{"a channel bound by another gateway", Holder{Channel: "ch-1"}, vault.Binding{Channel: "ch-1"}, foreign, vault.CodeCapabilityIssuer, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.setup != nil {
				tt.setup(w)
			}
			l := w.root(Rule{Any: true})
			l.Holder = &tt.holder
			call := newCall(`{}`)
			call.Credential = vault.Credential{Chain: w.mint(l).Bytes(), Binding: tt.bound}
			g, err := w.verifier().Verify(t.Context(), call)
			if code(err) != tt.want || g.Proof != tt.proof {
				t.Fatalf("got %v and proof %q, want %q and %q", err, g.Proof, tt.want, tt.proof)
			}
		})
	}
}

// TestSession lists what makes the MAC of a call in a session fail.
func TestSession(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*world, *vault.Call)
		want vault.Code
	}{
		{"valid", func(*world, *vault.Call) {}, ""},
		{"valid without repeating the chain", func(_ *world, c *vault.Call) { c.Credential.Chain = nil }, ""},
		{"a wrong MAC", func(_ *world, c *vault.Call) { c.Credential.MAC[0] ^= 1 }, vault.CodeProof},
		{"a short MAC", func(_ *world, c *vault.Call) { c.Credential.MAC = c.Credential.MAC[:31] }, vault.CodeProof},
		{"another sequence number", func(_ *world, c *vault.Call) { c.Credential.Seq++ }, vault.CodeProof},
		{"sequence number zero", func(_ *world, c *vault.Call) { c.Credential.Seq = 0 }, vault.CodeProof},
		{"another nonce", func(_ *world, c *vault.Call) { c.Credential.Nonce[0] ^= 1 }, vault.CodeProof},
		{"another session id", func(_ *world, c *vault.Call) { c.Credential.Session[0] ^= 1 }, vault.CodeProof},
		{"another call id", func(_ *world, c *vault.Call) { c.ID = "c-2" }, vault.CodeProof},
		{"other arguments", func(_ *world, c *vault.Call) { c.Args = vault.MustArgs(`{"a":2}`) }, vault.CodeProof},
		{"another channel", func(_ *world, c *vault.Call) { c.Credential.Binding.Channel = "ch-2" }, vault.CodeProof},
		{"another peer", func(_ *world, c *vault.Call) { c.Credential.Binding.Peer = true }, vault.CodeProof},
		{"another connection", func(_ *world, c *vault.Call) { c.Credential.Binding.Exporter = []byte{1} }, vault.CodeProof},
		{"another identity", func(_ *world, c *vault.Call) { c.Credential.Binding.SPIFFE = "spiffe://a/b" }, vault.CodeProof},
		{"another chain", func(w *world, c *vault.Call) {
			l := w.root(Rule{Any: true})
			l.Principal = "user:other@example.com"
			c.Credential.Chain = w.mint(l).Bytes()
		}, vault.CodeProof},
		{"after fifteen minutes", func(w *world, _ *vault.Call) { w.clock = w.clock.Add(sessionLife) }, vault.CodeProof},
		{"just before fifteen minutes", func(w *world, _ *vault.Call) { w.clock = w.clock.Add(sessionLife - 1) }, ""},
		{"after the capability", func(w *world, _ *vault.Call) { w.clock = w.clock.Add(time.Hour) }, vault.CodeCapabilityExpired},
		{"a signature instead of the MAC", func(w *world, c *vault.Call) {
			cr := &c.Credential
			leaf := w.mint(w.root(Rule{Any: true})).IDs()[0]
			cr.MAC = nil
			cr.Signature = ed25519.Sign(w.agent, appendCall(nil, testAudience, cr.Session, cr.Seq, &leaf, c, cr.Nonce))
		}, ""},
		{"a stranger's signature instead of the MAC", func(w *world, c *vault.Call) {
			cr := &c.Credential
			leaf := w.mint(w.root(Rule{Any: true})).IDs()[0]
			cr.MAC = nil
			cr.Signature = ed25519.Sign(seeded("stranger"), appendCall(nil, testAudience, cr.Session, cr.Seq, &leaf, c, cr.Nonce))
		}, vault.CodeProof},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v, c := w.verifier(), w.mint(w.root(Rule{Any: true}))
			s := w.open(v, c, w.agent)
			call := newCall(`{"a":1}`)
			if err := s.Sign(call); err != nil {
				t.Fatal(err)
			}
			good := *call
			good.Credential.MAC = slices.Clone(call.Credential.MAC)
			good.Credential.Nonce = slices.Clone(call.Credential.Nonce)
			good.Credential.Session = slices.Clone(call.Credential.Session)
			tt.do(w, call)
			if _, err := v.Verify(t.Context(), call); code(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if w.clock != testStart {
				return
			}
			// A wrong proof uses nothing up; a right one counts once.
			_, err := v.Verify(t.Context(), &good)
			if again := code(err) == vault.CodeProof; again != (tt.want == "") {
				t.Errorf("the original call afterwards: %v", err)
			}
		})
	}
}

func TestSessionOpening(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(*world, *Link, *Session)
		twist func([]byte) []byte // of the request
		bound vault.Binding
		want  vault.Code
	}{
		{name: "valid"},
		{name: "valid on the same TLS connection", setup: func(_ *world, _ *Link, s *Session) { s.Exporter = []byte("x") }, bound: vault.Binding{Exporter: []byte("x")}},
		{name: "on another TLS connection", setup: func(_ *world, _ *Link, s *Session) { s.Exporter = []byte("x") }, bound: vault.Binding{Exporter: []byte("y")}, want: vault.CodeProof},
		{name: "on TLS without naming the connection", bound: vault.Binding{Exporter: []byte("y")}, want: vault.CodeProof},
		{name: "with another key", setup: func(_ *world, _ *Link, s *Session) { s.Key = seeded("stranger") }, want: vault.CodeProof},
		{name: "by a holder without a key", setup: func(_ *world, l *Link, _ *Session) { l.Holder = &Holder{Channel: "x"} }, want: vault.CodeProof},
		{name: "expired", setup: func(w *world, l *Link, _ *Session) { w.clock = l.Expires.Time() }, want: vault.CodeCapabilityExpired},
		{name: "revoked", setup: func(w *world, l *Link, _ *Session) { revoke(Revocation{Task: testTask})(w, l) }, want: vault.CodeCapabilityRevoked},
		{name: "a changed byte", twist: func(b []byte) []byte { b[len(b)-80] ^= 1; return b }, want: vault.CodeProof},
		{name: "trailing data", twist: func(b []byte) []byte { return append(b, 0) }, want: vault.CodeProof},
		{name: "garbage", twist: func(b []byte) []byte { return []byte("garbage") }, want: vault.CodeCapabilityMalformed},
		{name: "nothing", twist: func(b []byte) []byte { return nil }, want: vault.CodeCapabilityMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(Rule{Any: true})
			s := &Session{Key: w.agent, Gateway: keyOf(t, w.session)}
			if tt.setup != nil {
				tt.setup(w, &l, s)
			}
			s.Chain = w.mint(l)
			request, err := s.Open()
			if err != nil {
				t.Fatal(err)
			}
			if tt.twist != nil {
				request = tt.twist(request)
			}
			if _, err := w.verifier().OpenSession(t.Context(), request, tt.bound); code(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSessionAnswerMustBeTheGatewaysForThisOpening(t *testing.T) {
	w := newWorld(t)
	v, c := w.verifier(), w.mint(w.root(Rule{Any: true}))
	open := func(gateway Key) (*Session, []byte) {
		s := &Session{Chain: c, Key: w.agent, Gateway: gateway}
		request, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := v.OpenSession(t.Context(), request, vault.Binding{})
		if err != nil {
			t.Fatal(err)
		}
		return s, answer
	}
	a, answerA := open(v.SessionKey())
	b, answerB := open(v.SessionKey())
	if a.Finish(answerB) == nil || b.Finish(answerA) == nil {
		t.Error("an answer to another opening was taken")
	}
	if err := a.Finish(answerA); err != nil {
		t.Errorf("own answer: %v", err)
	}
	if a.Finish(answerA) == nil {
		t.Error("an answer was taken twice")
	}
	if s, answer := open(keyOf(t, seeded("stranger"))); s.Finish(answer) == nil {
		t.Error("a gateway with another key was taken")
	}
	if err := b.Sign(newCall(`{}`)); err == nil {
		t.Error("an unfinished session signs")
	}
}

func TestSessionsDieWithTheDaemonAndAreBounded(t *testing.T) {
	w := newWorld(t)
	w.cfg.MaxSessions = 3
	v, c := w.verifier(), w.mint(w.root(Rule{Any: true}))
	s := w.open(v, c, w.agent)
	call := newCall(`{}`)
	if err := s.Sign(call); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier().Verify(t.Context(), call); code(err) != vault.CodeProof {
		t.Errorf("after a restart: %v", err)
	}
	w.open(v, c, w.agent)
	w.open(v, c, w.agent)
	again := &Session{Chain: c, Key: w.agent, Gateway: v.SessionKey()}
	request, err := again.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.OpenSession(t.Context(), request, vault.Binding{}); code(err) != vault.CodeBusy {
		t.Errorf("a session too many: %v", err)
	}
	w.clock = w.clock.Add(sessionLife)
	if _, err := v.OpenSession(t.Context(), request, vault.Binding{}); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
}

func TestWindow(t *testing.T) {
	var w window
	use := func(n uint64) bool {
		ok := w.fresh(n)
		if ok {
			w.use(n)
		}
		return ok
	}
	for _, tt := range []struct {
		n    uint64
		want bool
	}{
		{0, false},
		{1, true},
		{1, false},
		{3, true},
		{2, true},
		{2, false},
		{1024, true},
		{4, true},
		{1025, true},
		{1, false},
		{5, true},
		{1030, true},
		{6, false},
		{7, true},
		{1_000_000, true},
		{1030, false},
		{1_000_000 - 1023, true},
		{1_000_000 - 1024, false},
		{^uint64(0), true},
		{^uint64(0), false},
		{^uint64(0) - 1, true},
	} {
		if got := use(tt.n); got != tt.want {
			t.Errorf("%d: got %v", tt.n, got)
		}
	}
}

func TestES256(t *testing.T) {
	w := newWorld(t)
	issuer, agent := seededP256(t, "issuer"), seededP256(t, "agent")
	w.cfg.Roots[0].Key = keyOf(t, issuer)
	l := w.root(Rule{Any: true})
	l.Holder = HeldBy(keyOf(t, agent))
	c, err := Mint(l, Signer{Key: issuer, KID: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	c = w.attenuate(c, Link{}, agent)
	v := w.verifier()
	if _, err := w.verify(v, c, agent, newCall(`{}`)); err != nil {
		t.Errorf("signature: %v", err)
	}
	call := newCall(`{}`)
	if err := w.open(v, c, agent).Sign(call); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), call); err != nil {
		t.Errorf("session: %v", err)
	}
}

// A call in a session can carry a signature, which counts for its sequence number too.
func TestSignedInSession(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"Ed25519": seeded("agent"), "ES256": seededP256(t, "agent")} {
		w := newWorld(t)
		l := w.root(Rule{Any: true})
		l.Holder = HeldBy(keyOf(t, key))
		v, c := w.verifier(), w.mint(l)
		s := w.open(v, c, key)
		call := newCall(`{}`)
		if err := s.SignCall(call); err != nil {
			t.Fatal(err)
		}
		if g, err := v.Verify(t.Context(), call); err != nil || g.Proof != vault.ProofSignature {
			t.Errorf("%s: %q, %v", name, g.Proof, err)
		}
		if _, err := v.Verify(t.Context(), call); code(err) != vault.CodeProof {
			t.Errorf("%s, again: %v", name, err)
		}
	}
	if err := new(Session).SignCall(newCall(`{}`)); err == nil {
		t.Error("signed without a session")
	}
}

// The gateway attenuates for a holder without a key, and nobody else does.
func TestGatewayAttenuatesForChannels(t *testing.T) {
	w := newWorld(t)
	l := w.root(Rule{Any: true})
	l.Holder = &Holder{Channel: "ch-1"}
	c := w.mint(l)
	next := Link{Holder: &Holder{Channel: "ch-2"}}
	if _, err := Attenuate(c, next, Signer{Key: w.agent}); err == nil {
		t.Error("a holder without a key signed")
	}
	forged, err := Attenuate(c, next, Signer{Key: w.agent, KID: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	call := newCall(`{}`)
	call.Credential = vault.Credential{Chain: forged.Bytes(), Binding: vault.Binding{Channel: "ch-2"}}
	v := w.verifier()
	if _, err := v.Verify(t.Context(), call); code(err) != vault.CodeCapabilitySignature {
		t.Errorf("signed by another than the gateway: %v", err)
	}
	good, err := Attenuate(c, next, Signer{Key: w.issuer, KID: "k1"})
	if err != nil {
		t.Fatal(err)
	}
	call.Credential.Chain = good.Bytes()
	if g, err := v.Verify(t.Context(), call); err != nil || g.Proof != vault.ProofChannel {
		t.Errorf("new channel: %v", err)
	}
	call.Credential.Binding.Channel = "ch-1"
	if _, err := v.Verify(t.Context(), call); code(err) != vault.CodeProof {
		t.Errorf("old channel: %v", err)
	}
	// A holder with a key binds nobody to a channel.
	if _, err := Attenuate(w.mint(w.root(Rule{Any: true})), next, Signer{Key: w.agent}); err == nil {
		t.Error("an agent bound a channel")
	}
}

// Parents are digests of the exact bytes before, so no link fits elsewhere.
func TestChainsThatWereTakenApart(t *testing.T) {
	w := newWorld(t)
	root := w.mint(w.root(Rule{Any: true}))
	one := w.attenuate(root, Link{Budgets: &Budgets{Calls: Limit(5)}}, w.agent)
	two := w.attenuate(one, Link{Budgets: &Budgets{Calls: Limit(2)}}, w.agent)
	other := w.root(Rule{Any: true})
	other.Budgets.Calls = Limit(1000)
	wide := w.mint(other)
	link := func(c Chain, i int) []byte { return c.links[i].raw }
	join := func(links ...[]byte) []byte {
		return append([]byte{majorArray<<5 | byte(len(links))}, bytes.Join(links, nil)...)
	}
	for _, tt := range []struct {
		name string
		raw  []byte
	}{
		{"reordered", join(link(two, 0), link(two, 2), link(two, 1))},
		{"a link dropped from the middle", join(link(two, 0), link(two, 2))},
		{"the root dropped", join(link(two, 1), link(two, 2))},
		{"spliced onto another root", join(link(wide, 0), link(two, 1))},
		{"a link twice", join(link(two, 0), link(two, 1), link(two, 1))},
		{"two roots", join(link(two, 0), link(wide, 0))},
		{"truncated", two.raw[:len(two.raw)-1]},
		{"with data behind", append(two.Bytes(), 0)},
		{"of no links", []byte{0x80}},
		{"of too many links", append([]byte{0x91}, bytes.Repeat(link(two, 0), 17)...)},
		{"with a longer head than needed", append([]byte{0x98, 3}, two.raw[1:]...)},
		{"with an indefinite length", append(append([]byte{0x9f}, two.raw[1:]...), 0xff)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Parse(tt.raw); err == nil {
				t.Error("parsed")
			}
			_, err := Verify(tt.raw, w.cfg.Roots, testAudience, testStart)
			if c := code(err); c != vault.CodeCapabilityMalformed && c != vault.CodeCapabilitySignature && c != vault.CodeCapabilityIssuer {
				t.Errorf("verify: %v", err)
			}
		})
	}
	// Dropping the last link is a chain, but one whose holder is the parent's: the
	// proof for the longer one does not fit it.
	v := w.verifier()
	s := w.open(v, two, w.agent)
	call := newCall(`{}`)
	if err := s.Sign(call); err != nil {
		t.Fatal(err)
	}
	call.Credential.Chain = one.Bytes()
	if _, err := v.Verify(t.Context(), call); code(err) != vault.CodeProof {
		t.Errorf("cut to the parent: %v", err)
	}
}

func TestConfigThatIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
	}{
		{"no audience", func(c *Config) { c.Audience = "" }},
		{"an issuer without kid", func(c *Config) { c.Roots[0].KID = "" }},
		{"an issuer without key", func(c *Config) { c.Roots[0].Key = Key{} }},
		{"an issuer without tenant", func(c *Config) { c.Roots[0].Tenant = "" }},
		{"two issuers with one kid", func(c *Config) { c.Roots = append(c.Roots, c.Roots[0]) }},
		{"a ceiling with a budget", func(c *Config) {
			c.Roots[0].Ceiling = &Ceiling{Grants: Grants{vault.KindTool: {readFile: {Any: true, Budgets: &Budgets{Calls: Limit(1)}}}}}
		}},
		{"a ceiling that does not compile", func(c *Config) {
			c.Roots[0].Ceiling = &Ceiling{Grants: Grants{vault.KindTool: {readFile: arg("/a", Constraint{})}}}
		}},
		{"a session key that is an issuer's", func(c *Config) { c.SessionKey = seeded("issuer") }},
	} {
		w := newWorld(t)
		tt.edit(&w.cfg)
		if _, err := New(w.cfg); err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}

func TestParentDigestIsOfTheWholeMessage(t *testing.T) {
	w := newWorld(t)
	c := w.attenuate(w.mint(w.root(Rule{Any: true})), Link{}, w.agent)
	if c.links[1].Parent != sha256.Sum256(c.links[0].raw) {
		t.Error("parent is another digest")
	}
	want := sha256.Sum256(slices.Concat([]byte("vault/link/v1"), c.links[1].protected, c.links[1].payload))
	if c.IDs()[1] != want {
		t.Error("link id is another digest")
	}
}
