package capability

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// chainOf mints a chain of n links whose holders are agent 0 to n-1.
func (w *world) chainOf(n int) (c Chain, holders []ed25519.PrivateKey) {
	w.t.Helper()
	for i := range n {
		holders = append(holders, seeded("agent "+string(rune('0'+i))))
	}
	l := w.root(Rule{Any: true})
	l.Holder = HeldBy(keyOf(w.t, holders[0]))
	c = w.mint(l)
	for i := range n - 1 {
		c = w.attenuate(c, Link{Holder: HeldBy(keyOf(w.t, holders[i+1])), Budgets: &Budgets{Calls: Limit(int64(40 - i))}}, holders[i])
	}
	return c, holders
}

// encodeChain puts messages together.
func encodeChain(links ...[]byte) []byte {
	return append([]byte{majorArray<<5 | byte(len(links))}, bytes.Join(links, nil)...)
}

// forge makes the link i of c anew, changed and signed by key, and drops what follows.
func (w *world) forge(c Chain, i int, key crypto.Signer, change func(*Link)) []byte {
	w.t.Helper()
	l := c.links[i].Link
	change(&l)
	payload, err := det.enc.Marshal(&l)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := signMessage(key, string(c.links[i].kid), typLink, nil, payload)
	if err != nil {
		w.t.Fatal(err)
	}
	var links [][]byte
	for _, before := range c.links[:i] {
		links = append(links, before.raw)
	}
	return encodeChain(append(links, raw)...)
}

// known is how many signatures s remembers.
func (s *signatures) known() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.recent) + len(s.old)
}

// TestForgedLink holds every way to put an unsigned link into a chain against a
// verifier that has seen nothing, one that knows the true chain, and one that was
// shown the forgery before.
func TestForgedLink(t *testing.T) {
	const links = 5
	w := newWorld(t)
	c, holders := w.chainOf(links)
	stranger := seeded("stranger")
	more := func(l *Link) { l.Budgets = &Budgets{Calls: Limit(1_000_000)} }
	flip := func(link int, at func(*signedLink) []byte) []byte {
		raw := c.Bytes()
		part := at(&c.links[link])
		i := bytes.Index(raw, part)
		raw[i+len(part)-1] ^= 1
		return raw
	}
	forged := func(raw []byte, i int) claim {
		messages, err := frame(raw)
		if err != nil {
			t.Fatal(err)
		}
		key := keyOf(t, w.issuer)
		if i > 0 {
			key = keyOf(t, holders[i-1])
		}
		return claim{i, key, &messages[i]}
	}
	for i := range links {
		for _, tt := range []struct {
			name string
			raw  []byte
		}{
			{"another signature", flip(i, func(l *signedLink) []byte { return l.signature })},
			{"more of a budget under the old signature", func() []byte {
				raw := w.forge(c, i, stranger, more)
				return append(raw[:len(raw)-sigBytes], c.links[i].signature...)
			}()},
			{"more of a budget, signed by a stranger", w.forge(c, i, stranger, more)},
			{"more of a budget, signed by its own holder", w.forge(c, i, holders[i], more)},
			{"nothing changed, signed by a stranger", w.forge(c, i, stranger, func(*Link) {})},
		} {
			for _, v := range []struct {
				name  string
				setup func(*Verifier)
			}{
				{"a fresh verifier", func(*Verifier) {}},
				{"one that knows the chain", func(v *Verifier) {
					if _, err := v.authority(c.raw); err != nil {
						t.Fatal(err)
					}
				}},
				{"one that was shown the forgery often", func(v *Verifier) {
					for range 3 {
						_, _ = v.authority(tt.raw)
					}
				}},
			} {
				fresh := w.verifier()
				v.setup(fresh)
				if _, err := fresh.authority(tt.raw); code(err) != vault.CodeCapabilitySignature {
					t.Errorf("link %d, %s, %s: %v", i, tt.name, v.name, err)
				}
				if fresh.trust.seen.seen(forged(tt.raw, i).digest()) {
					t.Errorf("link %d, %s, %s: the forgery is remembered", i, tt.name, v.name)
				}
				if _, err := fresh.authority(c.raw); err != nil {
					t.Errorf("link %d, %s, %s: the true chain afterwards: %v", i, tt.name, v.name, err)
				}
			}
		}
	}
}

