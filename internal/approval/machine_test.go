package approval

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pilox/vault"
)

// TestMachine drives the state machine with anything an approver, an agent, the
// operator and the clock can do, in any order, beside a model that keeps only what
// was truly signed. After each step: no question is allowed unless for each of its
// groups a present member, who is not the requester, signed a yes for these bytes
// that is still valid, nobody said no, it was shown, and it is unspent and in time.
func TestMachine(t *testing.T) {
	c := newCodec()
	gateway := testKey("gateway")
	people := []string{"key:a", "key:b", "key:c", "agent:1"} // the last is a requester's id
	rapid.Check(t, func(t *rapid.T) {
		w := &world{c: c, au: authorityOf(people, map[string][]string{"g": {"key:a", "key:b"}, "h": {"key:b", "agent:1"}})}
		w.m = newMachine(limits{6, 4, 1 << 20})
		w.now = time.Unix(1_000_000, 0)
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				q := &Question{
					Version: version, ID: fmt.Sprintf("a-%d", len(w.all)), Agent: rapid.SampledFrom([]string{"agent:1", "agent:2"}).Draw(t, "agent"),
					Tool:        rapid.SampledFrom([]string{"x", "y"}).Draw(t, "tool"),
					Groups:      rapid.SampledFrom([][]string{{"g"}, {"h"}, {"g", "h"}, {"default"}, {"none"}}).Draw(t, "groups"),
					RequestedAt: w.now.Unix(), ExpiresAt: w.now.Add(10 * time.Second).Unix(),
				}
				binding, err := c.binding(q)
				if err != nil {
					t.Fatal(err)
				}
				if e := w.m.find(w.now, binding); e != nil {
					if st, _ := e.state(w.au, w.now); st == spent || st == expired {
						t.Fatalf("%s is %s and stands for a new call", e.q.ID, st)
					}
					return
				}
				signed, err := c.sign(q, gateway)
				if err != nil {
					t.Fatal(err)
				}
				e := &entry{q: q, signed: signed, binding: binding}
				if err := w.m.add(w.au, w.now, e); err == nil {
					w.all = append(w.all, &modelled{entry: e})
				}
			},
			"show": func(t *rapid.T) {
				if x := w.pick(t); x != nil && w.m.byID[x.q.ID] != nil {
					x.entry.shown, x.shown = true, true
				}
			},
			"answer": func(t *rapid.T) {
				x := w.pick(t)
				if x == nil {
					return
				}
				who := rapid.SampledFrom(append(slices.Clone(people), "key:stranger")).Draw(t, "who")
				keyOf := rapid.SampledFrom([]string{who, who, who, "key:a", "key:stranger"}).Draw(t, "key")
				effect := rapid.SampledFrom([]Effect{Allow, Allow, Allow, Deny}).Draw(t, "effect")
				until := x.q.ExpiresAt - rapid.Int64Range(0, 8).Draw(t, "shorter")
				of := x
				if other := w.pick(t); rapid.IntRange(0, 4).Draw(t, "mixed up") == 0 {
					of = other // signed for another question
				}
				a, raw := w.sign(t, x.q.ID, of.signed, who, keyOf, effect, until)
				w.answers = append(w.answers, given{a, raw, x, of == x && who == keyOf})
				w.submit(t, len(w.answers)-1)
			},
			"replay": func(t *rapid.T) {
				if len(w.answers) > 0 {
					w.submit(t, rapid.IntRange(0, len(w.answers)-1).Draw(t, "which"))
				}
			},
			"spend": func(t *rapid.T) {
				x := w.pick(t)
				if x == nil {
					return
				}
				if st, _ := x.entry.state(w.au, w.now); st == allowed {
					w.m.spend(x.q.ID)
					x.spent = true
				}
			},
			"time passes": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
				w.m.sweep(w.now)
			},
			"the operator changes groups": func(t *rapid.T) {
				present := rapid.SliceOfDistinct(rapid.SampledFrom(people), rapid.ID[string]).Draw(t, "present")
				groups := map[string][]string{}
				for _, g := range []string{"g", "h"} {
					for _, id := range present {
						if rapid.Bool().Draw(t, g+" has "+id) {
							groups[g] = append(groups[g], id)
						}
					}
				}
				w.au = authorityOf(present, groups)
			},
			"": w.check,
		})
	})
}

