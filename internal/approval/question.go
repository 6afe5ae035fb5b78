package approval

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
)

const (
	version = 1

	// maxArgs bounds the arguments a person can be asked about. More is nothing
	// anybody would read, and 32 open questions of an agent stay below 32 MiB.
	maxArgs = 1 << 20
	// maxQuestion adds room for everything around the arguments.
	maxQuestion = maxArgs + 256<<10
	// maxElements bounds each list in a question: one origin per argument is the
	// longest, and nobody reads a thousand.
	maxElements = 1024
	// maxDetail bounds the text a stage adds for people.
	maxDetail = 1024
)

// A Question is what a person decides about: one call, as it will be executed,
// and all that is known of it. It is encoded as deterministic CBOR with integer
// keys and signed as COSE_Sign1 by the gateway's approval key. Keys are never
// reused.
type Question struct {
	Version uint   `cbor:"1,keyasint"` // 1
	ID      string `cbor:"2,keyasint"` // approval id
	Call    string `cbor:"3,keyasint"` // id of the call that asked first

	Tenant    string         `cbor:"4,keyasint"`
	Task      string         `cbor:"5,keyasint"`
	Purpose   string         `cbor:"6,keyasint"` // of the task
	Agent     string         `cbor:"7,keyasint"` // SPIFFE ID of the requester
	Holders   []vault.Digest `cbor:"8,keyasint"` // thumbprints of the keys in its chain; none of them may answer
	Principal string         `cbor:"9,keyasint"` // for whom it acts
	Chain     vault.Digest   `cbor:"10,keyasint"`
	Leaf      vault.Digest   `cbor:"11,keyasint"`
	Proof     string         `cbor:"12,keyasint"`

	Kind       string       `cbor:"13,keyasint"`
	Server     string       `cbor:"14,keyasint"` // registered name, for people
	ServerID   vault.Digest `cbor:"15,keyasint"` // what the name stands for
	Tool       string       `cbor:"16,keyasint"`
	Definition vault.Digest `cbor:"17,keyasint"` // as pinned
	Args       []byte       `cbor:"18,keyasint"` // canonical JSON, exactly what will be sent
	ArgsDigest vault.Digest `cbor:"19,keyasint"`
	Params     []byte       `cbor:"20,keyasint"` // the protocol's other parameters, canonical JSON

	Scope   Scope    `cbor:"21,keyasint"` // what the agent instance has seen so far
	Origins []Origin `cbor:"22,keyasint"` // where consequential arguments come from

	Policy  vault.Digest `cbor:"23,keyasint"` // revision that decided; zero without policy
	Reasons []Reason     `cbor:"24,keyasint"` // who asked and why
	Groups  []string     `cbor:"25,keyasint"` // each must say yes
	Risk    string       `cbor:"26,keyasint"`
	Grade   string       `cbor:"27,keyasint"` // of the sandbox that would run it
	AnyArgs bool         `cbor:"28,keyasint"` // the capability does not constrain the arguments
	SameUID bool         `cbor:"29,keyasint"` // agent and daemon share a uid: separation is not claimed

	RequestedAt int64 `cbor:"30,keyasint"` // Unix seconds
	ExpiresAt   int64 `cbor:"31,keyasint"` // Unix seconds; no answer counts from then on, given or not
}

// A Scope is the label of everything the agent has seen.
type Scope struct {
	Integrity string   `cbor:"1,keyasint" json:"integrity"`
	Public    bool     `cbor:"2,keyasint" json:"public"`
	Readers   []string `cbor:"3,keyasint" json:"readers"`
	Sources   []string `cbor:"4,keyasint" json:"sources"`
	More      bool     `cbor:"5,keyasint" json:"more"` // there were more sources than are kept
}

// An Origin says where the value of one argument was found.
type Origin struct {
	Path    string   `cbor:"1,keyasint" json:"path"`  // JSON Pointer
	Found   []string `cbor:"2,keyasint" json:"found"` // empty: nowhere
	Trusted bool     `cbor:"3,keyasint" json:"trusted"`
}

// A Reason is one ground for asking.
type Reason struct {
	Code   string `cbor:"1,keyasint" json:"code"`
	Path   string `cbor:"2,keyasint" json:"path"`
	Detail string `cbor:"3,keyasint" json:"detail"`
}

// Expires returns the moment from which no answer counts.
func (q *Question) Expires() time.Time { return time.Unix(q.ExpiresAt, 0) }

// newQuestion states the facts, without id and times.
func newQuestion(f *vault.Facts, d vault.Decision, policy vault.Digest) (*Question, error) {
	if f == nil || f.Call == nil || f.Grant == nil || f.Tool == nil {
		return nil, errors.New("facts without call, grant or tool")
	}
	c, g, t := f.Call, f.Grant, f.Tool
	q := &Question{
		Version: version, Tenant: string(c.Tenant), Task: string(c.Task), Purpose: g.Purpose,
		Agent: string(c.Agent), Holders: g.Holders, Principal: c.Principal,
		Chain: g.Chain, Leaf: g.Leaf, Proof: string(g.Proof),
		Kind: string(c.Kind), Server: c.Server, ServerID: vault.Digest(c.Target.Server), Tool: c.Target.Name,
		Definition: t.Definition, Args: c.Args.Bytes(), ArgsDigest: c.Args.Digest(), Params: c.Params.Bytes(),
		Scope: scopeOf(f.Scope), Policy: policy, Groups: slices.Clone(d.Groups),
		Risk: t.Risk.String(), Grade: f.Grade.String(), AnyArgs: g.AnyArgs, SameUID: g.SameUID,
	}
	if len(q.Args)+len(q.Params) > maxArgs {
		return nil, vault.NewDenial(vault.CodeArgsTooLarge, "", fmt.Errorf("%d bytes of arguments, a person can be asked about %d", len(q.Args)+len(q.Params), maxArgs))
	}
	for _, o := range f.Origins {
		q.Origins = append(q.Origins, Origin{o.Path, o.Found, o.Trusted})
	}
	for _, r := range d.Reasons {
		q.Reasons = append(q.Reasons, Reason{string(r.Code), r.Path, clip(r.Detail)})
	}
	if len(q.Groups) == 0 {
		q.Groups = []string{groupDefault}
	}
	slices.Sort(q.Groups)
	q.Groups = slices.Compact(q.Groups)
	slices.SortStableFunc(q.Reasons, func(a, b Reason) int {
		return cmp.Or(strings.Compare(a.Code, b.Code), strings.Compare(a.Path, b.Path))
	})
	slices.SortStableFunc(q.Origins, func(a, b Origin) int { return strings.Compare(a.Path, b.Path) })
	return q, nil
}

