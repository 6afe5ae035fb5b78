package evidence

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"github.com/pilox/vault"
)

// What ran, as an in-toto statement (https://in-toto.io/Statement/v1) in a DSSE
// envelope (https://github.com/secure-systems-lab/dsse, version 1).
//
// Nobody is believed about it: every member follows from the records and opened
// fields of the bundle, so the verifier derives the statement again and wants
// the same bytes. The signature, by the ledger's key, is for tools that know DSSE
// and no records; the prefix "DSSEv1 " keeps it apart from a checkpoint, whose
// first line is an origin and has no space.
const (
	StatementType  = "https://in-toto.io/Statement/v1"
	PredicateType  = "https://pilox.dev/vault/what-ran/v1"
	payloadType    = "application/vnd.in-toto+json"
	maxStatement   = 1 << 20
	maxRanTools    = 256  // distinct tools and policies that a statement lists
	maxRanIdentity = 1024 // bytes of an identity; longer ones stay in the disclosures
	maxRanLinks    = 64
)

// An Envelope is a DSSE envelope. Its members are sorted.
type Envelope struct {
	Payload     []byte              `json:"payload"`
	PayloadType string              `json:"payloadType"`
	Signatures  []EnvelopeSignature `json:"signatures"`
}

// An EnvelopeSignature is by the ledger; the key id is its NAME+HASH.
type EnvelopeSignature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// A Statement says what ran.
type Statement struct {
	Type          string    `json:"_type"`
	Predicate     Ran       `json:"predicate"`
	PredicateType string    `json:"predicateType"`
	Subject       []Subject `json:"subject"`
}

// A Subject is the checkpoint and, for a run, the last record of the run, whose
// prev_run_leaf covers all before it.
type Subject struct {
	Digest struct {
		SHA256 vault.Digest `json:"sha256"`
	} `json:"digest"`
	Name string `json:"name"`
}

// Ran is the predicate. Counts are of records of class call.
type Ran struct {
	Closed     bool              `json:"closed"` // scope run: a closing record is there
	First      uint64            `json:"first"`  // index of the first record
	Grades     map[string]uint64 `json:"grades"` // what the sandbox enforced, by intent
	Grants     *RanGrants        `json:"grants"` // null unless the capability is opened
	Identities RanIdentities     `json:"identities"`
	Last       uint64            `json:"last"`
	Log        string            `json:"log"`
	More       uint64            `json:"more"`   // records whose tool or policy found no place
	Opened     *RanOpened        `json:"opened"` // scope run: the record that opened the task
	Phases     map[string]uint64 `json:"phases"`
	Policies   []vault.Digest    `json:"policies"` // revisions that decided, in order of appearance
	Proofs     map[string]uint64 `json:"proofs"`   // how callers proved themselves
	Records    uint64            `json:"records"`  // of all classes
	Run        vault.TaskID      `json:"run"`
	SameUID    bool              `json:"same_uid"` // agent and daemon were not kept apart somewhere
	Tools      []RanTool         `json:"tools"`    // targets, in order of appearance
}

// RanGrants names the capability: the digest of its chain and the ids of its links.
type RanGrants struct {
	Chain vault.Digest   `json:"chain"`
	Links []vault.Digest `json:"links"`
}

// RanIdentities are null unless opened; [RanOpened] commits to them.
type RanIdentities struct {
	Agent     *string `json:"agent"`
	By        *string `json:"by"`
	Principal *string `json:"principal"`
	Purpose   *string `json:"purpose"`
}

// RanOpened is the root of the commitments to agent, approver, capability, inputs,
// principal and purpose of the record that opened the task.
type RanOpened struct {
	Fields vault.Digest `json:"fields"`
	Index  uint64       `json:"idx"`
}

