package daemon_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// A cluster is what TestProofs steals from: a daemon with all its doors, a second
// daemon of another cluster with the same keys, and one server behind both.
type cluster struct {
	r, cousin *rig
	ca        *authority
	up        *upstream
	server    string // id of the upstream's registration
}

// A stolenCall is all that one call of the rightful caller showed.
type stolenCall struct {
	token  string
	header http.Header
	id     string
	args   string
}

func argsOf(id string) string { return `{"id":"` + id + `"}` }

// A theft is a way to use a stolen call, or its token, from somewhere else.
type theft struct {
	name string
	do   func(t *testing.T, c stolenCall) (string, error)
	want vault.Code // zero: proof
	cut  bool       // the connection ends before there is an answer
}

// check checks what the thief got.
func (th theft) check(t *testing.T, body string, err error) {
	t.Helper()
	want := th.want
	if want == "" {
		want = vault.CodeProof
	}
	if th.cut != (err != nil) || err == nil && (!strings.Contains(body, string(want)) || strings.Contains(body, "did act")) {
		t.Errorf("%s, %v; want %s", body, err, want)
	}
}

// ways lists the doors of the daemon, with a fresh connection where that matters.
func (c *cluster) ways() map[string]func(*testing.T) way {
	return map[string]func(*testing.T) way{
		"over loopback":                   func(*testing.T) way { return c.r.overLoopback() },
		"over the socket":                 func(*testing.T) way { return c.r.overUnix() },
		"over TLS":                        func(t *testing.T) way { return c.r.overTLS(t, c.ca, nil) },
		"over TLS with an SVID":           func(t *testing.T) way { return c.r.overTLS(t, c.ca, c.ca.svid(svidOfOther, time.Hour)) },
		"as another user over the socket": func(t *testing.T) way { return c.r.overUnixAs(t, 65534) },
	}
}

// elsewhere lists what any token is worth at other doors than its own.
func (c *cluster) elsewhere(own string) []theft {
	var out []theft
	for name, w := range c.ways() {
		if name != own {
			out = append(out, theft{name: "the token " + name, do: func(t *testing.T, s stolenCall) (string, error) {
				return w(t).send(t, bearerHeader(s.token), "stolen-"+s.id, s.args)
			}})
			out = append(out, theft{name: "all of the call " + name, do: func(t *testing.T, s stolenCall) (string, error) {
				return w(t).send(t, s.header, s.id, s.args)
			}})
		}
	}
	for name, w := range map[string]func(t *testing.T) way{
		"over loopback":   func(*testing.T) way { return c.cousin.overLoopback() },
		"over the socket": func(*testing.T) way { return c.cousin.overUnix() },
		"over TLS":        func(t *testing.T) way { return c.cousin.overTLS(t, c.ca, c.ca.svid(svidOfAgent, time.Hour)) },
	} {
		out = append(out, theft{name: "the token at another cluster " + name, want: vault.CodeCapabilityAudience, do: func(t *testing.T, s stolenCall) (string, error) {
			return w(t).send(t, bearerHeader(s.token), s.id, s.args)
		}})
	}
	slices.SortFunc(out, func(a, b theft) int { return strings.Compare(a.name, b.name) })
	return out
}

