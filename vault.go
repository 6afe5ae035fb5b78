// Package vault holds the nouns of the least-agency runtime: what a call is,
// who makes it, what a capability allows of it, what was decided, what the data
// in it is worth, and what is recorded about it.
//
// It owns no behaviour beyond the algebra of those nouns: joining labels and
// decisions, parsing canonical arguments, formatting identifiers. It imports the
// standard library only. Start with [Call], [Grant], [Decision] and [Event].
//
// The zero value of every noun denies: a zero [Verdict] is Deny, a zero [Label]
// is untrusted and readable by nobody, a zero [Grade] is no isolation, a zero
// [Kind] or [ProofKind] is invalid.
package vault

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A Kind says what sort of effect a call has. Every edge maps its protocol onto
// these; the zero Kind is invalid.
type Kind string

// The kinds of effect an agent can ask for.
const (
	KindTool          Kind = "tool"           // call a tool of a server
	KindResource      Kind = "resource"       // read or subscribe to a resource of a server
	KindPrompt        Kind = "prompt"         // get a prompt of a server
	KindServerRequest Kind = "server_request" // a server asks the agent's side: sampling, elicitation, roots
	KindEgress        Kind = "egress"         // an HTTP request to a host
	KindSecret        Kind = "secret"         // use of a credential
	KindFile          Kind = "file"           // a file of the host
	KindExec          Kind = "exec"           // a program in a sandbox
	KindModel         Kind = "model"          // a model request
	KindAgent         Kind = "agent"          // a message to another agent
)

// ParseKind returns the Kind named s.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case KindTool, KindResource, KindPrompt, KindServerRequest, KindEgress,
		KindSecret, KindFile, KindExec, KindModel, KindAgent:
		return k, nil
	}
	return "", fmt.Errorf("unknown kind %q", s)
}

// A Digest is a SHA-256 digest, or a MAC of that length. Its text form is
// lower-case hex. The zero Digest stands for "none".
type Digest [sha256.Size]byte

// ParseDigest parses 64 hex digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) || strings.ToLower(s) != s {
		return Digest{}, errors.New("digest: want 64 lower-case hex digits")
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("digest: %w", err)
	}
	return d, nil
}

// IsZero reports whether d is no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText returns the hex form of d.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses the hex form.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// Hash returns SHA-256 over the context string "vault/what/v1" and parts, each
// part preceded by its length as eight bytes big endian so that no two lists of
// parts collide.
func Hash(what string, parts ...[]byte) Digest {
	h := sha256.New()
	h.Write([]byte("vault/" + what + "/v1"))
	var n [8]byte
	for _, p := range parts {
		for i := range n {
			n[i] = byte(uint64(len(p)) >> (56 - 8*i))
		}
		h.Write(n[:])
		h.Write(p)
	}
	var d Digest
	h.Sum(d[:0])
	return d
}

// A ServerID identifies a registered server by the digest of its registration:
// code, interpreter and entry of an installed one, URL and auth identity of a
// remote one. Kinds without a server (egress, exec) use the zero ServerID.
type ServerID Digest

// IsZero reports whether id names no server.
func (id ServerID) IsZero() bool { return id == ServerID{} }

func (id ServerID) String() string { return Digest(id).String() }

// MarshalText returns the hex form of id.
func (id ServerID) MarshalText() ([]byte, error) { return Digest(id).MarshalText() }

// UnmarshalText parses the hex form.
func (id *ServerID) UnmarshalText(b []byte) error { return (*Digest)(id).UnmarshalText(b) }

// A Target is what a call acts on: a name inside a server. It is a pair and
// never one joined string, so that no two targets share a digest. For egress the
// name is the host, for exec the program.
type Target struct {
	Server ServerID `json:"server"`
	Name   string   `json:"name"`
}

// An AgentID is the SPIFFE ID of one agent instance, the unit that labels stick to.
type AgentID string

// A TaskID names one task instance; its events are one run. 26 letters and
// digits of base32, made by [NewTaskID].
type TaskID string

// A Tenant names the owner of a ledger. It leads every table and cache key.
type Tenant string

// NewTaskID returns a fresh random TaskID.
func NewTaskID() TaskID { return TaskID("t-" + randomID()) }

// NewCallID returns a fresh random call id for callers that bring none.
func NewCallID() string { return "c-" + randomID() }

// NewApprovalID returns a fresh random id for a question to a person.
func NewApprovalID() string { return "a-" + randomID() }

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// randomID returns 128 random bits as 26 characters.
func randomID() string {
	var b [16]byte
	rand.Read(b[:])
	return idEncoding.EncodeToString(b[:])
}

// A Grade says how much a sandbox really enforces on this host, worst first, so
// that grades compare with <. The zero Grade is no isolation.
type Grade uint8

// The grades, from FORMATS section 8.
const (
	GradeNone Grade = iota
	GradeD          // a process jail that lacks a layer
	GradeC          // a microVM under software emulation
	GradeB          // a WASM worker, or a process jail with every layer
	GradeA          // a microVM on hardware virtualisation
)

func (g Grade) String() string {
	switch g {
	case GradeA:
		return "A"
	case GradeB:
		return "B"
	case GradeC:
		return "C"
	case GradeD:
		return "D"
	case GradeNone:
	}
	return "none"
}

// ParseGrade parses A, B, C, D or none.
func ParseGrade(s string) (Grade, error) {
	for g := GradeNone; g <= GradeA; g++ {
		if g.String() == s {
			return g, nil
		}
	}
	return GradeNone, fmt.Errorf("unknown grade %q: want A, B, C, D or none", s)
}

// MarshalText returns the letter of g.
func (g Grade) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText parses the letter.
func (g *Grade) UnmarshalText(b []byte) (err error) {
	*g, err = ParseGrade(string(b))
	return err
}