// A RanTool is a target. The server's digest covers its registration: for one that
// Vault installed, the content of its tree, its interpreter and its entry; for a
// URL or a model, the address and how Vault proves itself there.
type RanTool struct {
	Intents uint64       `json:"intents"`
	Kind    vault.Kind   `json:"kind"`
	Refused uint64       `json:"refused"`
	Server  vault.Digest `json:"server"` // zeros: none
	Tool    string       `json:"tool"`   // empty for kinds whose name says whom or where
}

type ranKey struct {
	server vault.ServerID
	kind   vault.Kind
	tool   string
}

// A ran derives the statement, record by record.
type ran struct {
	Ran
	scope    Scope
	tools    map[ranKey]int
	policies map[vault.Digest]bool
	lastTool ranKey
	lastAt   int // index of lastTool in Tools, −1: none
	lastPol  vault.Digest
	phases   map[vault.Phase]uint64
	grades   [vault.GradeA + 1]uint64
	proofs   map[vault.ProofKind]uint64
	lastHash vault.Digest
}

func newRan(scope Scope, log string, run vault.TaskID) *ran {
	return &ran{
		Ran: Ran{Log: log, Run: run, Policies: []vault.Digest{}, Tools: []RanTool{}}, scope: scope, lastAt: -1,
		tools: map[ranKey]int{}, policies: map[vault.Digest]bool{}, phases: map[vault.Phase]uint64{}, proofs: map[vault.ProofKind]uint64{},
	}
}

// add takes the next record. Strings of l may be of memory that is used again.
func (r *ran) add(l *Leaf, hash vault.Digest) {
	if r.Records == 0 {
		r.First = l.Index
		if r.scope == ScopeRun && l.Class == vault.ClassTask && l.Phase == vault.PhaseOpened {
			r.Opened = &RanOpened{l.Fields.Root, l.Index}
		}
	}
	r.Records++
	r.Last, r.lastHash = l.Index, hash
	r.Closed = r.scope == ScopeRun && l.Class == vault.ClassTask && l.Phase == vault.PhaseClosed
	r.SameUID = r.SameUID || l.SameUID
	if l.Class != vault.ClassCall {
		return
	}
	r.phases[l.Phase]++
	full := false
	if !l.Policy.IsZero() && l.Policy != r.lastPol && !r.policies[l.Policy] {
		if full = len(r.Policies) == maxRanTools; !full {
			r.Policies, r.policies[l.Policy] = append(r.Policies, l.Policy), true
		}
	}
	r.lastPol = l.Policy
	if l.Phase != vault.PhaseIntent && l.Phase != vault.PhaseRefused {
		if full {
			r.More++
		}
		return
	}
	r.proofs[l.Proof]++
	key := ranKey{l.Server, l.Kind, l.Tool}
	if r.lastAt < 0 || key != r.lastTool {
		at, ok := r.tools[key]
		if !ok {
			if len(r.Tools) == maxRanTools {
				at, full = -1, true
			} else {
				key.kind, key.tool = vault.Kind(strings.Clone(string(key.kind))), strings.Clone(key.tool)
				at = len(r.Tools)
				r.tools[key] = at
				r.Tools = append(r.Tools, RanTool{Kind: key.kind, Server: vault.Digest(key.server), Tool: key.tool})
			}
		}
		r.lastAt = at
		if at >= 0 {
			r.lastTool = ranKey{vault.ServerID(r.Tools[at].Server), r.Tools[at].Kind, r.Tools[at].Tool}
		}
	}
	if l.Phase == vault.PhaseIntent {
		r.grades[l.Grade]++
	}
	if full {
		r.More++
	}
	if r.lastAt < 0 {
		return
	}
	if t := &r.Tools[r.lastAt]; l.Phase == vault.PhaseIntent {
		t.Intents++
	} else {
		t.Refused++
	}
}