// TestProofs takes everything that a call showed, for each thing that a capability can
// be bound to, and uses it with another key, in another session, from another process
// and at another daemon. None of it runs, none of it uses up what the rightful caller
// needs, and the records name the proof.
func TestProofs(t *testing.T) {
	ca := newAuthority(t)
	c := &cluster{ca: ca, up: newUpstream(t, "act")}
	c.r = startDaemon(t, ca.listen)
	c.server = c.r.addURL("up", c.up.url).ID
	keys := copiedKeys(t, c.r)
	c.cousin = startDaemon(t, func(conf *daemon.Config) { keys(conf); ca.listen(conf) })
	if id := c.cousin.addURL("up", c.up.url).ID; id != c.server {
		t.Fatalf("the server has two ids, %s and %s", c.server, id)
	}
	for _, tt := range []struct {
		name  string
		proof vault.ProofKind
		open  func(*testing.T, *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft)
	}{
		{"session MAC", vault.ProofSession, sessionProof(false, false)},
		{"session MAC on a TLS connection", vault.ProofSession, sessionProof(false, true)},
		{"Ed25519 signature", vault.ProofSignature, sessionProof(true, false)},
		{"ES256 signature", vault.ProofSignature, es256Proof},
		{"DPoP", vault.ProofDPoP, dpopProof},
		{"X.509-SVID", vault.ProofSVID, svidProof},
		{"peer credentials", vault.ProofPeer, peerProof},
		{"stdio shim", vault.ProofPeer, shimProof},
		{"sandbox channel", vault.ProofChannel, channelProof},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task, call, thefts := tt.open(t, c)
			good := func(id string) stolenCall {
				t.Helper()
				s, body := call(t, id)
				if !strings.Contains(body, "did act "+id) || c.up.ran(id) != 1 {
					t.Fatalf("the rightful caller gets %s", body)
				}
				return s
			}
			name := strings.ReplaceAll(tt.name, " ", "-")
			stolen := good(name + "-1")
			before := len(c.up.effects())
			for _, th := range thefts {
				t.Run(th.name, func(t *testing.T) {
					body, err := th.do(t, stolen)
					th.check(t, body, err)
					if n := len(c.up.effects()); n != before {
						t.Errorf("%d stolen calls ran", n-before)
						before = n
					}
				})
			}
			good(name + "-2")
			intents := 0
			for _, rec := range c.r.records(task.ID) {
				if rec.Leaf.Phase != string(vault.PhaseIntent) {
					continue
				}
				if intents++; rec.Leaf.Proof != string(tt.proof) {
					t.Errorf("record %d says proof %q, want %q", rec.Leaf.Index, rec.Leaf.Proof, tt.proof)
				}
				if tt.proof == vault.ProofPeer && !rec.Leaf.SameUID {
					t.Errorf("record %d does not say that the caller has the daemon's uid", rec.Leaf.Index)
				}
			}
			if intents != 2 {
				t.Errorf("%d calls on record, want the two of the rightful caller", intents)
			}
		})
	}
	for _, r := range []*rig{c.r, c.cousin} {
		r.wantSound()
	}
}

// sessionProof is a key that proves calls in a session, by MAC or signature.
func sessionProof(signed, overTLS bool) func(*testing.T, *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	return func(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
		holder := newHolder(t)
		task := c.r.mintBound(taskFor(t.Name(), 9, "up.act: {args: any}"), holder.bind())
		return keyProof(t, c, task, holder.key, signed, overTLS)
	}
}

func es256Proof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := capability.KeyOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return keyProof(t, c, c.r.mintBound(taskFor(t.Name(), 9, "up.act: {args: any}"), public.String()), key, true, false)
}

