package evidence

import (
	"crypto/sha256"
	"errors"
	"io"

	"github.com/pilox/vault"
)

// runScope checks the records of one run: each is in the tree, and together they
// are the run from its first record to its last.
func (v *verifier) runScope() error {
	leaves, proofs := v.lines(fileLeaves), v.lines(fileProofs)
	var prev vault.Digest
	closed := false
	for seq := uint64(0); ; seq++ {
		line, err := leaves.next()
		if errors.Is(err, io.EOF) {
			if seq != v.man.Count || seq == 0 {
				return found(ProblemTruncated, "%d records, the manifest says %d", seq, v.man.Count)
			}
			if _, err := proofs.next(); !errors.Is(err, io.EOF) {
				return found(ProblemTruncated, "there are proofs of more records than the %d that are there", seq)
			}
			break
		}
		if err != nil {
			return err
		}
		p, err := proofs.inclusion()
		if err != nil {
			return err
		}
		h := hashLine(line)
		l := new(Leaf)
		parsed := l.parse(line)
		if p.check(h, v.cp) != nil {
			return v.runMisfit(line, l, parsed, h, seq, p.Index)
		}
		switch {
		case parsed != nil:
			return foundAt(ProblemMalformed, p.Index, "%v", parsed)
		case l.Log != v.cp.Origin || l.Index != p.Index || l.Run != v.man.Run:
			return foundAt(ProblemMalformed, p.Index, "the record is of another ledger, place or run")
		case l.RunSeq != seq:
			return v.runMisplaced(leaves, l, seq)
		case l.PrevRunLeaf != prev:
			return foundAt(ProblemAltered, l.Index, "it does not follow the record before it")
		case closed:
			return foundAt(ProblemMalformed, l.Index, "a record after the run was closed")
		}
		v.ran.add(l, h)
		prev = h
		closed = l.Class == vault.ClassTask && l.Phase == vault.PhaseClosed
		if err := v.disclosed(l); err != nil {
			return err
		}
		v.seen(l)
	}
	if !closed {
		return found(ProblemIncomplete, "run %s is open: later records may exist; close the task and export again", v.man.Run)
	}
	v.rep.Complete = true
	return nil
}

// runMisfit says what a record is whose proof, the one at its position, does not
// hold: altered, or a sound record in the wrong place.
func (v *verifier) runMisfit(line string, l *Leaf, parsed error, h vault.Digest, seq, at uint64) error {
	if parsed == nil && l.Index != at {
		proofs := v.lines(fileProofs)
		for {
			p, err := proofs.inclusion()
			if err != nil {
				break
			}
			if p.Index == l.Index && p.check(h, v.cp) == nil {
				leaves := v.lines(fileLeaves)
				for s := ""; s != line; {
					if s, err = leaves.next(); err != nil {
						return err
					}
				}
				return v.runMisplaced(leaves, l, seq)
			}
		}
	}
	return foundAt(ProblemAltered, at, "the record is not the one under the checkpoint")
}

// runMisplaced says of a sound record that is not number seq of its run whether
// that one comes later or is not there.
func (v *verifier) runMisplaced(rest *lines, l *Leaf, seq uint64) error {
	later := new(Leaf)
	for l.RunSeq > seq {
		line, err := rest.next()
		if errors.Is(err, io.EOF) {
			return foundAt(ProblemDropped, l.Index, "record %d of the run is missing before this one, which is %d", seq, l.RunSeq)
		}
		if err != nil {
			return err
		}
		if later.parse(line) == nil && later.RunSeq == seq {
			break
		}
	}
	return foundAt(ProblemSwapped, l.Index, "it stands where record %d of the run belongs, and is %d", seq, l.RunSeq)
}

// inclusion reads the next proof.
func (l *lines) inclusion() (*Inclusion, error) {
	line, err := l.next()
	if errors.Is(err, io.EOF) {
		return nil, found(ProblemMalformed, "%s: a record has no proof", l.name)
	}
	if err != nil {
		return nil, err
	}
	p := new(Inclusion)
	if err := decodeLine([]byte(line), p); err != nil {
		return nil, found(ProblemMalformed, "%s: %v", l.name, err)
	}
	return p, nil
}

// logScope checks every record of a ledger. The leaf hashes are held against the
// checkpoint first, so that a wrong record can be named.
func (v *verifier) logScope() error {
	n := uint64(v.files[fileHashes].size) / sha256.Size
	if v.files[fileHashes].size%sha256.Size != 0 || v.man.Run != "" {
		return found(ProblemMalformed, "%s: not a list of hashes", fileHashes)
	}
	root, err := v.rootOfHashes(n)
	if err != nil {
		return err
	}
	if n != v.cp.Size || root != v.cp.Root {
		return v.logStructure(n)
	}
	leaves, hashes := &batches{lines: v.lines(fileLeaves)}, v.hashes()
	runs := map[vault.TaskID]*runState{}
	var run *runState
	for i := range n {
		want, err := hashes.next()
		if err != nil {
			return err
		}
		read, err := leaves.next()
		if errors.Is(err, io.EOF) {
			return foundAt(ProblemTruncated, i, "%d records of %d", i, n)
		}
		if err != nil {
			return err
		}
		l := &read.leaf
		if read.hash != want {
			rest, err := v.linesFrom(fileLeaves, i+1)
			if err != nil {
				return err
			}
			return v.logMisfit(rest, read.hash, l, read.bad, i, n)
		}
		switch {
		case read.bad != nil:
			return foundAt(ProblemMalformed, i, "%v", read.bad)
		case l.Log != v.cp.Origin || l.Index != i:
			return foundAt(ProblemMalformed, i, "the record is of another ledger or place")
		}
		if run == nil || run.id != l.Run { // neighbours are often of one run
			if run = runs[l.Run]; run == nil {
				run = &runState{id: l.Run}
				runs[l.Run] = run
			}
		}
		if !run.follow(l, want) {
			return foundAt(ProblemAltered, i, "it does not follow the record before it in its run")
		}
		v.ran.add(l, want)
		if v.next != nil {
			if err := v.disclosed(l); err != nil {
				return err
			}
		}
		v.seen(l)
	}
	if _, err := leaves.next(); !errors.Is(err, io.EOF) || v.man.Count != n {
		return found(ProblemMalformed, "%s: more records than the checkpoint has", fileLeaves)
	}
	for id, r := range runs {
		if id != "" && !r.closed { // the daemon's own run never ends
			v.rep.OpenRuns++
		}
	}
	v.rep.Complete = true
	if want := v.opts.Run; want != "" {
		v.rep.Run = want
		if runs[want] == nil {
			v.rep.Complete = false
			return found(ProblemOtherRun, "no record of run %s", want)
		}
		if !runs[want].closed {
			v.rep.Complete = false
			return found(ProblemIncomplete, "run %s is open", want)
		}
	}
	return nil
}

