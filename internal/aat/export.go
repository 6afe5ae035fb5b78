package aat

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// What of a capability a token cannot say and [Export] can be told to lose: what the
// gateway counts, labels or chooses itself, whatever the arguments are. What arguments
// may be, who has to agree and who has to sign is never lost.
const (
	LoseBudgets = "budgets" // of calls, bytes, sums, recipients, hosts and time
	LoseLabels  = "labels"  // compartments that may be read, recipients of private data
	LoseSandbox = "sandbox" // least grade
	LosePins    = "pins"    // definitions of tools
)

// Losses are all that [Export] can be told to lose.
var Losses = []string{LoseBudgets, LoseLabels, LoseSandbox, LosePins}

// An Exporter says how a capability becomes a token.
type Exporter struct {
	Issuer   string                      // iss: a URI that names whoever has Key
	Key      crypto.Signer               // Ed25519 or P-256
	Audience string                      // aud; "" means the gateway that the capability is for
	Server   func(vault.ServerID) string // registered name of a server; a tool is called NAME.TOOL
	Only     []string                    // keep only these tools; nil: all, and what is no tool is an error
	Lose     []string                    // of [Losses]
	Life     time.Duration               // zero: 15 minutes; the capability's own end comes first
	Now      time.Time                   // required
}

// defaultLife is short, because a token cannot be taken back.
const defaultLife = 15 * time.Minute

// A MissingError lists what of a capability a token cannot say.
type MissingError struct {
	Missing []string `json:"missing"`
}

func (e *MissingError) Error() string {
	return "an attenuating authorization token cannot say: " + strings.Join(e.Missing, "; ")
}

// Export returns the presentation object of one root token that says what all links of
// the chain say together. It is bound to the chain's holder, which must have a key.
// The error is a [*MissingError] if the token would allow more than the chain does. The
// chain is not verified: who has the key vouches for it. A token cannot be revoked, and
// what a gateway adds beside the chain is not in it: ceilings of issuers, rules, content.
func Export(c capability.Chain, x Exporter) ([]byte, error) {
	issuer, err := url.Parse(x.Issuer)
	if err != nil || !issuer.IsAbs() || strings.HasPrefix(x.Issuer, thumbprintURI) {
		return nil, fmt.Errorf("issuer %q: want a URI", x.Issuer)
	}
	for _, l := range x.Lose {
		if !slices.Contains(Losses, l) {
			return nil, fmt.Errorf("%q cannot be lost: want some of %s", l, strings.Join(Losses, ", "))
		}
	}
	if c.IsZero() {
		return nil, errors.New("no capability")
	}
	links := c.Links()
	holder := c.Holder()
	out := exporting{Exporter: &x}
	if holder.Key.IsZero() {
		out.miss("", "a holder without a key: %s", &holder)
	}
	out.links(links)
	tools := out.tools(links)
	if len(out.missing) > 0 {
		slices.Sort(out.missing)
		return nil, &MissingError{slices.Compact(out.missing)}
	}
	if len(tools) == 0 {
		return nil, errors.New("nothing is left to export")
	}
	life := x.Life
	if life == 0 {
		life = defaultLife
	}
	view := capability.Inspect(c)
	ends := x.Now.Add(min(life, maxLifetime))
	if view.Expires.Before(ends) {
		ends = view.Expires
	}
	if ends.Unix() <= x.Now.Unix() {
		return nil, errors.New("the capability has expired")
	}
	audience := x.Audience
	if audience == "" {
		audience = view.Audience
	}
	depth := min(view.Depth, MaxDepth)
	if out.delegates { // a token does not say who the next holder may be
		depth = 0
	}
	claims := map[string]any{
		"jti": rand.Text(), "iss": x.Issuer, "aud": audience, "iat": x.Now.Unix(), "exp": ends.Unix(),
		"del_depth": 0, "del_max_depth": depth,
		"cnf":                   map[string]any{"jwk": jose.JSONWebKey{Key: holder.Key.Public()}},
		"authorization_details": []any{map[string]any{"type": entryType, "tools": tools}},
	}
	token, err := sign(x.Key, claims)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(map[string][]string{"aat_chain": {token}})
	if err == nil && len(raw) > MaxChain {
		err = fmt.Errorf("token of %d bytes: at most %d", len(raw), MaxChain)
	}
	return raw, err
}

// An exporting collects what is missing.
type exporting struct {
	*Exporter

	missing   []string
	delegates bool // the links say who may come after them
}

