package evidence

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
)

// An AnchorKind says who else vouches for a checkpoint.
type AnchorKind string

// The kinds of anchors.
const (
	AnchorWitness AnchorKind = "witness"  // cosignatures on the note itself
	AnchorRekor   AnchorKind = "rekor"    // an entry of a Rekor v2 log
	AnchorRekorV1 AnchorKind = "rekor_v1" // an entry of a Rekor v1 log
	AnchorTSA     AnchorKind = "tsa"      // a token of a time-stamp authority, RFC 3161
)

// An Anchor is somebody else's word on a checkpoint of the ledger, this one or an
// older one, with the proof that the bundle's checkpoint continues it.
type Anchor struct {
	Checkpoint string         `json:"checkpoint"` // signed note
	Kind       AnchorKind     `json:"kind"`
	Path       []vault.Digest `json:"path"`  // consistency proof; empty for the bundle's own
	Proof      []byte         `json:"proof"` // the entry or token; null for witnesses
}

// maxAnchors bounds the anchors of a bundle: the newest few of each kind say all.
const maxAnchors = 64

// anchored is an anchor that the verifier's own keys have confirmed.
type anchored struct {
	by   string
	size uint64
	at   time.Time // zero: it states no time
	last bool      // it vouched for no later checkpoint before at
}

// anchors checks every anchor against what the verifier brought, and answers by
// whom the checkpoint is anchored, before when it existed, and how much of the
// ledger nobody outside has seen.
func (v *verifier) anchors() error {
	own, err := v.small(fileCheckpoint)
	if err != nil {
		return err
	}
	list := []Anchor{{Checkpoint: string(own), Kind: AnchorWitness}}
	if _, ok := v.files[fileAnchors]; ok {
		if list, err = v.readAnchors(list); err != nil {
			return err
		}
	}
	var good []anchored
	strangers := 0
	for i := range list {
		a := &list[i]
		cp, err := v.anchorCheckpoint(a)
		if err != nil {
			return err
		}
		if by, ok := v.confirm(a, cp); ok {
			good = append(good, by)
		} else if i > 0 || strings.Count(a.Checkpoint, "\n— ") > 1 {
			strangers++
		}
	}
	v.answer(good, strangers)
	has := func(kind string) bool {
		return slices.ContainsFunc(good, func(a anchored) bool { return strings.HasPrefix(a.by, kind) })
	}
	switch {
	case v.policy != nil && !has("witness"):
		return found(ProblemUnwitnessed, "the quorum of your witness policy has signed no checkpoint of it")
	case len(v.opts.RekorKeys) > 0 && !has("rekor"):
		return found(ProblemUnanchored, "no entry of the Rekor log whose key you gave")
	case v.tsa != nil && !has("tsa"):
		return found(ProblemUnstamped, "no timestamp that leads to the TSA roots you gave")
	}
	return nil
}

func (v *verifier) readAnchors(list []Anchor) ([]Anchor, error) {
	lines := v.lines(fileAnchors)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		var a Anchor
		if err := decodeLine([]byte(line), &a); err != nil {
			return nil, found(ProblemMalformed, "%s: %v", fileAnchors, err)
		}
		known := a.Kind == AnchorWitness || a.Kind == AnchorRekor || a.Kind == AnchorRekorV1 || a.Kind == AnchorTSA
		if !known || len(list) > maxAnchors || (a.Kind == AnchorWitness) != (a.Proof == nil) {
			return nil, found(ProblemMalformed, "%s: want at most %d anchors of a known kind", fileAnchors, maxAnchors)
		}
		list = append(list, a)
	}
}

// anchorCheckpoint opens the checkpoint of an anchor. It must be by the key of the
// bundle's own, and that one must continue it.
func (v *verifier) anchorCheckpoint(a *Anchor) (Checkpoint, error) {
	cp, _, err := OpenCheckpoint([]byte(a.Checkpoint), v.rep.Key)
	if err != nil || cp.Origin != v.cp.Origin {
		return cp, found(ProblemAltered, "%s: a checkpoint that this ledger has not signed", fileAnchors)
	}
	switch {
	case cp == v.cp && len(a.Path) == 0:
		return cp, nil
	case cp.Size == 0 || cp.Size > v.cp.Size:
		return cp, found(ProblemSplitView, "an anchored checkpoint has %d records, this one has %d", cp.Size, v.cp.Size)
	}
	if err := VerifyConsistency(cp, v.cp, a.Path); err != nil {
		return cp, found(ProblemSplitView, "it does not continue the anchored checkpoint of %d records: %v", cp.Size, err)
	}
	return cp, nil
}