// What was seen is that one key signed these bytes, nothing about where they stand.
func TestSeenLinkElsewhere(t *testing.T) {
	w := newWorld(t)
	c, holders := w.chainOf(3)
	wide := w.root(Rule{Any: true})
	wide.Holder, wide.Budgets.Calls = HeldBy(keyOf(t, holders[0])), Limit(1_000_000)
	rich := w.mint(wide)
	v := w.verifier()
	for _, seen := range []Chain{c, rich} {
		if _, err := v.authority(seen.raw); err != nil {
			t.Fatal(err)
		}
	}
	link := func(i int) []byte { return c.links[i].raw }
	for _, tt := range []struct {
		name string
		raw  []byte
		want vault.Code
	}{
		{"on another root of the same holder", encodeChain(rich.links[0].raw, link(1)), vault.CodeCapabilityMalformed},
		{"one place further up, whose signer was another", encodeChain(link(0), link(2)), vault.CodeCapabilitySignature},
		{"twice, the second time under its own holder", encodeChain(link(0), link(1), link(1)), vault.CodeCapabilitySignature},
		{"as a root", encodeChain(link(1)), vault.CodeCapabilityIssuer},
	} {
		if _, err := v.authority(tt.raw); code(err) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	good := claim{1, keyOf(t, holders[0]), &c.links[1].message}
	other := claim{1, keyOf(t, holders[1]), &c.links[1].message}
	if v.trust.seen.wrong([]claim{good}) != -1 || v.trust.seen.wrong([]claim{other}) != 0 || v.trust.seen.wrong([]claim{good, other, good}) != 1 {
		t.Error("a signature counts for another key")
	}
}

// A link that was seen saves its verification and nothing else.
func TestSeenLinksEndLikeOthers(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*world, Chain)
		want vault.Code
	}{
		{"nothing happens", func(*world, Chain) {}, ""},
		{"the root is revoked", func(w *world, c Chain) { revoke(Revocation{Link: c.IDs()[0]})(w, nil) }, vault.CodeCapabilityRevoked},
		{"the link before is revoked", func(w *world, c Chain) { revoke(Revocation{Link: c.IDs()[1]})(w, nil) }, vault.CodeCapabilityRevoked},
		{"the task is revoked", func(w *world, _ Chain) { revoke(Revocation{Task: testTask})(w, nil) }, vault.CodeCapabilityRevoked},
		{"the issuer is revoked", func(w *world, _ Chain) { revoke(Revocation{Issuer: "k1"})(w, nil) }, vault.CodeCapabilityRevoked},
		{"everything is revoked", func(w *world, _ Chain) { revoke(Revocation{Everything: true, At: testStart})(w, nil) }, vault.CodeCapabilityRevoked},
		{"time passes", func(w *world, _ Chain) { w.clock = w.clock.Add(time.Hour) }, vault.CodeCapabilityExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			c, holders := w.chainOf(3)
			v := w.verifier()
			if _, err := v.authority(c.raw); err != nil {
				t.Fatal(err)
			}
			next := w.attenuate(c, Link{Budgets: &Budgets{Calls: Limit(1)}}, holders[2]) // not seen
			tt.do(w, c)
			if _, err := w.verify(v, next, holders[2], newCall(`{}`)); code(err) != tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestWhatAForgeryCosts bounds the work that who cannot sign makes: the verifications
// up to the first wrong link, and no decoding of what is large before its signature.
func TestWhatAForgeryCosts(t *testing.T) {
	w := newWorld(t)
	c, holders := w.chainOf(8)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // else what runs beside it may be verified too
	for i := range 8 {
		raw := c.Bytes()
		raw[bytes.Index(raw, c.links[i].signature)] ^= 1
		v := w.verifier()
		if _, err := v.authority(raw); code(err) != vault.CodeCapabilitySignature {
			t.Fatal(err)
		}
		if n := v.trust.seen.known(); n != i {
			t.Errorf("link %d is wrong, and %d others were verified", i, n)
		}
	}
	for _, garbage := range [][]byte{c.raw[:len(c.raw)-1], append(c.Bytes(), 0), []byte("garbage"), {0x81}, nil} {
		v := w.verifier()
		if _, err := v.authority(garbage); code(err) == "" || v.trust.seen.known() != 0 {
			t.Errorf("garbage of %d bytes: %v, and %d links verified", len(garbage), err, v.trust.seen.known())
		}
	}
	hosts := func(n int) func(*Link) {
		return func(l *Link) {
			for i := range n {
				l.MaySendTo = append(l.MaySendTo, "host-"+strconv.Itoa(i)+".example.com")
			}
		}
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		most float64
	}{
		{"a root", w.forge(c, 0, seeded("stranger"), hosts(50)), 25},
		{"a child", w.forge(c, 1, seeded("stranger"), hosts(500)), 250},
	} {
		v := w.verifier()
		n := testing.AllocsPerRun(10, func() {
			if _, err := v.trust.compile(tt.raw); code(err) != vault.CodeCapabilitySignature {
				t.Error(err)
			}
		})
		if n > tt.most {
			t.Errorf("%s that nobody signed, of %d bytes, is decoded with %.0f allocations", tt.name, len(tt.raw), n)
		}
	}
	if signed := w.forge(c, 1, holders[0], hosts(500)); testing.AllocsPerRun(1, func() { _, _ = w.verifier().trust.compile(signed) }) < 500 {
		t.Error("decoding does not show in the allocations")
	}
}

// inOrder is what verifying a chain means, without a memory and one link after the
// other.
func inOrder(t *trust, raw []byte) vault.Code {
	messages, err := frame(raw)
	if err != nil {
		return vault.CodeCapabilityMalformed
	}
	issuer := t.issuer(messages[0].kid)
	if issuer == nil {
		return vault.CodeCapabilityIssuer
	}
	a := &authority{chain: Chain{raw: raw}, issuer: issuer, key: sha256.Sum256(raw)}
	for i := range messages {
		key := issuer.Key
		if i > 0 {
			if key, err = t.signer(&a.chain, &messages[i]); err != nil {
				return vault.CodeCapabilitySignature
			}
		}
		if !messages[i].verify(key, typLink, nil) {
			return vault.CodeCapabilitySignature
		}
		if err := a.chain.decode(messages[i]); err != nil {
			return vault.CodeCapabilityMalformed
		}
	}
	return code(a.bind(t))
}

// TestSameAsInOrder changes every byte of a chain, and links that a holder signed
// though nobody would accept them, and wants the answer of inOrder: of a verifier that
// has seen nothing, and of one that has seen everything.
func TestSameAsInOrder(t *testing.T) {
	w := newWorld(t)
	c, holders := w.chainOf(4)
	chains := [][]byte{c.raw}
	for i := range c.raw {
		raw := c.Bytes()
		raw[i] ^= byte(1 + i%255)
		chains = append(chains, raw)
	}
	for i := 1; i < 4; i++ {
		for _, change := range []func(*Link){
			func(l *Link) { l.Parent[0] ^= 1 },
			func(l *Link) { l.Tenant = "evil" },
			func(l *Link) { l.Depth = Depth(99) },
			func(l *Link) { l.Holder = &Holder{Channel: "ch-1"} },
			func(l *Link) { l.Task = &Task{ID: testTask, Purpose: "test", Inputs: string(make([]byte, maxAhead))} },
		} {
			bad := w.forge(c, i, holders[i-1], change)
			chains = append(chains, bad)
			for j := i + 1; j < 4; j++ { // what follows is of the true chain
				bad = append(slices.Clone(bad), c.links[j].raw...)
				bad[0]++
				chains = append(chains, bad)
			}
		}
	}
	warm := w.verifier()
	if _, err := warm.authority(c.raw); err != nil {
		t.Fatal(err)
	}
	codes := map[vault.Code]int{}
	for n, raw := range chains {
		want := inOrder(&warm.trust, raw)
		codes[want]++
		fresh := w.verifier()
		for name, v := range map[string]*Verifier{"fresh": fresh, "warm": warm} {
			if _, err := v.trust.compile(raw); code(err) != want {
				t.Errorf("chain %d at a %s verifier: %v, want %q", n, name, err, want)
			}
		}
	}
	if codes[""] != 1 || codes[vault.CodeCapabilitySignature] < 100 || codes[vault.CodeCapabilityMalformed] < 20 {
		t.Errorf("the chains end in %v", codes)
	}
}

func TestSignaturesAreBounded(t *testing.T) {
	s := new(signatures)
	first := vault.Digest{0xff}
	s.remember(first)
	for i := range 5 * maxSignatures {
		s.remember(vault.Digest{byte(i), byte(i >> 8), byte(i >> 16), 1})
		if i%(maxSignatures/2) == 0 && !s.seen(first) {
			t.Fatal("what is used is forgotten")
		}
	}
	if n := s.known(); n > 2*maxSignatures {
		t.Errorf("%d remembered, at most %d", n, 2*maxSignatures)
	}
	if s.seen(vault.Digest{0, 0, 0, 1}) {
		t.Error("what is not used is kept")
	}
}

// Chains that share links are verified at the same time; run with -race.
func TestSignaturesAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	c, holders := w.chainOf(6)
	raw := [][]byte{c.raw, c.Bytes()}
	raw[1][len(raw[1])-1] ^= 1
	for i := range 6 {
		raw = append(raw, w.attenuate(c, Link{Budgets: &Budgets{Calls: Limit(int64(i))}}, holders[5]).raw)
	}
	v := w.verifier()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range raw {
				n := (i + j) % len(raw)
				if _, err := v.trust.compile(raw[n]); (err == nil) != (n != 1) {
					t.Errorf("chain %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
}
