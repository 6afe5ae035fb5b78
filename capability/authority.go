package capability

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pilox/vault"
)

// A RootIssuer is a key that may sign roots. Keys rotate by overlap: list the new
// one beside the old one until the last chain of the old one has expired.
type RootIssuer struct {
	KID       string       // key id that roots name
	Key       Key          //
	Tenant    vault.Tenant // the only tenant it may mint for
	NotBefore time.Time    // its chains count from then on; zero: always
	NotAfter  time.Time    // its chains count until then; zero: always
	Ceiling   *Ceiling     // what its chains can allow at most; nil: no ceiling
	// Own says that this gateway holds the private key. Only own issuers bind to
	// holders without a key and sign children for them; false: they are refused.
	Own bool
}

// inUse reports whether chains of the issuer count now.
func (is *RootIssuer) inUse(now time.Time) bool {
	return (is.NotBefore.IsZero() || !now.Before(is.NotBefore)) && (is.NotAfter.IsZero() || now.Before(is.NotAfter))
}

// A Ceiling restricts every chain of an issuer as if it were a link before the
// root. Its rules may use "*" and Any; they declare no budgets.
type Ceiling struct {
	Grants    Grants        // nil allows nothing
	MinGrade  vault.Grade   // zero: no demand
	MayRead   []string      // nil: no restriction, empty: nothing
	MaySendTo []string      // nil: no restriction, empty: nothing
	Life      time.Duration // longest time from not-before to expiry; zero: no limit
}

func (c *Ceiling) check() error {
	if c == nil {
		return nil
	}
	for kind, targets := range c.Grants {
		for t, r := range targets {
			if r.Budgets != nil {
				return fmt.Errorf("ceiling: %s %s declares a budget", kind, t.Name)
			}
		}
	}
	return c.Grants.check(true)
}

// An authority is a chain whose signatures were verified, compiled. It is shared
// by all calls under the chain.
type authority struct {
	chain  Chain
	issuer *RootIssuer
	grant  vault.Grant // everything that does not depend on the target
	holder Holder
	jkt    vault.Digest // RFC 7638 thumbprint of the holder's key; zero if it has none
	key    vault.Digest // SHA-256 of the chain with signatures

	issued, notBefore, expires time.Time
	layers                     []layer
	engines                    *Engines
	caveats                    []caveat

	subject subject
	used    atomic.Bool // since the cache last made room

	// revoked is one more than the epoch of the revocations that subject was held
	// against, times two, plus one if it was revoked.
	revoked atomic.Uint64

	mu      sync.RWMutex
	targets map[callTarget]*target // guarded by mu
}

type callTarget struct {
	kind vault.Kind
	vault.Target
}

// maxTargets bounds the compiled targets of one chain. A wildcard lets a caller
// choose names; beyond this many they are compiled for each call.
const maxTargets = 512

// A layer is one link, or the issuer's ceiling, as far as targets go.
type layer struct {
	id       string // hex link id, for counters
	ceiling  bool
	inherits bool // no grants of its own
	grants   Grants
	budgets  *Budgets
}

// A target is what the chain says of one kind and target.
type target struct {
	grant    vault.Grant // with the debits that every call has
	checks   []layerCheck
	variable []meter // debits that depend on the arguments
	code     vault.Code
	cause    error // of code, for our log
}

type layerCheck struct {
	args *object
	code vault.Code
	link int // -1 for the issuer's ceiling
}

// A meter takes its amount from the arguments. A sum has arg, bytes have not.
type meter struct {
	counter, unit string
	limit         int64
	arg           string
	unitArg, want string // the argument that must be want in canonical JSON
}

// trust is what chains are held against.
type trust struct {
	issuers  []RootIssuer
	audience string
	engines  *Engines
	seen     *signatures // required
}

func (t *trust) issuer(kid []byte) *RootIssuer {
	for i := range t.issuers {
		if t.issuers[i].KID == string(kid) { // never empty
			return &t.issuers[i]
		}
	}
	return nil
}

var errIssuer = errors.New("no such issuer")

