package evidence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// MaxPolicy bounds the bytes of a witness policy, maxComponents its names.
const (
	MaxPolicy     = 64 << 10
	maxComponents = 128
)

// A WitnessPolicy says whose cosignatures are enough. It is the verifier's own; the
// one in a bundle is a hint.
type WitnessPolicy struct {
	// Logs are the ledger keys that the policy names. They count as pinned.
	Logs []string
	// Witnesses are those it names, in its order.
	Witnesses []PolicyWitness
	witnesses map[string]note.Verifier // by name in the policy
	groups    map[string]group
	quorum    string
}

// A PolicyWitness is a witness that a policy names.
type PolicyWitness struct {
	Name string // in the policy
	URL  string // where it is asked; "" if the policy does not say
}

type group struct {
	need    int
	members []string
}

// ParseWitnessPolicy reads a policy in the C2SP tlog-policy format:
//
//	log VKEY [URL]
//	witness NAME VKEY [URL]
//	group NAME any|all|N MEMBER...
//	quorum NAME
//
// It is stricter where a slip would count one witness twice: a key is named once,
// a member is in one group once. A quorum of none asks for nothing and is refused.
func ParseWitnessPolicy(text []byte) (*WitnessPolicy, error) {
	fail := func(n int, format string, args ...any) (*WitnessPolicy, error) {
		return nil, fmt.Errorf("witness policy: line %d: %s", n+1, fmt.Sprintf(format, args...))
	}
	if len(text) > MaxPolicy {
		return nil, fmt.Errorf("witness policy: %d bytes, more than %d", len(text), MaxPolicy)
	}
	p := &WitnessPolicy{witnesses: map[string]note.Verifier{}, groups: map[string]group{}}
	inGroup, keys := map[string]bool{}, map[string]bool{}
	known := func(name string) bool { _, g := p.groups[name]; return g || p.witnesses[name] != nil }
	for n, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		switch {
		case f[0] == "log" && (len(f) == 2 || len(f) == 3):
			if _, err := note.NewVerifier(f[1]); err != nil {
				return fail(n, "log key: %v", err)
			}
			p.Logs = append(p.Logs, f[1])
		case f[0] == "witness" && (len(f) == 3 || len(f) == 4):
			v, err := fnote.NewVerifierForCosignatureV1(f[2])
			if err != nil {
				return fail(n, "witness key: %v", err)
			}
			raw, err := splitKey(f[2])
			if err != nil {
				return fail(n, "want an Ed25519 witness key")
			}
			if known(f[1]) || f[1] == "none" || keys[string(raw)] || len(p.witnesses) == maxComponents {
				return fail(n, "witness %s: named twice, or too many", f[1])
			}
			p.witnesses[f[1]], keys[string(raw)] = v, true
			p.Witnesses = append(p.Witnesses, PolicyWitness{Name: f[1], URL: strings.Join(f[3:], "")})
		case f[0] == "group" && len(f) >= 4:
			g := group{members: f[3:]}
			switch f[2] {
			case "any":
				g.need = 1
			case "all":
				g.need = len(g.members)
			default:
				var err error
				if g.need, err = strconv.Atoi(f[2]); err != nil || g.need < 1 || g.need > len(g.members) || strconv.Itoa(g.need) != f[2] {
					return fail(n, "group %s: want any, all or 1 to %d", f[1], len(g.members))
				}
			}
			for _, m := range g.members {
				if !known(m) || inGroup[m] {
					return fail(n, "group %s: %s is unknown or already in a group", f[1], m)
				}
				inGroup[m] = true
			}
			if known(f[1]) || f[1] == "none" || len(p.groups) == maxComponents {
				return fail(n, "group %s: named twice, or too many", f[1])
			}
			p.groups[f[1]] = g
		case f[0] == "quorum" && len(f) == 2:
			if p.quorum != "" || !known(f[1]) {
				return fail(n, "quorum: want one, of a witness or group above")
			}
			p.quorum = f[1]
		default:
			return fail(n, "want log, witness, group or quorum")
		}
	}
	if p.quorum == "" {
		return nil, errors.New("witness policy: no quorum")
	}
	return p, nil
}

// Cosigned reports whether the quorum has cosigned a checkpoint, the names of the
// witnesses that did, and the latest time that one of them stated. A signature
// that names a witness and is not by it counts for nothing.
func (p *WitnessPolicy) Cosigned(signed []byte) (ok bool, names []string, at time.Time) {
	text, sigs, found := bytes.Cut(signed, []byte("\n\n"))
	if !found || len(signed) > MaxCheckpoint {
		return false, nil, time.Time{}
	}
	text = append(bytes.Clone(text), '\n')
	by := map[string]bool{}
	for name, v := range p.witnesses {
		for line := range strings.SplitSeq(string(sigs), "\n") {
			who, raw := signature(line)
			if len(raw) < 12 || who != v.Name() || binary.BigEndian.Uint32(raw) != v.KeyHash() || !v.Verify(text, raw[4:]) {
				continue
			}
			sec := binary.BigEndian.Uint64(raw[4:])
			if sec == 0 || sec > maxUnix { // zero: the witness states no time
				continue
			}
			by[name] = true
			if t := time.Unix(int64(sec), 0).UTC(); t.After(at) {
				at = t
			}
		}
	}
	for name := range by {
		names = append(names, name)
	}
	return p.satisfied(p.quorum, by), names, at
}

// maxUnix is the last second of the year 9999.
const maxUnix = 253402300799

func (p *WitnessPolicy) satisfied(name string, by map[string]bool) bool {
	g, ok := p.groups[name]
	if !ok {
		return by[name]
	}
	have := 0
	for _, m := range g.members {
		if p.satisfied(m, by) { // ends: members stand above their group
			have++
		}
	}
	return have >= g.need
}
