package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// Options says what the verifier brings. The zero Options pins nothing, and then
// the best answer is [ProblemUnpinned].
type Options struct {
	// Keys are the verifier keys of the ledger that the verifier got from
	// elsewhere, NAME+HASH+KEY. One of them must have signed.
	Keys []string
	// Since is a signed checkpoint that the verifier already holds. The bundle
	// must continue it. Nil: nothing is known about rollback and split views.
	Since []byte
	// NewerThan refuses a bundle whose newest trusted time is not after it: that of a
	// witness of Policy, else that of its last record. Zero: any age.
	NewerThan time.Time
	// NewerThanSize refuses a checkpoint of at most so many records. Zero: any.
	NewerThanSize uint64
	// Policy is a witness policy, C2SP tlog-policy: its quorum must have signed. Its
	// log keys count as Keys. Nil: cosignatures are counted and say nothing.
	Policy []byte
	// RekorKeys are keys of Rekor logs, NAME+HASH+KEY of v2 or ECDSA P-256 in PEM of v1;
	// an entry of one of them must be there. Nil: entries are counted and say nothing.
	RekorKeys []string
	// TSARoots are certificates in PEM, see [ParseTSARoots]: a timestamp that leads to
	// one of them must be there. Nil: timestamps are counted and say nothing.
	TSARoots []byte
	// Run is the run that was asked for. Empty: any.
	Run vault.TaskID
}

// Verify checks a bundle of size bytes. The error is for options that make no
// sense and for reading; everything about the bundle is in the report.
func Verify(r io.ReaderAt, size int64, o Options) (Report, error) {
	v := verifier{r: r, opts: o}
	if o.Policy != nil {
		var err error
		if v.policy, err = ParseWitnessPolicy(o.Policy); err != nil {
			return Report{}, fmt.Errorf("verify: %w", err)
		}
		o.Keys = slices.Concat(o.Keys, v.policy.Logs)
		v.opts.Keys = o.Keys
	}
	if o.TSARoots != nil {
		var err error
		if v.tsa, err = ParseTSARoots(o.TSARoots); err != nil {
			return Report{}, fmt.Errorf("verify: %w", err)
		}
	}
	for _, k := range o.RekorKeys {
		if err := checkRekorKey(k); err != nil {
			return Report{}, fmt.Errorf("verify: Rekor key %q: want NAME+HASH+KEY, or PEM for v1: %w", k, err)
		}
	}
	if o.Since != nil {
		var err error
		if v.since, err = unverifiedCheckpoint(o.Since); err != nil {
			return Report{}, fmt.Errorf("verify: since: %w", err)
		}
		if len(o.Keys) > 0 {
			if v.since, _, err = OpenCheckpoint(o.Since, o.Keys...); err != nil {
				return Report{}, fmt.Errorf("verify: since: %w", err)
			}
		}
	}
	v.rep.AnchoredBy = []string{}
	err := v.run(size)
	if f, ok := errors.AsType[*finding](err); ok {
		v.rep.Problem, v.rep.Detail, v.rep.Record = f.problem, f.detail, f.record
	} else if err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	} else {
		v.rep.Problem = ProblemNone
	}
	v.rep.Exit = v.rep.Problem.Exit()
	return v.rep, nil
}

// VerifyBytes is Verify for a bundle in memory.
func VerifyBytes(bundle []byte, o Options) (Report, error) {
	return Verify(bytes.NewReader(bundle), int64(len(bundle)), o)
}

// A finding ends verification with an answer.
type finding struct {
	problem Problem
	record  *uint64
	detail  string
}

func (f *finding) Error() string { return string(f.problem) + ": " + f.detail }

func found(p Problem, format string, args ...any) error {
	return &finding{problem: p, detail: fmt.Sprintf(format, args...)}
}

func foundAt(p Problem, record uint64, format string, args ...any) error {
	return &finding{problem: p, record: &record, detail: fmt.Sprintf(format, args...)}
}

// A verifier is one verification.
type verifier struct {
	r     io.ReaderAt
	opts  Options
	since Checkpoint
	files map[string]zipFile
	man   Manifest
	cp    Checkpoint
	opens *lines // disclosures not reached yet
	next  *Disclosure
	bad   error // first wrong disclosure
	rep   Report

	policy *WitnessPolicy // nil: none given
	tsa    *TSARoots      // nil: none given
	ran    *ran
	last   uint64    // index of the last record
	newest time.Time // that a trusted witness stated for the checkpoint itself
}