func keyProof(t *testing.T, c *cluster, task admin.Task, key crypto.Signer, signed, overTLS bool) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	own, gateway := "over loopback", c.r.status().SessionKey
	w := c.r.overLoopback()
	if overTLS {
		own, w = "over TLS", c.r.overTLS(t, c.ca, nil)
	}
	s, err := w.session(t, gateway, key, task.Token)
	if err != nil {
		t.Fatal(err)
	}
	prove := func(t *testing.T, s session, id, args string) http.Header {
		if signed {
			return s.signed(t, c.server, id, args)
		}
		return s.sign(t, c.server, id, "act", args)
	}
	call := func(t *testing.T, id string) (stolenCall, string) {
		h := prove(t, s, id, argsOf(id))
		body, err := w.send(t, h, id, argsOf(id))
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{task.Token, h, id, argsOf(id)}, body
	}
	// The thief has a key, a task and a session of its own.
	thief := newHolder(t)
	other := c.r.mintBound(taskFor(t.Name()+" of the thief", 9, "up.act: {args: any}"), thief.bind())
	proofs := []string{"Vault-Mac", "Vault-Signature"}
	// A session on one TLS connection is worth nothing on the next, and the elsewhere
	// of TLS opens another one.
	thefts := c.elsewhere(map[bool]string{false: own}[overTLS])
	thefts = append(thefts, []theft{
		{name: "the call again", do: func(t *testing.T, st stolenCall) (string, error) { return w.send(t, st.header, st.id, st.args) }},
		{name: "the call again under another id", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, st.header, "stolen-"+st.id, st.args)
		}},
		{name: "the proof for other arguments", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, st.header, "stolen-"+st.id, argsOf("stolen"))
		}},
		{name: "the proof under the next sequence number", do: func(t *testing.T, st stolenCall) (string, error) {
			h := st.header.Clone()
			h.Set("Vault-Seq", "99")
			return w.send(t, h, st.id, st.args)
		}},
		{name: "the session without a proof", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, without(st.header, proofs...), "stolen-"+st.id, st.args)
		}},
		{name: "the token and nothing else", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, bearerHeader(st.token), "stolen-"+st.id, st.args)
		}},
		{name: "the token in the thief's session", do: func(t *testing.T, st stolenCall) (string, error) {
			mine, err := c.r.overLoopback().session(t, gateway, thief.key, other.Token)
			if err != nil {
				t.Fatal(err)
			}
			h := prove(t, mine, "stolen-"+st.id, st.args)
			h.Set("Authorization", "Bearer "+st.token)
			return c.r.overLoopback().send(t, h, "stolen-"+st.id, st.args)
		}},
		{name: "the thief's proof in the session", do: func(t *testing.T, st stolenCall) (string, error) {
			mine, err := c.r.overLoopback().session(t, gateway, thief.key, other.Token)
			if err != nil {
				t.Fatal(err)
			}
			h := prove(t, mine, "stolen-"+st.id, st.args)
			h.Set("Authorization", "Bearer "+st.token)
			h.Set("Vault-Session", st.header.Get("Vault-Session"))
			h.Set("Vault-Seq", "98")
			return w.send(t, h, "stolen-"+st.id, st.args)
		}},
		{name: "a session of the token opened with another key", do: func(t *testing.T, st stolenCall) (string, error) {
			_, err := c.r.overLoopback().session(t, gateway, thief.key, st.token)
			return fmt.Sprint(err), nil
		}},
		{name: "all of the call at another cluster", want: vault.CodeCapabilityAudience, do: func(t *testing.T, st stolenCall) (string, error) {
			return c.cousin.overLoopback().send(t, st.header, st.id, st.args)
		}},
	}...)
	// A call that was held up on its way is not used yet. It is good on the session's
	// own connection or door only.
	for name, other := range c.ways() {
		if name != own || overTLS {
			thefts = append(thefts, theft{name: "a call that was held up " + name, do: func(t *testing.T, st stolenCall) (string, error) {
				return other(t).send(t, prove(t, s, "stolen-"+st.id, st.args), "stolen-"+st.id, st.args)
			}})
		}
	}
	return task, call, thefts
}

// dpopProof is a key that signs HTTP requests (RFC 9449).
func dpopProof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	client, thief := newDPoPClient(t), newDPoPClient(t)
	public, err := capability.KeyOf(client.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	task := c.r.mintBound(taskFor(t.Name(), 9, "up.act: {args: any}"), public.String())
	w := c.r.overLoopback()
	fresh := func(r *rig) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.addr+"/mcp", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"DPoP " + task.Token}, "Dpop": {client.proof(http.MethodPost, "http://"+r.addr+"/mcp", task.Token)}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.Header.Get("Dpop-Nonce")
	}
	client.nonce = fresh(c.r)
	thief.nonce = client.nonce
	with := func(token, proof string) http.Header {
		return http.Header{"Authorization": {"DPoP " + token}, "Dpop": {proof}}
	}
	call := func(t *testing.T, id string) (stolenCall, string) {
		h := with(task.Token, client.proof(http.MethodPost, w.url+"/mcp", task.Token))
		body, err := w.send(t, h, id, argsOf(id))
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{task.Token, h, id, argsOf(id)}, body
	}
	signedBy := func(k *dpopClient, method, to, token string) func(*testing.T, stolenCall) (string, error) {
		return func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, with(st.token, k.proof(method, to, token)), "stolen-"+st.id, st.args)
		}
	}
	return task, call, append(c.elsewhere("over loopback"), []theft{
		{name: "the call again", do: func(t *testing.T, st stolenCall) (string, error) { return w.send(t, st.header, st.id, st.args) }},
		{name: "the proof for another call", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, st.header, "stolen-"+st.id, argsOf("stolen"))
		}},
		{name: "the token as a bearer's", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, bearerHeader(st.token), "stolen-"+st.id, st.args)
		}},
		{name: "the token without a proof", do: func(t *testing.T, st stolenCall) (string, error) {
			return w.send(t, without(st.header, "Dpop"), "stolen-"+st.id, st.args)
		}},
		{name: "the proof of another key", do: signedBy(thief, http.MethodPost, w.url+"/mcp", task.Token)},
		{name: "a proof for another door", do: signedBy(client, http.MethodPost, "https://"+c.r.status().TLS+"/mcp", task.Token)},
		{name: "a proof for another daemon", do: signedBy(client, http.MethodPost, "http://"+c.cousin.addr+"/mcp", task.Token)},
		{name: "a proof for another method", do: signedBy(client, http.MethodGet, w.url+"/mcp", task.Token)},
		{name: "a proof for another token", do: signedBy(client, http.MethodPost, w.url+"/mcp", "vc1.other")},
		{name: "all of the call at another cluster", do: func(t *testing.T, st stolenCall) (string, error) {
			return c.cousin.overLoopback().send(t, st.header, st.id, st.args)
		}},
		{name: "the key's own proof at another cluster", want: vault.CodeCapabilityAudience, do: func(t *testing.T, st stolenCall) (string, error) {
			there := *client
			there.nonce = fresh(c.cousin)
			return c.cousin.overLoopback().send(t, with(st.token, there.proof(http.MethodPost, "http://"+c.cousin.addr+"/mcp", st.token)), st.id, st.args)
		}},
	}...)
}