// open takes an opened field that is right, or is about to be written.
func (r *ran) open(d *Disclosure) {
	if r.Opened == nil || d.Index != r.Opened.Index || d.Value == nil {
		return
	}
	id := &r.Identities
	for name, to := range map[string]**string{"agent": &id.Agent, "by": &id.By, "principal": &id.Principal, "purpose": &id.Purpose} {
		if d.Field == name && len(d.Value) <= maxRanIdentity && utf8.Valid(d.Value) {
			s := string(d.Value)
			*to = &s
		}
	}
	if d.Field == "capability" {
		var view struct {
			Digest *vault.Digest
			Links  []struct{ ID *vault.Digest }
		}
		if json.Unmarshal(d.Value, &view) != nil || view.Digest == nil || len(view.Links) > maxRanLinks {
			return
		}
		g := &RanGrants{Chain: *view.Digest, Links: []vault.Digest{}}
		for _, l := range view.Links {
			if l.ID == nil {
				return
			}
			g.Links = append(g.Links, *l.ID)
		}
		r.Grants = g
	}
}

// payload returns the statement as bytes: members sorted, one line.
func (r *ran) payload(cp Checkpoint) ([]byte, error) {
	r.Phases, r.Grades, r.Proofs = map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	for p, n := range r.phases {
		r.Phases[string(p)] = n
	}
	for g, n := range r.grades {
		if n > 0 {
			r.Grades[vault.Grade(g).String()] = n
		}
	}
	for p, n := range r.proofs {
		r.Proofs[string(p)] = n
	}
	s := Statement{Type: StatementType, Predicate: r.Ran, PredicateType: PredicateType, Subject: make([]Subject, 1, 2)}
	s.Subject[0].Name, s.Subject[0].Digest.SHA256 = cp.Origin, cp.Digest()
	if r.scope == ScopeRun {
		s.Subject = append(s.Subject, Subject{Name: "run " + string(r.Run)})
		s.Subject[1].Digest.SHA256 = r.lastHash
	}
	b, err := encodeLine(s)
	if err == nil && len(b) > maxStatement/2 {
		err = errors.New("too long")
	}
	return b, err
}

// pae is DSSE's pre-authentication encoding.
func pae(payload []byte) []byte {
	b := append([]byte("DSSEv1 "), strconv.Itoa(len(payloadType))...)
	b = append(append(b, ' '), payloadType...)
	b = strconv.AppendInt(append(b, ' '), int64(len(payload)), 10)
	return append(append(b, ' '), payload...)
}

// SignStatement returns the signature of the ledger origin under a statement.
func SignStatement(origin string, key crypto.Signer, payload []byte) (EnvelopeSignature, error) {
	s, err := newSigner(origin, key)
	if err != nil {
		return EnvelopeSignature{}, fmt.Errorf("sign statement: %w", err)
	}
	sig, err := key.Sign(rand.Reader, pae(payload), crypto.Hash(0))
	if err != nil {
		return EnvelopeSignature{}, fmt.Errorf("sign statement: %w", err)
	}
	return EnvelopeSignature{KeyID: fmt.Sprintf("%s+%08x", origin, s.KeyHash()), Sig: sig}, nil
}

// verifyStatement reports whether a signature is by the verifier key vkey.
func verifyStatement(vkey string, e *Envelope) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return fmt.Errorf("statement: %w", err)
	}
	raw, err := splitKey(vkey)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())
	if len(e.Signatures) == 1 && e.Signatures[0].KeyID == id && ed25519.Verify(raw, pae(e.Payload), e.Signatures[0].Sig) {
		return nil
	}
	return errors.New("not signed by the key of the checkpoint")
}

// splitKey returns the Ed25519 key of a verifier key that
// [note.NewVerifier] has accepted, or of a witness.
func splitKey(vkey string) (ed25519.PublicKey, error) {
	_, rest, _ := strings.Cut(vkey, "+")
	_, text, _ := strings.Cut(rest, "+")
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != 1+ed25519.PublicKeySize {
		return nil, errors.New("key: want NAME+HASH+KEY")
	}
	return b[1:], nil
}