func (v *verifier) run(size int64) error {
	list, err := openZip(v.r, size)
	if err != nil {
		if errors.Is(err, errZip) || size > MaxBundle {
			return found(ProblemMalformed, "%v", err)
		}
		return err
	}
	if err := v.manifest(list); err != nil {
		return err
	}
	// The digests of the files only tell what the records themselves do not, so
	// they are taken beside the real work.
	var digests error
	var wg sync.WaitGroup
	wg.Go(func() { digests = v.digests(list) })
	err = v.contents()
	wg.Wait()
	f, isFinding := errors.AsType[*finding](err)
	if err != nil && !isFinding {
		return err
	}
	if digests != nil {
		if _, ok := errors.AsType[*finding](digests); !ok {
			return digests
		}
		// A broken record says more than a broken file. An answer about keys or
		// completeness does not.
		if f == nil || f.problem.Exit() >= ExitWrongKey {
			v.rep.Intact = false
			return digests
		}
	}
	return err
}

// manifest reads the manifest and holds it against the files that are there.
func (v *verifier) manifest(list []zipFile) error {
	v.files = map[string]zipFile{}
	if len(list) == 0 || list[0].name != fileManifest {
		return found(ProblemMalformed, "no %s", fileManifest)
	}
	v.files[fileManifest] = list[0]
	text, err := v.small(fileManifest)
	if err != nil {
		return err
	}
	if err := decodeLine(text, &v.man); err != nil {
		return found(ProblemMalformed, "%s: %v", fileManifest, err)
	}
	m := &v.man
	if m.Type != bundleType || m.Version != 1 || m.Scope != ScopeRun && m.Scope != ScopeLog || !validRun(m.Run) {
		return found(ProblemMalformed, "%s: not a bundle of version 1", fileManifest)
	}
	want := []string{fileReadme, fileCheckpoint, fileKeys, fileLeaves}
	if m.Scope == ScopeRun {
		want = append(want, fileProofs)
	} else {
		want = append(want, fileHashes)
	}
	want = append(want, v.optional(list, fileConsistency)...)
	want = append(want, fileDisclosures)
	want = append(want, v.optional(list, fileAnchors)...)
	want = append(want, v.optional(list, fileWitnesses)...)
	want = append(want, fileStatement)
	if len(list) != len(want)+1 || len(m.Files) != len(want) {
		return found(ProblemMalformed, "want exactly the files %s", strings.Join(want, ", "))
	}
	for i, f := range list[1:] {
		if f.name != want[i] || m.Files[i].Name != f.name || m.Files[i].Size != f.size {
			return found(ProblemMalformed, "file %s: not as the manifest says", f.name)
		}
		v.files[f.name] = f
	}
	if b, err := v.small(fileReadme); err != nil {
		return err
	} else if string(b) != readme {
		return found(ProblemMalformed, "file %s: not the one of version 1", fileReadme)
	}
	return nil
}

// optional returns the name if there is a file of it.
func (*verifier) optional(list []zipFile, name string) []string {
	if slices.ContainsFunc(list, func(f zipFile) bool { return f.name == name }) {
		return []string{name}
	}
	return nil
}

// maxSmall bounds the files that are read whole: manifest, checkpoint, keys.
const maxSmall = 64 << 10

func (v *verifier) small(name string) ([]byte, error) {
	f := v.files[name]
	if f.size > maxSmall {
		return nil, found(ProblemMalformed, "file %s: %d bytes, more than %d", name, f.size, maxSmall)
	}
	b := make([]byte, f.size)
	return b, readAt(v.r, b, f.offset)
}

func (v *verifier) digests(list []zipFile) error {
	for i, f := range list {
		d := newDigester()
		if _, err := io.Copy(d, io.NewSectionReader(v.r, f.offset, f.size)); err != nil {
			return fmt.Errorf("read bundle: %w", err)
		}
		if d.crc != f.crc || i > 0 && d.sum() != v.man.Files[i-1].SHA256 {
			return found(ProblemAltered, "file %s is not the one that was exported", f.name)
		}
	}
	return nil
}