func (x *exporting) miss(loss, format string, args ...any) {
	if loss == "" || !slices.Contains(x.Lose, loss) {
		text := fmt.Sprintf(format, args...)
		if loss != "" {
			text = loss + ": " + text
		}
		x.missing = append(x.missing, text)
	}
}

// links looks at what links say apart from their grants.
func (x *exporting) links(links []capability.Link) {
	for i := range links {
		l := &links[i]
		if l.Budgets != nil {
			x.miss(LoseBudgets, "link %d counts", i)
		}
		if i == 0 || l.MayRead != nil || l.MaySendTo != nil {
			x.miss(LoseLabels, "link %d says what may be read and where private data may go", i)
		}
		if l.MinGrade > vault.GradeNone {
			x.miss(LoseSandbox, "link %d wants grade %s", i, l.MinGrade)
		}
		for _, c := range l.Caveats {
			x.miss("", "caveat %s of link %d", c, i)
		}
		for _, p := range l.ThirdParty {
			x.miss("", "approval of every call by %s, link %d", p.Group, i)
		}
		if l.SignAt != "" {
			x.miss("", "a signature per call from risk %s on, link %d", l.SignAt, i)
		}
		if l.NotBefore.Time().After(x.Now) {
			x.miss("", "a begin in the future, %s", l.NotBefore.Time().Format(time.RFC3339))
		}
		x.delegates = x.delegates || l.Delegates != nil || l.DelegateKeys != nil
	}
}

// tools returns the constraint maps of the tools that every link grants.
func (x *exporting) tools(links []capability.Link) map[string]any {
	named := map[vault.Target]bool{} // by some link; the others inherit, or have *
	whole := true                    // no link but the root names any
	for i := range links {
		for kind, targets := range links[i].Grants {
			if kind != vault.KindTool && len(targets) > 0 && i == 0 && x.Only == nil {
				x.miss("", "grants of kind %s", kind)
			}
		}
		whole = whole && (i == 0 || links[i].Grants == nil)
		for t := range links[i].Grants[vault.KindTool] {
			named[t] = true
		}
	}
	out := map[string]any{}
	left := slices.Clone(x.Only)
	for t := range named {
		server := x.Server(t.Server)
		name := server + "." + t.Name
		if x.Only != nil {
			if !slices.Contains(x.Only, name) {
				continue
			}
			left = slices.DeleteFunc(left, func(s string) bool { return s == name })
		}
		switch {
		case t.Name == everyTool:
			if whole {
				x.miss("", "every tool of %s: name them", server)
			}
		case server == "":
			x.miss("", "the tool %s of a server whose name is not known, %s", t.Name, t.Server)
		default:
			if m, ok := x.tool(name, t, links); ok {
				out[name] = m
			}
		}
	}
	for _, name := range left {
		x.miss("", "%s: the capability names no such tool", name)
	}
	return out
}

// everyTool is the name in a root that stands for every tool of its server.
const everyTool = "*"

// tool returns the constraint map of a tool; false if some link takes it away.
func (x *exporting) tool(name string, t vault.Target, links []capability.Link) (map[string]any, bool) {
	var maps []capability.Args
	for i := range links {
		if links[i].Grants == nil {
			continue
		}
		targets := links[i].Grants[vault.KindTool]
		r, ok := targets[t]
		if !ok {
			r, ok = targets[vault.Target{Server: t.Server, Name: everyTool}]
		}
		if !ok {
			return nil, false
		}
		if r.Budgets != nil {
			x.miss(LoseBudgets, "link %d counts calls of %s", i, name)
		}
		if !r.Definition.IsZero() {
			x.miss(LosePins, "the definition of %s", name)
		}
		for _, g := range r.Ask {
			x.miss("", "approval of %s by %s", name, g)
		}
		if r.Args != nil {
			maps = append(maps, r.Args)
		}
	}
	if maps == nil {
		return map[string]any{others: map[string]any{"constraint_type": typeWildcard}}, true
	}
	out := map[string]any{}
	for _, pointer := range allPointers(maps) {
		argument := strings.ReplaceAll(strings.ReplaceAll(pointer[1:], "~1", "/"), "~0", "~")
		if strings.Contains(pointer[1:], "/") || argument == others {
			x.miss("", "%s: the argument %s: only plain names, and none that is *", name, pointer)
			continue
		}
		optional, refused := true, false
		for _, m := range maps {
			arg, ok := m[pointer]
			refused = refused || !ok
			optional = optional && (arg.Optional || !ok)
		}
		if refused {
			if !optional {
				return nil, false // required by one link and refused by another: no call passes
			}
			continue
		}
		var clauses []any
		for _, m := range maps {
			arg := m[pointer]
			c, why := clausesOf(&arg)
			if why != "" {
				x.miss("", "%s: the argument %s: %s", name, pointer, why)
			}
			clauses = append(clauses, c...)
		}
		if len(clauses) > 0 {
			out[argument] = conjunction(clauses, optional)
		}
	}
	if len(out) == 0 {
		// An empty map would let every argument through. An argument that nothing
		// passes closes it.
		out["no arguments"] = conjunction([]any{exactly(false), exactly(true)}, true)
	}
	return out, true
}