// svidProof is a workload that shows its SVID on a TLS connection.
func svidProof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	task := c.r.mintBound(taskFor(t.Name(), 9, "up.act: {args: any}"), svidOfAgent)
	mine := c.ca.svid(svidOfAgent, time.Hour)
	call := func(t *testing.T, id string) (stolenCall, string) {
		h := bearerHeader(task.Token)
		body, err := c.r.overTLS(t, c.ca, mine).send(t, h, id, argsOf(id)) // every call on a connection of its own
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{task.Token, h, id, argsOf(id)}, body
	}
	from := func(cert *tls.Certificate) func(*testing.T, stolenCall) (string, error) {
		return func(t *testing.T, st stolenCall) (string, error) {
			return c.r.overTLS(t, c.ca, cert).send(t, st.header, "stolen-"+st.id, st.args)
		}
	}
	return task, call, append(c.elsewhere(""), []theft{
		{name: "by another workload", do: from(c.ca.svid(svidOfOther, time.Hour))},
		{name: "by a workload whose name begins the same", do: from(c.ca.svid(svidOfAgent+"1", time.Hour))},
		{name: "under an SVID that somebody else signed", cut: true, do: from(newAuthority(t).svid(svidOfAgent, time.Hour))},
		{name: "under an SVID that has expired", cut: true, do: from(c.ca.svid(svidOfAgent, -time.Second))},
		{name: "on a connection that outlives its SVID", do: func(t *testing.T, st stolenCall) (string, error) {
			short := c.ca.svid(svidOfAgent, 1500*time.Millisecond)
			w := c.r.overTLS(t, c.ca, short)
			if body, err := w.send(t, http.Header{}, "none", st.args); err != nil || !strings.Contains(body, string(vault.CodeCapabilityMissing)) {
				t.Fatalf("%s, %v", body, err) // the handshake is over
			}
			time.Sleep(time.Until(short.Leaf.NotAfter) + 10*time.Millisecond)
			return w.send(t, st.header, "stolen-"+st.id, st.args)
		}},
		{name: "at another cluster that trusts the workload", want: vault.CodeCapabilityAudience, do: func(t *testing.T, st stolenCall) (string, error) {
			return c.cousin.overTLS(t, c.ca, mine).send(t, st.header, st.id, st.args)
		}},
	}...)
}

// peerProof is a user on this host. A process of the same user is let in, and every
// record says that it could be any.
func peerProof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	task := c.r.mint(taskFor(t.Name(), 9, "up.act: {args: any}"))
	call := func(t *testing.T, id string) (stolenCall, string) {
		h := bearerHeader(task.Token)
		body, err := c.r.overUnix().send(t, h, id, argsOf(id))
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{task.Token, h, id, argsOf(id)}, body
	}
	return task, call, append(c.elsewhere("over the socket"), theft{
		name: "a token of another user in this one's hands", do: func(t *testing.T, st stolenCall) (string, error) {
			chain, err := capability.ParseText(st.token)
			if err != nil {
				t.Fatal(err)
			}
			root := chain.Links()[0]
			root.Holder = capability.HeldByUID(os.Getuid() + 1)
			theirs, err := capability.Mint(root, c.r.issuer(t))
			if err != nil {
				t.Fatal(err)
			}
			return c.r.overUnix().send(t, bearerHeader(theirs.Text()), "stolen-"+st.id, st.args)
		},
	})
}