func (v *verifier) contents() error {
	signer := v.checkpoint()
	if f, ok := errors.AsType[*finding](signer); ok && f.problem != ProblemWrongKey && f.problem != ProblemUnpinned {
		return signer
	} else if signer != nil && !ok {
		return signer
	}
	v.rep.Log, v.rep.Scope, v.rep.Run, v.rep.Size = v.cp.Origin, v.man.Scope, v.man.Run, v.cp.Size
	if v.man.Log != v.cp.Origin || v.man.Size != v.cp.Size {
		return found(ProblemMalformed, "%s: not of this checkpoint", fileManifest)
	}
	v.ran = newRan(v.man.Scope, v.cp.Origin, v.man.Run)
	v.opens = v.lines(fileDisclosures)
	if err := v.nextDisclosure(); err != nil {
		return err
	}
	var err error
	if v.man.Scope == ScopeRun {
		err = v.runScope()
	} else {
		err = v.logScope()
	}
	f, _ := errors.AsType[*finding](err)
	if err != nil && (f == nil || f.problem.Exit() < ExitWrongKey) {
		return err
	}
	if v.bad != nil {
		return v.bad
	}
	if v.next != nil {
		return found(ProblemMalformed, "%s: record %d is not in the bundle or out of order", fileDisclosures, v.next.Index)
	}
	v.rep.Intact = true
	if signer != nil && !v.rep.Pinned && len(v.opts.Keys) > 0 {
		return signer
	}
	if e := v.statement(); e != nil {
		v.rep.Intact, v.rep.Complete = false, false
		return e
	}
	if e := v.history(); e != nil {
		return e
	}
	if e := v.anchors(); e != nil {
		return e
	}
	if e := v.newEnough(); e != nil {
		return e
	}
	if v.opts.Run != "" && v.man.Scope == ScopeRun && v.man.Run != v.opts.Run {
		return found(ProblemOtherRun, "this is run %s", v.man.Run)
	}
	if err != nil {
		return err
	}
	return signer
}

// checkpoint reads the checkpoint and says who signed it.
func (v *verifier) checkpoint() error {
	signed, err := v.small(fileCheckpoint)
	if err != nil {
		return err
	}
	text, err := v.small(fileKeys)
	if err != nil {
		return err
	}
	hints := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	const maxHints = 16 // one key and its successors
	if len(hints) > maxHints {
		return found(ProblemMalformed, "%s: more than %d keys", fileKeys, maxHints)
	}
	var answer error
	if len(v.opts.Keys) > 0 {
		v.cp, v.rep.Key, err = OpenCheckpoint(signed, v.opts.Keys...)
		switch {
		case err == nil:
			v.rep.Pinned = true
			return nil
		case errors.Is(err, ErrWrongKey):
			answer = found(ProblemWrongKey, "the checkpoint is signed, and not by the key you pinned")
		case errors.Is(err, ErrBadSignature):
			return found(ProblemAltered, "checkpoint: %v", err)
		default:
			return err
		}
	} else {
		answer = found(ProblemUnpinned, "no key given: everything fits together, and anyone could have made it; give the ledger's key with --key")
	}
	if v.cp, v.rep.Key, err = OpenCheckpoint(signed, hints...); err != nil {
		return found(ProblemAltered, "checkpoint: %v", err)
	}
	return answer
}

// statement derives what ran from the records and wants the bytes of the bundle's
// own statement, so nothing in it has to be believed.
func (v *verifier) statement() error {
	f := v.files[fileStatement]
	if f.size > maxStatement {
		return found(ProblemMalformed, "file %s: %d bytes, more than %d", fileStatement, f.size, maxStatement)
	}
	b := make([]byte, f.size)
	if err := readAt(v.r, b, f.offset); err != nil {
		return err
	}
	var e Envelope
	if err := decodeLine(b, &e); err != nil {
		return found(ProblemMalformed, "%s: %v", fileStatement, err)
	}
	want, err := v.ran.payload(v.cp)
	if err != nil {
		return found(ProblemMalformed, "%s: %v", fileStatement, err)
	}
	signed := verifyStatement(v.rep.Key, &e)
	if e.PayloadType != payloadType || !bytes.Equal(e.Payload, want) {
		// Without its last records and their proofs a run looks open. The statement of
		// the export tells that from one that was.
		var s Statement
		if signed == nil && json.Unmarshal(e.Payload, &s) == nil && s.Predicate.Run == v.man.Run && s.Predicate.Records > v.ran.Records {
			return found(ProblemTruncated, "%d records, the ledger exported %d", v.ran.Records, s.Predicate.Records)
		}
		return found(ProblemStatement, "the records say otherwise than %s: %s", fileStatement, differs(e.Payload, want))
	}
	if signed != nil {
		return found(ProblemStatement, "%s: %v", fileStatement, signed)
	}
	ran := v.ran.Ran
	v.rep.Ran = &ran
	return nil
}

// differs names the first members of a predicate that are not as derived.
func differs(got, want []byte) string {
	var g, w struct {
		Predicate map[string]json.RawMessage `json:"predicate"`
	}
	if json.Unmarshal(got, &g) != nil || json.Unmarshal(want, &w) != nil {
		return "not a statement"
	}
	for _, name := range slices.Sorted(maps.Keys(w.Predicate)) {
		if !bytes.Equal(g.Predicate[name], w.Predicate[name]) {
			return name
		}
	}
	return "its form"
}