// runState is how far a run has come.
type runState struct {
	id     vault.TaskID
	next   uint64
	prev   vault.Digest
	closed bool
}

// follow takes the next record of a run and reports whether it fits.
func (r *runState) follow(l *Leaf, h vault.Digest) bool {
	if r.closed || l.RunSeq != r.next || l.PrevRunLeaf != r.prev {
		return false
	}
	r.next, r.prev = r.next+1, h
	r.closed = l.Class == vault.ClassTask && l.Phase == vault.PhaseClosed
	return true
}

// logMisfit says what a record is that is not the one under the checkpoint at i.
func (v *verifier) logMisfit(rest *lines, h vault.Digest, l *Leaf, parsed error, i, n uint64) error {
	if parsed != nil || l.Index == i || l.Index >= n {
		return foundAt(ProblemAltered, i, "the record is not the one under the checkpoint")
	}
	at, err := v.hashAt(l.Index)
	if err != nil {
		return err
	}
	if at != h {
		return foundAt(ProblemAltered, i, "the record is not the one under the checkpoint")
	}
	return v.logMisplaced(rest, l, i)
}

// logMisplaced says of a sound record that is not number i whether that one
// comes later or is not there.
func (v *verifier) logMisplaced(rest *lines, l *Leaf, i uint64) error {
	got := l.Index
	later := new(Leaf)
	for got > i {
		line, err := rest.next()
		if errors.Is(err, io.EOF) {
			return foundAt(ProblemDropped, i, "record %d stands where it belongs", got)
		}
		if err != nil {
			return err
		}
		if later.parse(line) == nil && later.Index == i {
			break
		}
	}
	return foundAt(ProblemSwapped, i, "record %d stands where it belongs", got)
}

// logStructure looks for what is wrong when the leaf hashes are not those under
// the checkpoint either, by what the records say about each other.
func (v *verifier) logStructure(n uint64) error {
	leaves := v.lines(fileLeaves)
	runs := map[vault.TaskID]*runState{}
	last := map[vault.TaskID]uint64{}
	l := new(Leaf)
	i := uint64(0)
	for ; ; i++ {
		line, err := leaves.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := l.parse(line); err != nil {
			return foundAt(ProblemAltered, i, "%v", err)
		}
		if l.Index != i {
			return v.logMisplaced(leaves, l, i)
		}
		r := runs[l.Run]
		if r == nil {
			r = &runState{id: l.Run}
			runs[l.Run] = r
		}
		if !r.follow(l, hashLine(line)) {
			return foundAt(ProblemAltered, last[l.Run], "the next record of its run, %d, does not follow it", i)
		}
		last[l.Run] = i
	}
	if i < v.cp.Size {
		return foundAt(ProblemTruncated, i, "%d records of %d", i, v.cp.Size)
	}
	return found(ProblemAltered, "the %d leaf hashes are not those under the checkpoint", n)
}

// hashReader reads hashes.bin.
type hashReader struct {
	r    io.Reader
	buf  []byte
	rest []byte
}

func (v *verifier) hashes() *hashReader {
	f := v.files[fileHashes]
	return &hashReader{r: io.NewSectionReader(v.r, f.offset, f.size), buf: make([]byte, 64<<10)}
}

func (h *hashReader) next() (vault.Digest, error) {
	if len(h.rest) == 0 {
		n, err := io.ReadFull(h.r, h.buf)
		if n == 0 {
			return vault.Digest{}, err
		}
		h.rest = h.buf[:n-n%sha256.Size]
	}
	d := vault.Digest(h.rest[:sha256.Size])
	h.rest = h.rest[sha256.Size:]
	return d, nil
}

func (v *verifier) hashAt(i uint64) (d vault.Digest, err error) {
	err = readAt(v.r, d[:], v.files[fileHashes].offset+int64(i)*sha256.Size)
	return d, err
}

// rootOfHashes returns the root over the first n leaf hashes.
func (v *verifier) rootOfHashes(n uint64) (vault.Digest, error) {
	t := NewTree(0)
	hashes := v.hashes()
	for range n {
		h, err := hashes.next()
		if err != nil {
			return vault.Digest{}, err
		}
		t.Append(h)
	}
	return t.Root(), nil
}