// A world is the machine with what is true about it.
type world struct {
	c       codec
	au      *authority
	m       *machine
	now     time.Time
	all     []*modelled
	answers []given
}

type modelled struct {
	*entry
	shown, spent, denied bool
	yes                  []*answer // truly signed and accepted
}

type given struct {
	a    *answer
	raw  []byte
	to   *modelled
	true bool // the approver's own signature on this question
}

func testKey(name string) ed25519.PrivateKey {
	seed := vault.Hash("test-key", []byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func authorityOf(ids []string, groups map[string][]string) *authority {
	var aps []Approver
	for _, id := range ids {
		aps = append(aps, Approver{ID: id, Public: testKey(id).Public().(ed25519.PublicKey)})
	}
	au, err := newAuthority(aps, groups)
	if err != nil {
		panic(err)
	}
	return au
}

func (w *world) pick(t *rapid.T) *modelled {
	if len(w.all) == 0 {
		return nil
	}
	return rapid.SampledFrom(w.all).Draw(t, "question")
}

func (w *world) sign(t *rapid.T, id string, signed []byte, who, keyOf string, e Effect, until int64) (*answer, []byte) {
	enc, err := w.c.enc.Marshal(decision{Effect: string(e), ValidUntil: until, Nonce: [16]byte{byte(len(w.answers))}})
	if err != nil {
		t.Fatal(err)
	}
	ch := challenge(signed, enc)
	raw, err := w.c.enc.Marshal(answer{Question: id, Approver: who, Decision: enc, Signature: ed25519.Sign(testKey(keyOf), append([]byte(answerContext), ch[:]...))})
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.c.parseAnswer(raw)
	if err != nil {
		t.Fatal(err)
	}
	return a, raw
}

func (w *world) submit(t *rapid.T, i int) {
	g := w.answers[i]
	if _, err := w.m.accept(w.au, w.now, g.a, g.raw); err != nil {
		return
	}
	if !g.true {
		t.Fatalf("an answer in the name of %s that it did not sign was accepted", g.a.Approver)
	}
	if g.to.denied || g.to.spent || !g.to.shown {
		t.Fatal("an answer to a closed question was accepted")
	}
	if Effect(g.a.decision.Effect) == Deny {
		g.to.denied = true
	} else {
		g.to.yes = append(g.to.yes, g.a)
	}
}

// check holds the machine against the model.
func (w *world) check(t *rapid.T) {
	live := 0
	for _, x := range w.all {
		st, a := x.entry.state(w.au, w.now)
		if st == open || st == allowed {
			live++
		}
		if st != allowed {
			continue
		}
		if x.denied || x.spent || !x.shown || !w.now.Before(x.q.Expires()) || !w.now.Before(a.Expires) {
			t.Fatalf("allowed, though denied %v, spent %v, shown %v, at %v of %v", x.denied, x.spent, x.shown, w.now, x.q.Expires())
		}
		for _, g := range x.q.Groups {
			ok := slices.ContainsFunc(x.yes, func(v *answer) bool {
				_, present := w.au.keys[v.Approver]
				member := slices.Contains(w.au.groups[g], v.Approver) || g == groupDefault
				return present && member && v.Approver != x.q.Agent && w.now.Before(v.validUntil())
			})
			if !ok {
				t.Fatalf("%s is allowed and nobody of %s said so", x.q.ID, g)
			}
		}
	}
	if live > w.m.limits.open {
		t.Fatalf("%d open questions, at most %d", live, w.m.limits.open)
	}
	held := 0
	for _, e := range w.m.byID {
		held += len(e.signed)
	}
	if held != w.m.bytes {
		t.Fatalf("%d bytes held, counted %d", held, w.m.bytes)
	}
	for _, e := range w.m.byKey {
		if w.m.byID[e.q.ID] != e {
			t.Fatal("a question that is forgotten stands for new calls")
		}
	}
}
