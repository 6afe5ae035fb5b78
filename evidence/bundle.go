package evidence

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/pilox/vault"
)

// The files of a bundle, in the order in which they stand.
const (
	fileManifest    = "manifest.json"     // what the bundle is, and the digest of every other file
	fileReadme      = "README.txt"        // for people
	fileCheckpoint  = "checkpoint"        // signed note
	fileKeys        = "keys.txt"          // verifier keys, one a line: hints, never trust
	fileLeaves      = "leaves.jsonl"      // exact leaf bytes, one a line
	fileProofs      = "proofs.jsonl"      // scope run: inclusion proof of each leaf
	fileHashes      = "hashes.bin"        // scope log: leaf hash of each leaf, 32 bytes
	fileConsistency = "consistency.json"  // optional: proof from an older checkpoint
	fileDisclosures = "disclosures.jsonl" // opened fields, by record; may be empty
	fileAnchors     = "anchors.jsonl"     // optional: what others vouch for
	fileWitnesses   = "witnesses.txt"     // optional: the ledger's witness policy, a hint
	fileStatement   = "statement.json"    // what ran: DSSE envelope, in-toto statement
)

// A Scope says which records a bundle holds.
type Scope string

// The scopes.
const (
	ScopeRun Scope = "run" // every record of one run
	ScopeLog Scope = "log" // every record of the ledger up to the checkpoint
)

// A Manifest says what a bundle is. Its members are sorted, so its encoding is
// canonical.
type Manifest struct {
	Count   uint64       `json:"count"` // records
	Files   []FileDigest `json:"files"` // every file but this one, in order
	Log     string       `json:"log"`   // origin
	Run     vault.TaskID `json:"run"`   // scope run
	Scope   Scope        `json:"scope"`
	Size    uint64       `json:"size"` // of the tree at the checkpoint
	Type    string       `json:"type"` // "vault/bundle"
	Version int          `json:"v"`
}

const bundleType = "vault/bundle"

// A FileDigest names one file of a bundle.
type FileDigest struct {
	Name   string       `json:"name"`
	SHA256 vault.Digest `json:"sha256"`
	Size   int64        `json:"size"`
}

// A Consistency is a proof that the ledger at Size From is a prefix of the one
// at the checkpoint.
type Consistency struct {
	From uint64         `json:"from"`
	Path []vault.Digest `json:"path"`
}

// An Inclusion is the proof that the record at Index is in the tree.
type Inclusion struct {
	Index uint64         `json:"idx"`
	Path  []vault.Digest `json:"path"`
}

// A Bundle is what [Bundle.WriteTo] puts into a file. The functions write one
// section each; they are called twice, first to take the digest, and must write
// the same bytes both times.
type Bundle struct {
	Scope       Scope
	Run         vault.TaskID // for scope run
	Count       uint64       // records
	Checkpoint  []byte       // signed
	Keys        []string     // verifier keys of the ledger
	Consistency *Consistency // nil: none
	Anchors     []Anchor     // of this checkpoint or older ones; nil: none
	Witnesses   []byte       // witness policy of the ledger, a hint; nil: none
	// Sign signs the statement of what ran for the ledger of the checkpoint, see
	// [SignStatement]. Required.
	Sign func(payload []byte) (EnvelopeSignature, error)

	Leaves      func(w *LeafWriter) error
	Proofs      func(yield func(Inclusion) error) error // for scope run
	Hashes      func(yield func(vault.Digest) error) error
	Disclosures func(yield func(Disclosure) error) error // nil: none
}

// A LeafWriter takes the exact bytes of leaves.
type LeafWriter struct {
	w   io.Writer
	ran *ran // nil: not asked what ran
}

// Write appends one leaf.
func (w *LeafWriter) Write(leaf []byte) error {
	if bytes.IndexByte(leaf, '\n') >= 0 || len(leaf) > MaxLeaf {
		return errors.New("write leaf: not a leaf")
	}
	if w.ran != nil {
		l, err := ParseLeaf(leaf)
		if err != nil {
			return fmt.Errorf("write leaf: %w", err)
		}
		w.ran.add(l, HashLeaf(leaf))
	}
	if _, err := w.w.Write(leaf); err != nil {
		return err
	}
	_, err := w.w.Write([]byte{'\n'})
	return err
}

// WriteTo writes the bundle as a deterministic zip: the same records, checkpoint
// and disclosures give the same bytes.
func (b *Bundle) WriteTo(w io.Writer) (int64, error) {
	cp, err := unverifiedCheckpoint(b.Checkpoint)
	if err != nil {
		return 0, fmt.Errorf("write bundle: %w", err)
	}
	m := Manifest{
		Count: b.Count, Log: cp.Origin, Run: b.Run, Scope: b.Scope, Size: cp.Size,
		Type: bundleType, Version: 1,
	}
	ran := newRan(b.Scope, cp.Origin, b.Run)
	sections := b.sections(ran, cp)
	files := make([]zipFile, 1, len(sections)+1)
	for _, s := range sections {
		d := newDigester()
		if err := s.write(d); err != nil {
			return 0, fmt.Errorf("write bundle: %s: %w", s.name, err)
		}
		files = append(files, zipFile{name: s.name, size: d.n, crc: d.crc})
		m.Files = append(m.Files, FileDigest{s.name, d.sum(), d.n})
	}
	text, err := encodeLine(m)
	if err != nil {
		return 0, fmt.Errorf("write bundle: %w", err)
	}
	files[0] = zipFile{name: fileManifest, size: int64(len(text)), crc: crc32.ChecksumIEEE(text)}
	dir, err := layout(files)
	if err != nil {
		return 0, fmt.Errorf("write bundle: %w", err)
	}
	out := &counter{w: w}
	buf := bufio.NewWriterSize(out, 64<<10)
	buf.Write(files[0].local(nil)) // bufio keeps the error for Flush
	buf.Write(text)
	for i, s := range sections {
		f := &files[i+1]
		buf.Write(f.local(nil))
		d := newDigester()
		if err := s.write(io.MultiWriter(buf, d)); err != nil {
			return out.n, fmt.Errorf("write bundle: %s: %w", s.name, err)
		}
		// An erasure between the passes, most likely. The reader would refuse it.
		if d.n != f.size || d.sum() != m.Files[i].SHA256 {
			return out.n, fmt.Errorf("write bundle: %s: changed while it was exported; export again", s.name)
		}
	}
	buf.Write(dir)
	err = buf.Flush()
	return out.n, err
}