func scopeOf(l vault.Label) Scope {
	s := Scope{Integrity: l.Integrity.String(), Public: l.Readers.IsPublic(), Readers: l.Readers.Names(), More: l.Truncated}
	for _, src := range l.Sources {
		s.Sources = append(s.Sources, src.String())
	}
	return s
}

// clip shortens a stage's text to maxDetail bytes of valid UTF-8.
func clip(s string) string {
	if len(s) > maxDetail {
		s = s[:maxDetail]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s = s[:max(0, len(s)-1)] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// binding identifies what an approval is good for: two calls with the same
// binding ask the same question. Everything in a question counts, and so does a
// field that is added later, except what may differ between a call and its retry
// without changing what a person would decide: ids, times, wording, and the names
// of sources (the worst label of them counts).
func (c codec) binding(q *Question) (vault.Digest, error) {
	b := *q
	b.ID, b.Call, b.RequestedAt, b.ExpiresAt = "", "", 0, 0
	b.Scope.Sources, b.Scope.More = nil, false
	b.Origins, b.Reasons = slices.Clone(q.Origins), slices.Clone(q.Reasons)
	for i := range b.Origins {
		b.Origins[i].Found = nil
	}
	for i := range b.Reasons {
		b.Reasons[i].Detail = ""
	}
	b.Reasons = slices.Compact(b.Reasons)
	enc, err := c.enc.Marshal(&b)
	if err != nil {
		return vault.Digest{}, err
	}
	return vault.Hash("approval-binding", enc), nil
}

// sign encodes and signs q.
func (c codec) sign(q *Question, key crypto.Signer) ([]byte, error) {
	payload, err := c.enc.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode question: %w", err)
	}
	// What cannot be read back, such as text that is not UTF-8, is not asked.
	if _, err := c.parse(payload); err != nil {
		return nil, fmt.Errorf("encode question: %w", err)
	}
	signed, err := c.seal(payload, key)
	if err != nil {
		return nil, fmt.Errorf("sign question: %w", err)
	}
	return signed, nil
}

// Open checks the gateway's signature over a question and decodes it. It accepts
// only the bytes that this package would have written.
func Open(signed []byte, gateway ed25519.PublicKey) (*Question, error) {
	return newCodec().open(signed, gateway)
}

func (c codec) open(signed []byte, gateway ed25519.PublicKey) (*Question, error) {
	if len(signed) > maxQuestion {
		return nil, fmt.Errorf("open question: %d bytes, at most %d are read", len(signed), maxQuestion)
	}
	payload, err := c.unseal(signed, gateway)
	if err != nil {
		return nil, fmt.Errorf("open question: %w", err)
	}
	q, err := c.parse(payload)
	if err != nil {
		return nil, fmt.Errorf("open question: %w", err)
	}
	return q, nil
}

// parse decodes the payload and checks that it is consistent in itself.
func (c codec) parse(payload []byte) (*Question, error) {
	if len(payload) > maxQuestion {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(payload), maxQuestion)
	}
	q := new(Question)
	if err := c.decode(payload, q); err != nil {
		return nil, err
	}
	if q.Version != version {
		return nil, fmt.Errorf("version %d, want %d", q.Version, version)
	}
	if q.ID == "" || q.Agent == "" || len(q.Groups) == 0 || q.ExpiresAt <= q.RequestedAt {
		return nil, errors.New("without id, agent, group or life")
	}
	if !canonical(q.Args) || !canonical(q.Params) {
		return nil, errors.New("arguments are not canonical JSON")
	}
	if a, _ := parseCanonical(q.Args); a.Digest() != q.ArgsDigest {
		return nil, errors.New("digest of other arguments")
	}
	return q, nil
}

// parseCanonical decodes canonical bytes; empty bytes are no document.
func parseCanonical(b []byte) (vault.Args, error) {
	if len(b) == 0 {
		return vault.Args{}, nil
	}
	return vault.ParseValue(b)
}

func canonical(b []byte) bool {
	a, err := parseCanonical(b)
	return err == nil && a.String() == string(b)
}

// digest is SHA-256 of the signed question: what an answer refers to.
func digest(signed []byte) vault.Digest { return sha256.Sum256(signed) }

// Thumbprint is the RFC 9679 thumbprint of an Ed25519 key, as
// vault.Grant.Holders has it.
func Thumbprint(pub ed25519.PublicKey) vault.Digest {
	return sha256.Sum256(append([]byte{0xa3, 0x01, 0x01, 0x20, 0x06, 0x21, 0x58, 0x20}, pub...))
}