func allPointers(list []capability.Args) []string {
	seen := map[string]bool{}
	for _, m := range list {
		for p := range m {
			seen[p] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func conjunction(clauses []any, optional bool) map[string]any {
	c := map[string]any{"constraint_type": typeAll, "constraints": clauses}
	if len(clauses) == 1 {
		if one, ok := clauses[0].(map[string]any); ok {
			c = one
		}
	}
	if optional {
		c["optional"] = true
	}
	return c
}

func exactly(v any) map[string]any { return map[string]any{"constraint_type": typeExact, "value": v} }

func oneOf[T any](values []T) map[string]any {
	return map[string]any{"constraint_type": typeOneOf, "values": values}
}

// maxCounted is how many integers are listed for a range of them: a range of the draft
// passes fractions too.
const maxCounted = 256

// clausesOf returns constraints that pass exactly what arg passes, or says why there
// are none.
func clausesOf(arg *capability.Arg) (clauses []any, why string) {
	if len(arg.All) == 0 {
		return nil, "any scalar: the draft has no types of values"
	}
	for i := range arg.All {
		c := &arg.All[i]
		switch {
		case c.Exact != nil:
			clauses = append(clauses, exactly(c.Exact))
		case len(c.OneOf) > 0:
			clauses = append(clauses, oneOf(c.OneOf))
		case c.Int != nil:
			n := c.Int.Max - c.Int.Min
			if n < 0 || n >= maxCounted {
				return nil, fmt.Sprintf("integers from %d to %d: a range of the draft passes fractions, and more than %d are not listed", c.Int.Min, c.Int.Max, maxCounted)
			}
			list := make([]int64, n+1)
			for i := range list {
				list[i] = c.Int.Min + int64(i)
			}
			clauses = append(clauses, oneOf(list))
		case c.Each != nil && len(c.Each.All) == 1 && len(c.Each.All[0].OneOf) > 0:
			clauses = append(clauses, map[string]any{"constraint_type": typeSubset, "allowed": c.Each.All[0].OneOf})
		default:
			return nil, "the constraint " + wordOf(c)
		}
	}
	return clauses, ""
}

// wordOf returns the word of a constraint in task files.
func wordOf(c *capability.Constraint) string {
	b, err := json.Marshal(c)
	if err != nil {
		return "that is none"
	}
	word, _, _ := strings.Cut(strings.TrimPrefix(string(b), `{"`), `"`)
	return word
}

// sign returns claims as a compact JWS in canonical JSON (section 3.5).
func sign(key crypto.Signer, claims map[string]any) (string, error) {
	if key == nil {
		return "", errors.New("sign: no key")
	}
	raw, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	doc, err := parse(raw)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	pub, err := capability.KeyOf(key.Public())
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	sk := jose.SigningKey{Algorithm: algES256, Key: cryptosigner.Opaque(key)}
	if _, ok := pub.Public().(ed25519.PublicKey); ok {
		sk = jose.SigningKey{Algorithm: algEd25519, Key: edwardsSigner{key}}
	}
	s, err := jose.NewSigner(sk, new(jose.SignerOptions).WithType(tokenType))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	jws, err := s.Sign([]byte(doc.Raw()))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return jws.CompactSerialize()
}

// edwardsSigner signs under the name Ed25519, as edwards verifies.
type edwardsSigner struct{ key crypto.Signer }

func (s edwardsSigner) Public() *jose.JSONWebKey { return nil }

func (s edwardsSigner) Algs() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{algEd25519}
}

func (s edwardsSigner) SignPayload(payload []byte, _ jose.SignatureAlgorithm) ([]byte, error) {
	return s.key.Sign(rand.Reader, payload, crypto.Hash(0))
}