type section struct {
	name  string
	write func(io.Writer) error
}

// sections lists the files. The statement comes last: it tells what was seen while
// the records and opened fields before it were written the first time.
func (b *Bundle) sections(ran *ran, cp Checkpoint) []section {
	var statement []byte
	list := []section{
		{fileReadme, text(readme)},
		{fileCheckpoint, text(string(b.Checkpoint))},
		{fileKeys, func(w io.Writer) error {
			for _, k := range b.Keys {
				if _, err := io.WriteString(w, k+"\n"); err != nil {
					return err
				}
			}
			return nil
		}},
		{fileLeaves, func(w io.Writer) error {
			if statement != nil {
				return b.Leaves(&LeafWriter{w: w})
			}
			return b.Leaves(&LeafWriter{w, ran})
		}},
	}
	if b.Scope == ScopeRun {
		list = append(list, section{fileProofs, func(w io.Writer) error {
			return b.Proofs(func(p Inclusion) error { return writeLine(w, p) })
		}})
	} else {
		list = append(list, section{fileHashes, func(w io.Writer) error {
			return b.Hashes(func(d vault.Digest) error {
				_, err := w.Write(d[:])
				return err
			})
		}})
	}
	if b.Consistency != nil {
		list = append(list, section{fileConsistency, func(w io.Writer) error { return writeLine(w, b.Consistency) }})
	}
	list = append(list, section{fileDisclosures, func(w io.Writer) error {
		if b.Disclosures == nil {
			return nil
		}
		return b.Disclosures(func(d Disclosure) error {
			if statement == nil {
				ran.open(&d)
			}
			return writeLine(w, d)
		})
	}})
	if b.Anchors != nil {
		list = append(list, section{fileAnchors, func(w io.Writer) error {
			for i := range b.Anchors {
				if err := writeLine(w, &b.Anchors[i]); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	if b.Witnesses != nil {
		list = append(list, section{fileWitnesses, text(string(b.Witnesses))})
	}
	return append(list, section{fileStatement, func(w io.Writer) error {
		if statement == nil {
			payload, err := ran.payload(cp)
			if err != nil {
				return err
			}
			sig, err := b.Sign(payload)
			if err != nil {
				return err
			}
			if statement, err = encodeLine(Envelope{payload, payloadType, []EnvelopeSignature{sig}}); err != nil {
				return err
			}
		}
		_, err := w.Write(statement)
		return err
	}})
}

const readme = `This is evidence of what an agent was allowed to do and did under Vault.

Check it with
    pvault audit verify --key NAME+HASH+KEY THIS-FILE
where the key is the one you were given when the ledger was set up. The keys in
keys.txt are hints: anyone can write a file of their own with their own key.

manifest.json      what this is, with the SHA-256 of every other file
checkpoint         C2SP signed note over the RFC 6962 tree of the ledger
leaves.jsonl       the records, one a line, exact bytes
proofs.jsonl       for one run: the inclusion proof of each record
hashes.bin         for a whole ledger: the leaf hash of each record, 32 bytes
consistency.json   that the ledger only grew since an older checkpoint
disclosures.jsonl  opened fields: value, salt and path to the root in the record
anchors.jsonl      checkpoints that others vouch for: witnesses, transparency logs
witnesses.txt      the witnesses of the ledger: a hint, your own policy counts
statement.json     what ran: in-toto statement in a DSSE envelope, all of it derived
                   from the records
`

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

// encodeLine encodes v as one line of JSON. The struct types of this package
// have their members in sorted order.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func writeLine(w io.Writer, v any) error {
	b, err := encodeLine(v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// decodeLine is the inverse of encodeLine and refuses what it does not write.
func decodeLine(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	again, err := encodeLine(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSuffix(line, []byte{'\n'}), bytes.TrimSuffix(again, []byte{'\n'})) {
		return errors.New("not in canonical form")
	}
	return nil
}

// A digester takes size, SHA-256 and CRC-32 of what is written to it.
type digester struct {
	n   int64
	crc uint32
	sha interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func newDigester() *digester { return &digester{sha: sha256.New()} }

func (d *digester) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	d.crc = crc32.Update(d.crc, crc32.IEEETable, p)
	return d.sha.Write(p)
}

func (d *digester) sum() vault.Digest { return vault.Digest(d.sha.Sum(nil)) }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