// history relates the checkpoint to the one the verifier holds.
func (v *verifier) history() error {
	if v.opts.Since == nil {
		return nil
	}
	switch {
	case v.since.Origin != v.cp.Origin:
		return found(ProblemUnrelated, "the checkpoint you hold is of another ledger, %s", v.since.Origin)
	case v.since.Size > v.cp.Size:
		return found(ProblemRollback, "you hold a checkpoint of %d records, this one has %d", v.since.Size, v.cp.Size)
	case v.since.Size == v.cp.Size:
		if v.since.Root != v.cp.Root {
			return found(ProblemSplitView, "you hold another checkpoint of the same size")
		}
		return nil
	case v.since.Size == 0:
		return nil
	}
	if v.man.Scope == ScopeLog {
		root, err := v.rootOfHashes(v.since.Size)
		if err != nil {
			return err
		}
		if root != v.since.Root {
			return found(ProblemSplitView, "its first %d records are not the ones of the checkpoint you hold", v.since.Size)
		}
		return nil
	}
	if _, ok := v.files[fileConsistency]; !ok {
		return found(ProblemUnrelated, "no consistency proof inside; export again with --since %d", v.since.Size)
	}
	text, err := v.small(fileConsistency)
	if err != nil {
		return err
	}
	var c Consistency
	if err := decodeLine(text, &c); err != nil {
		return found(ProblemMalformed, "%s: %v", fileConsistency, err)
	}
	if c.From != v.since.Size {
		return found(ProblemUnrelated, "the consistency proof starts at %d; export again with --since %d", c.From, v.since.Size)
	}
	if err := VerifyConsistency(v.since, v.cp, c.Path); err != nil {
		return found(ProblemSplitView, "it does not continue the checkpoint you hold: %v", err)
	}
	return nil
}

// disclosed checks the disclosures of one record.
func (v *verifier) disclosed(l *Leaf) error {
	for v.next != nil && v.next.Index == l.Index {
		if err := v.next.Verify(l); err == nil {
			v.rep.Disclosed++
			v.ran.open(v.next)
		} else if v.bad == nil {
			v.bad = foundAt(ProblemDisclosure, l.Index, "field %s: %v", v.next.Field, err)
		}
		last := v.next.Field
		if err := v.nextDisclosure(); err != nil {
			return err
		}
		if v.next != nil && v.next.Index == l.Index && v.next.Field <= last {
			return found(ProblemMalformed, "%s: fields of record %d out of order", fileDisclosures, l.Index)
		}
	}
	return nil
}

func (v *verifier) nextDisclosure() error {
	line, err := v.opens.next()
	if errors.Is(err, io.EOF) {
		v.next = nil
		return nil
	}
	if err != nil {
		return err
	}
	v.next = new(Disclosure)
	if err := decodeLine([]byte(line), v.next); err != nil {
		return found(ProblemMalformed, "%s: %v", fileDisclosures, err)
	}
	return nil
}

// seen takes a record that is right into the report.
func (v *verifier) seen(l *Leaf) {
	v.rep.Records++
	v.last = l.Index
	t := l.Time
	if v.rep.First == nil {
		v.rep.First, v.rep.Last = new(time.Time), new(time.Time)
		*v.rep.First = t
	}
	*v.rep.Last = t
}

// lines reads a section line by line, in blocks, so that the strings of a block
// share one piece of memory.
type lines struct {
	r        io.ReaderAt
	name     string
	off, end int64
	rest     string
	buf      []byte
}

const (
	lineBlock = 256 << 10
	// maxLine is longer than a leaf, a proof, or a disclosure of 32 KiB in base64.
	maxLine = 128 << 10
)

func (v *verifier) lines(name string) *lines {
	f := v.files[name]
	return &lines{r: v.r, name: name, off: f.offset, end: f.offset + f.size}
}

// next returns a line without its end, or io.EOF.
func (l *lines) next() (string, error) {
	for {
		if i := strings.IndexByte(l.rest, '\n'); i >= 0 {
			line := l.rest[:i]
			l.rest = l.rest[i+1:]
			return line, nil
		}
		if l.off == l.end && l.rest == "" {
			return "", io.EOF
		}
		if l.off == l.end || len(l.rest) > maxLine {
			return "", found(ProblemMalformed, "file %s: a line without an end", l.name)
		}
		if l.buf == nil {
			l.buf = make([]byte, min(lineBlock, l.end-l.off))
		}
		b := l.buf[:min(int64(len(l.buf)), l.end-l.off)]
		if err := readAt(l.r, b, l.off); err != nil {
			return "", err
		}
		l.off += int64(len(b))
		// One copy: what is left of the last block, and this one.
		var next strings.Builder
		next.Grow(len(l.rest) + len(b))
		next.WriteString(l.rest)
		next.Write(b)
		l.rest = next.String()
	}
}

// hashLine is HashLeaf for a string.
func hashLine(s string) vault.Digest {
	var small [2048]byte
	return sha256.Sum256(append(append(small[:0], 0), s...))
}