// compile verifies the signatures of a chain and compiles it. It looks at no
// clock. Every error is a *vault.Denial.
func (t *trust) compile(raw []byte) (*authority, error) {
	messages, err := frame(raw)
	if err != nil {
		return nil, vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	// An unknown issuer costs no signature and no decoding.
	issuer := t.issuer(messages[0].kid)
	if issuer == nil {
		return nil, vault.NewDenial(vault.CodeCapabilityIssuer, "", errIssuer)
	}
	a := &authority{chain: Chain{raw: raw}, issuer: issuer, key: sha256.Sum256(raw)}
	if err := t.read(a, messages); err != nil {
		return nil, err
	}
	if err := a.bind(t); err != nil {
		return nil, err
	}
	return a, nil
}

// maxAhead is how many bytes are decoded before the signatures over them are
// verified: that of a usual chain, and about two verifications' worth at worst.
const maxAhead = 2 << 10

// read decodes the links of a chain and verifies their signatures. Nothing is
// decoded before the root is verified, so who has no chain of an issuer costs one
// verification and no more. Further links are decoded a little ahead: that gives the
// keys, and with them what can be verified at the same time.
//
// What it returns is what it would if it went link by link: the first thing wrong.
func (t *trust) read(a *authority, messages []message) error {
	a.chain.links = make([]signedLink, 0, len(messages))
	claims := make([]claim, 0, len(messages)) // not verified yet
	ahead := 0
	settle := func() error {
		if i := t.seen.wrong(claims); i >= 0 {
			return vault.NewDenial(vault.CodeCapabilitySignature, "", fmt.Errorf("link %d: wrong signature", claims[i].link))
		}
		claims, ahead = claims[:0], 0
		return nil
	}
	for i := range messages {
		key, err := a.issuer.Key, error(nil)
		if i > 0 {
			key, err = t.signer(&a.chain, &messages[i])
		}
		if err != nil {
			if err := settle(); err != nil {
				return err
			}
			return vault.NewDenial(vault.CodeCapabilitySignature, "", fmt.Errorf("link %d: %w", i, err))
		}
		claims = append(claims, claim{i, key, &messages[i]})
		if ahead += len(messages[i].raw); i == 0 || ahead > maxAhead {
			if err := settle(); err != nil {
				return err
			}
		}
		if err := a.chain.decode(messages[i]); err != nil {
			if err := settle(); err != nil {
				return err
			}
			return vault.NewDenial(vault.CodeCapabilityMalformed, "", fmt.Errorf("link %d: %w", i, err))
		}
	}
	return settle()
}

// signer returns the key that must have signed the next link of c.
func (t *trust) signer(c *Chain, next *message) (Key, error) {
	if h := c.holder(); !h.Key.IsZero() {
		return h.Key, nil
	}
	if is := t.issuer(next.kid); is != nil && is.Own && is.Tenant == c.links[0].Tenant {
		return is.Key, nil
	}
	return Key{}, fmt.Errorf("issuer %q is not ours", next.kid)
}

// bind computes the meet of the links that does not depend on a target.
func (a *authority) bind(t *trust) error {
	root := &a.chain.links[0]
	if root.Tenant != a.issuer.Tenant {
		return vault.NewDenial(vault.CodeCapabilityIssuer, "", fmt.Errorf("issuer %q does not mint for tenant %q", a.issuer.KID, root.Tenant))
	}
	if root.Audience != t.audience {
		return vault.NewDenial(vault.CodeCapabilityAudience, "", fmt.Errorf("audience %q", root.Audience))
	}
	a.holder = a.chain.Holder()
	a.jkt = a.holder.Key.JWKThumbprint()
	for _, l := range a.chain.links {
		if len(l.kid) == 0 || l.Holder == nil || !l.Holder.Key.IsZero() {
			continue
		}
		if is := t.issuer(l.kid); is == nil || !is.Own {
			return vault.NewDenial(vault.CodeCapabilityIssuer, "", fmt.Errorf("issuer %q binds to %s and is not ours", l.kid, l.Holder))
		}
	}
	a.issued, a.notBefore, a.expires = root.Issued.Time(), root.NotBefore.Time(), root.Expires.Time()
	a.grant = vault.Grant{
		Chain: a.key, Links: a.chain.IDs(), Issuer: a.issuer.KID, Issued: a.issued, Tenant: root.Tenant, Task: root.Task.ID, Agent: a.chain.agent(),
		Principal: root.Principal, Purpose: root.Task.Purpose, Inputs: root.Task.Inputs,
	}
	var err error
	a.engines = t.engines
	if a.caveats, err = t.engines.compileCaveats(&a.chain); err != nil {
		return vault.NewDenial(vault.CodeCapabilityCaveat, "", err)
	}
	g := &a.grant
	g.Leaf = g.Links[len(g.Links)-1]
	g.MayRead, g.MaySendTo = []string{}, []string{}
	for i := range a.chain.links {
		l := &a.chain.links[i]
		if e := l.Expires.Time(); l.Expires != 0 && e.Before(a.expires) {
			a.expires = e
		}
		if l.Holder != nil && !l.Holder.Key.IsZero() {
			g.Holders = append(g.Holders, l.Holder.Key.Thumbprint())
		}
		if l.Agent != "" {
			g.Agents = append(g.Agents, l.Agent)
		}
		g.MinGrade = max(g.MinGrade, l.MinGrade)
		if r, ok := l.SignAt.risk(); ok && (!g.MustSign || g.SignAt.AtLeast(r)) {
			g.MustSign, g.SignAt = true, r
		}
		for _, p := range l.ThirdParty {
			if p.Audience != t.audience {
				return vault.NewDenial(vault.CodeCapabilityCaveat, "", fmt.Errorf("link %d: group %q answers to %q, not to this gateway", i, p.Group, p.Audience))
			}
			g.Ask = append(g.Ask, p.Group)
		}
		if i == 0 {
			g.MayRead, g.MaySendTo = l.MayRead, l.MaySendTo
		} else {
			g.MayRead, g.MaySendTo = meet(g.MayRead, l.MayRead), meet(g.MaySendTo, l.MaySendTo)
		}
	}
	if c := a.issuer.Ceiling; c != nil {
		if c.Life > 0 && a.expires.Sub(a.notBefore) > c.Life {
			return vault.NewDenial(vault.CodeCapabilityIssuer, "", fmt.Errorf("lives longer than %v", c.Life))
		}
		g.MinGrade = max(g.MinGrade, c.MinGrade)
		g.MayRead, g.MaySendTo = meet(g.MayRead, c.MayRead), meet(g.MaySendTo, c.MaySendTo)
		a.layers = append(a.layers, layer{ceiling: true, grants: c.Grants})
	}
	g.Expires = a.expires
	a.subject = subjectOf(g)
	for i := range a.chain.links {
		l := &a.chain.links[i]
		a.layers = append(a.layers, layer{
			id: l.id.String(), inherits: l.Grants == nil, grants: l.Grants, budgets: l.Budgets,
		})
	}
	return nil
}

// meet returns the values that are in both sets; a nil limit is no limit.
func meet(set, limit []string) []string {
	if limit == nil {
		return set
	}
	both := []string{}
	for _, s := range set {
		if slices.Contains(limit, s) {
			both = append(both, s)
		}
	}
	return both
}

// target returns what the chain says of kind and t.
func (a *authority) target(kind vault.Kind, t vault.Target) *target {
	k := callTarget{kind, t}
	a.mu.RLock()
	c := a.targets[k]
	a.mu.RUnlock()
	if c != nil {
		return c
	}
	c = a.compileTarget(kind, t)
	if c.code != "" {
		return c // names that are not granted are the caller's choice: not kept
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.targets == nil {
		a.targets = make(map[callTarget]*target)
	}
	if len(a.targets) < maxTargets {
		a.targets[k] = c
	}
	return c
}

// rule returns what the layer says of a target, and the name it said it for.
func (l *layer) rule(kind vault.Kind, t vault.Target) (r Rule, name string, ok bool) {
	targets := l.grants[kind]
	if r, ok = targets[t]; ok {
		return r, t.Name, true
	}
	// Only a root or a ceiling can hold this name.
	r, ok = targets[vault.Target{Server: t.Server, Name: anyName}]
	return r, anyName, ok
}

func (a *authority) compileTarget(kind vault.Kind, t vault.Target) *target {
	c := &target{grant: a.grant}
	c.grant.Ask = slices.Clone(a.grant.Ask)
	c.grant.AnyArgs = true
	var chosen choices
	first := len(a.layers) - len(a.chain.links) // one more layer if there is a ceiling
	for i := range a.layers {
		l := &a.layers[i]
		c.budgets(l.id, l.budgets, kind, t, true)
		if l.inherits {
			continue
		}
		code, argCode := vault.CodeCapabilityTarget, vault.CodeCapabilityArgument
		if l.ceiling {
			code, argCode = vault.CodeCapabilityIssuer, vault.CodeCapabilityIssuer
		}
		r, name, ok := l.rule(kind, t)
		if !ok {
			return &target{grant: a.grant, code: code}
		}
		if !r.Definition.IsZero() {
			if d := c.grant.Definition; !d.IsZero() && d != r.Definition {
				return &target{grant: a.grant, code: vault.CodeCapabilityDiffers}
			}
			c.grant.Definition = r.Definition
		}
		c.grant.Ask = append(c.grant.Ask, r.Ask...)
		if r.Args != nil {
			// The shape was checked when the link was decoded. What can still fail is
			// an expression that an engine refuses, or an engine that is not there.
			args, err := compileArgs(r.Args, "", 0, a.enginesOrNone())
			if err != nil {
				return &target{grant: a.grant, code: vault.CodeCapabilityCaveat, cause: fmt.Errorf("link %d: %w", i-first, err)}
			}
			c.grant.AnyArgs = false
			c.checks = append(c.checks, layerCheck{args, argCode, i - first})
			// What a later link names is its holder's choice, and may be an agent's that
			// was talked into it. Only what the root and the ceiling name is a person's.
			if i <= first {
				chosen.add("", r.Args)
			}
		}
		if r.Budgets != nil {
			what := vault.Hash("rule", []byte(kind), t.Server[:], []byte(name))
			c.budgets(l.id+"/rule/"+hex.EncodeToString(what[:16]), r.Budgets, kind, t, false)
		}
	}
	slices.Sort(c.grant.Ask)
	c.grant.Ask = slices.Clip(slices.Compact(c.grant.Ask))
	c.grant.Choices = chosen.list()
	return c
}

// budgets adds the counters that a call of the target debits.
func (c *target) budgets(counter string, b *Budgets, kind vault.Kind, t vault.Target, link bool) {
	if b == nil {
		return
	}
	if b.Calls != nil {
		c.grant.Debits = append(c.grant.Debits, vault.Debit{Counter: counter + "/calls", Amount: 1, Limit: *b.Calls, Unit: "calls", Kept: true})
	}
	if b.BytesOut != nil {
		c.variable = append(c.variable, meter{counter: counter + "/bytes_out", unit: "bytes", limit: *b.BytesOut})
		if kind == vault.KindEgress {
			c.code = vault.CodeCapabilityBudget // what leaves is not in the arguments
		}
	}
	for _, d := range []struct {
		limit *int64
		unit  string
	}{{b.Recipients, vault.UnitRecipients}, {b.Hosts, vault.UnitHosts}, {b.Wall, vault.UnitWall}} {
		if d.limit != nil {
			c.grant.Debits = append(c.grant.Debits, vault.Debit{Counter: counter + "/" + d.unit, Limit: *d.limit, Unit: d.unit})
		}
	}
	for i, s := range b.Sums {
		if link && (s.Kind != kind || s.Server != t.Server || s.Name != t.Name) {
			continue
		}
		m := meter{counter: counter + "/sum/" + strconv.Itoa(i), unit: s.Unit + "·10^-6", limit: int64(s.Limit), arg: s.Arg}
		if s.UnitArg != "" {
			m.unitArg, m.want = s.UnitArg, string(vault.AppendQuoted(nil, s.Unit))
		}
		c.variable = append(c.variable, m)
	}
}

// amount returns what a call with args takes from the counter, or the pointer of
// the argument that does not say.
func (m *meter) amount(args vault.Args) (n int64, code vault.Code, bad string) {
	if m.arg == "" {
		n = int64(len(args.String()))
	} else {
		d, ok := decimalOf(args.At(m.arg))
		if !ok || d < 0 {
			return 0, vault.CodeCapabilityArgument, m.arg
		}
		if m.unitArg != "" && args.At(m.unitArg).Raw() != m.want {
			return 0, vault.CodeCapabilityArgument, m.unitArg
		}
		n = int64(d)
	}
	if n > m.limit {
		return 0, vault.CodeCapabilityBudget, m.arg
	}
	return n, "", ""
}

// enginesOrNone returns engines that refuse everything if none are configured.
func (a *authority) enginesOrNone() *Engines {
	if a.engines == nil {
		return new(Engines)
	}
	return a.engines
}

// authorise holds a call against the compiled target.
func (a *authority) authorise(call *vault.Call, now time.Time) (vault.Grant, *vault.Denial) {
	t := a.target(call.Kind, call.Target)
	if t.code != "" {
		return t.grant, vault.NewDenial(t.code, "", t.cause)
	}
	root := call.Args.Root()
	for _, c := range t.checks {
		if bad, ok := c.args.check(root, ""); !ok {
			d := vault.NewDenial(c.code, bad, nil)
			d.Reason.Detail = c.place()
			return t.grant, d
		}
	}
	for i := range a.caveats {
		if d := a.caveats[i].hold(call, now); d != nil {
			return t.grant, d
		}
	}
	for i := range t.grant.Debits {
		if d := &t.grant.Debits[i]; d.Amount > d.Limit {
			return t.grant, vault.NewDenial(vault.CodeCapabilityBudget, "", nil)
		}
	}
	g := t.grant
	if len(t.variable) == 0 {
		return g, nil
	}
	g.Debits = slices.Grow(slices.Clip(g.Debits), len(t.variable))
	for i := range t.variable {
		m := &t.variable[i]
		n, code, bad := m.amount(call.Args)
		if code != "" {
			return t.grant, vault.NewDenial(code, bad, nil)
		}
		g.Debits = append(g.Debits, vault.Debit{Counter: m.counter, Amount: n, Limit: m.limit, Unit: m.unit})
	}
	return g, nil
}

// place says whose constraint it was.
func (c *layerCheck) place() string {
	if c.link < 0 {
		return "the ceiling of the issuer"
	}
	return fmt.Sprintf("a constraint of link %d", c.link)
}

// choices collects, by path, the values that the root itself names. A path that
// has only a pattern (a domain, a directory, a host) has a nil set.
type choices map[string][]string

func (c *choices) add(at string, args Args) {
	for pointer, arg := range args {
		c.addArg(at+pointer, arg)
	}
}

func (c *choices) addArg(at string, arg Arg) {
	if *c == nil {
		*c = make(choices)
	}
	for _, k := range arg.All {
		switch {
		case k.Exact != nil:
			c.narrow(at, []Scalar{*k.Exact})
		case k.OneOf != nil:
			c.narrow(at, k.OneOf)
		case k.EmailDomain != nil, k.SubPath != nil, k.URL != nil, k.HostSuffix != nil:
			if _, ok := (*c)[at]; !ok {
				(*c)[at] = nil
			}
		case k.Each != nil:
			c.addArg(at, *k.Each)
		case k.Object != nil:
			c.add(at, k.Object)
		}
	}
}

func (c *choices) narrow(at string, set []Scalar) {
	raws := []string{}
	for _, s := range set {
		if b, err := s.MarshalJSON(); err == nil {
			raws = append(raws, string(b))
		}
	}
	slices.Sort(raws)
	raws = slices.Compact(raws)
	if old := (*c)[at]; old != nil {
		raws = meet(raws, old)
	}
	(*c)[at] = raws
}

func (c choices) list() []vault.Choice {
	if len(c) == 0 {
		return nil
	}
	list := make([]vault.Choice, 0, len(c))
	for _, at := range slices.Sorted(maps.Keys(c)) {
		list = append(list, vault.Choice{Path: at, Fixed: len(c[at]) == 1})
	}
	return list
}