// shimProof is what pvault mcp --task starts: a client on standard streams, whose
// token the shim sends over the socket.
func shimProof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	task := c.r.mint(taskFor(t.Name(), 9, "up.act: {args: any}"))
	call := func(t *testing.T, id string) (stolenCall, string) {
		res, err := connect(t, c.r.shim(t, task), "2025-11-25").CallTool(t.Context(), &sdk.CallToolParams{Name: "act", Arguments: map[string]string{"id": id}})
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{task.Token, bearerHeader(task.Token), id, argsOf(id)}, textOf(res)
	}
	return task, call, c.elsewhere("over the socket")
}

// channelProof is a program in a sandbox. It has no token; what is stolen here is the
// chain that the daemon holds for its channel, which only who has the issuer's key can
// make.
func channelProof(t *testing.T, c *cluster) (admin.Task, func(*testing.T, string) (stolenCall, string), []theft) {
	if g := c.r.status().Grade; g != "A" && g != "B" {
		vaulttest.Missing(t, "sandbox", "this host does not give grade B: "+g)
	}
	task := c.r.mint(taskFor(t.Name(), 9, "up.act: {args: any}"))
	pvault := pvaultBinary(t)
	run := func(ctx context.Context, argv ...string) (string, error) {
		var out strings.Builder
		err := c.r.admin.Run(ctx, admin.RunRequest{Token: task.Token, Argv: argv}, func(f admin.Frame) error {
			out.Write(f.Stdout)
			out.Write(f.Stderr)
			return nil
		})
		return out.String(), err
	}
	// A program that stays, so that its channel does.
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _, _ = run(ctx, "sleep", "60") }()
	t.Cleanup(func() { stop(); <-done })
	var id string
	eventually(t, "a program has a channel", func() bool {
		for _, rec := range c.r.records(task.ID) {
			if name, ok := strings.CutPrefix(rec.Fields["note"], "opened "); ok {
				id = name
			}
		}
		return id != ""
	})
	chain, err := capability.ParseText(task.Token)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := capability.Attenuate(chain, capability.Link{Holder: &capability.Holder{Channel: id}, Depth: capability.Depth(0)}, c.r.issuer(t))
	if err != nil {
		t.Fatal(err)
	}
	call := func(t *testing.T, id string) (stolenCall, string) {
		body, err := run(t.Context(), pvault, "call", "up.act", argsOf(id))
		if err != nil {
			t.Fatal(err)
		}
		return stolenCall{bound.Text(), bearerHeader(bound.Text()), id, argsOf(id)}, body
	}
	return task, call, c.elsewhere("")
}

// TestBearerIsTheException: what nothing binds works in any hands on this host, where
// the configuration says so, at no other door, and its records say so.
func TestBearerIsTheException(t *testing.T) {
	ca := newAuthority(t)
	c := &cluster{ca: ca, up: newUpstream(t, "act")}
	c.r = startDaemon(t, func(conf *daemon.Config) { ca.listen(conf); conf.Listen.Bearer = true })
	c.server = c.r.addURL("up", c.up.url).ID
	keys := copiedKeys(t, c.r)
	c.cousin = startDaemon(t, func(conf *daemon.Config) { keys(conf); ca.listen(conf); conf.Listen.Bearer = true })
	c.cousin.addURL("up", c.up.url)
	task := c.r.mintBound(taskFor("be anybody's", 9, "up.act: {args: any}"), "bearer")
	for _, id := range []string{"one", "two"} {
		w := way{url: "http://" + c.r.addr, client: &http.Client{Transport: new(http.Transport)}} // another client each time
		if body, err := w.send(t, bearerHeader(task.Token), id, argsOf(id)); err != nil || !strings.Contains(body, "did act "+id) {
			t.Errorf("%s, %v", body, err)
		}
		w.client.CloseIdleConnections()
	}
	for _, th := range c.elsewhere("over loopback") {
		t.Run(th.name, func(t *testing.T) {
			body, err := th.do(t, stolenCall{task.Token, bearerHeader(task.Token), "three", argsOf("three")})
			th.check(t, body, err)
		})
	}
	if n := c.up.ran("three"); n != 0 {
		t.Errorf("%d calls ran at other doors", n)
	}
	for _, rec := range c.r.records(task.ID) {
		if rec.Leaf.Class == string(vault.ClassCall) && rec.Leaf.Proof != string(vault.ProofBearer) {
			t.Errorf("record %d says proof %q", rec.Leaf.Index, rec.Leaf.Proof)
		}
	}
}