// confirm reports whether the verifier's keys confirm an anchor. One that they do
// not is of a stranger, and says nothing.
func (v *verifier) confirm(a *Anchor, cp Checkpoint) (anchored, bool) {
	switch a.Kind {
	case AnchorWitness:
		if v.policy == nil {
			break
		}
		if ok, names, at := v.policy.Cosigned([]byte(a.Checkpoint)); ok {
			slices.Sort(names)
			return anchored{"witness " + strings.Join(names, ", "), cp.Size, at, true}, true
		}
	case AnchorRekor:
		for _, k := range v.opts.RekorKeys {
			if err := VerifyRekor(a.Proof, cp, k); err == nil {
				name, _, _ := strings.Cut(k, "+")
				return anchored{by: "rekor " + name, size: cp.Size}, true
			}
		}
	case AnchorRekorV1:
		for _, k := range v.opts.RekorKeys {
			if !isRekorV1(k) {
				continue
			}
			if e, err := VerifyRekorV1(a.Proof, cp, k); err == nil {
				return anchored{by: "rekor " + e.Log, size: cp.Size, at: e.Time}, true
			}
		}
	case AnchorTSA:
		if v.tsa == nil {
			break
		}
		if t, err := VerifyTimestamp(a.Proof, cp, v.tsa); err == nil {
			return anchored{by: "tsa " + t.By, size: cp.Size, at: t.Before()}, true
		}
	}
	return anchored{}, false
}

// answer fills in who vouches, since when, and the window.
func (v *verifier) answer(good []anchored, strangers int) {
	v.rep.Strangers = strangers
	size := uint64(0)
	for _, a := range good {
		text := fmt.Sprintf("%s at %d", a.by, a.size)
		if !slices.Contains(v.rep.AnchoredBy, text) {
			v.rep.AnchoredBy = append(v.rep.AnchoredBy, text)
		}
		size = max(size, a.size)
		// It speaks of these records only if its checkpoint covers the last.
		if !a.at.IsZero() && a.size > v.last && (v.rep.Before == nil || a.at.Before(*v.rep.Before)) {
			v.rep.Before = &a.at
		}
		// An authority stamps a checkpoint of last year today; a witness does not.
		if a.last && a.size == v.cp.Size && a.at.After(v.newest) {
			v.newest = a.at
		}
	}
	v.rep.Anchored = size
	switch {
	case size == 0:
		v.rep.Window = fmt.Sprintf("never anchored: who holds the ledger key could have rewritten any of the %d records before signing", v.cp.Size)
	case size < v.cp.Size:
		v.rep.Window = fmt.Sprintf("%d records since the last outside anchor, %d to %d: who holds the ledger key could have rewritten them before signing", v.cp.Size-size, size, v.cp.Size-1)
	default:
		v.rep.Window = "none: the checkpoint itself is anchored outside"
	}
}

// newEnough holds the bundle against what the verifier said it must be newer than.
func (v *verifier) newEnough() error {
	if n := v.opts.NewerThanSize; n > 0 && v.cp.Size <= n {
		return found(ProblemStale, "its checkpoint has %d records, you asked for more than %d", v.cp.Size, n)
	}
	t := v.opts.NewerThan
	if t.IsZero() {
		return nil
	}
	// A witness that states a time is better than the ledger's own clock.
	if at, by := v.newest, "a witness saw it"; !at.IsZero() || v.rep.Last != nil {
		if at.IsZero() {
			at, by = *v.rep.Last, "its last record, by the ledger's own clock, is of"
		}
		if at.After(t) {
			return nil
		}
		return found(ProblemStale, "%s %s, you asked for newer than %s", by, at.Format(time.RFC3339), t.UTC().Format(time.RFC3339))
	}
	return found(ProblemStale, "nothing says when it is from")
}

// signature reads a signature line of a note: name, and key hash ‖ signature.
func signature(line string) (name string, raw []byte) {
	rest, ok := strings.CutPrefix(line, "— ")
	if !ok {
		return "", nil
	}
	name, text, _ := strings.Cut(rest, " ")
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", nil
	}
	return name, raw
}
