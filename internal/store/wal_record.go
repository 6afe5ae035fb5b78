package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A walRecord is one batch in the local log.
type walRecord struct {
	before, after evidence.Head
	entries       []evidence.Entry
	sealed        []evidence.Sealed
	segment       int // which file it is in
}

// A record in a file: magic, length of the payload and its CRC-32C, each four
// bytes, then the payload. The checksum tells a torn write. Who changes a file on
// purpose is found out by the chain, like one who changes the database.
const (
	walMagic  = 0x76776131
	walHeader = 12
	// maxWALRecord is more than the largest batch of a ledger with its fields.
	maxWALRecord = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendTo appends the bytes of r to b.
func (r *walRecord) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, walHeader)...)
	for _, h := range []*evidence.Head{&r.before, &r.after} {
		b = binary.BigEndian.AppendUint64(b, h.Epoch)
		b = binary.BigEndian.AppendUint64(b, h.Size)
		b = append(append(b, h.Chain[:]...), h.Root[:]...)
		b = copyField(b, h.Frontier)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.entries)))
	for i := range r.entries {
		e := &r.entries[i]
		b = binary.BigEndian.AppendUint64(b, e.Index)
		b = binary.BigEndian.AppendUint64(b, uint64(e.Micro))
		b = copyField(b, string(e.Run))
		b = copyField(b, string(e.Class))
		b = copyField(b, e.Leaf)
		b = append(append(b, e.Hash[:]...), e.Chain[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.sealed)))
	for i := range r.sealed {
		s := &r.sealed[i]
		b = binary.BigEndian.AppendUint64(b, s.Index)
		b = copyField(b, s.Field)
		b = copyField(b, s.Nonce)
		b = copyField(b, s.Text)
		b = copyField(b, s.Key)
	}
	sealPayload(b[start:])
	return b
}

// sealPayload writes the header before the payload of a record.
func sealPayload(b []byte) []byte {
	payload := b[walHeader:]
	binary.BigEndian.PutUint32(b, walMagic)
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	binary.BigEndian.PutUint32(b[8:], crc32.Checksum(payload, castagnoli))
	return b
}

var errNoRecord = errors.New("no record")

// readRecord reads the record at the start of b and returns its length. It is
// errNoRecord for anything but a whole one.
func readRecord(b []byte) (*walRecord, int, error) {
	if len(b) < walHeader || binary.BigEndian.Uint32(b) != walMagic {
		return nil, 0, errNoRecord
	}
	n := int(binary.BigEndian.Uint32(b[4:]))
	if n > maxWALRecord || n > len(b)-walHeader || crc32.Checksum(b[walHeader:walHeader+n], castagnoli) != binary.BigEndian.Uint32(b[8:]) {
		return nil, 0, errNoRecord
	}
	in := walBytes{b: b[walHeader : walHeader+n]}
	r := new(walRecord)
	for _, h := range []*evidence.Head{&r.before, &r.after} {
		h.Epoch, h.Size = in.number(), in.number()
		h.Chain, h.Root = in.digest(), in.digest()
		h.Frontier = in.field()
	}
	for range in.count() {
		e := evidence.Entry{Index: in.number(), Micro: int64(in.number())}
		e.Run, e.Class = vault.TaskID(in.field()), vault.Class(in.field())
		e.Leaf = in.field()
		e.Hash, e.Chain = in.digest(), in.digest()
		r.entries = append(r.entries, e)
	}
	for range in.count() {
		s := evidence.Sealed{Index: in.number()}
		s.Field, s.Nonce, s.Text = string(in.field()), in.field(), in.field()
		s.Key = string(in.field())
		r.sealed = append(r.sealed, s)
	}
	if in.bad || len(in.b) != 0 || r.after.Size != r.before.Size+uint64(len(r.entries)) || len(r.entries) == 0 {
		return nil, 0, errNoRecord
	}
	return r, walHeader + n, nil
}

// walBytes takes values off the front of b. After the first that is not there it
// is bad and gives zeros.
type walBytes struct {
	b   []byte
	bad bool
}

func (w *walBytes) take(n int) []byte {
	if w.bad || n < 0 || n > len(w.b) {
		w.bad, w.b = true, nil
		return nil
	}
	b := w.b[:n:n]
	w.b = w.b[n:]
	return b
}

func (w *walBytes) number() uint64 {
	if b := w.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// count reads how many values follow: no more than there are bytes.
func (w *walBytes) count() int {
	b := w.take(4)
	if b == nil {
		return 0
	}
	n := int(binary.BigEndian.Uint32(b))
	if n > len(w.b)/16 { // each takes at least two numbers
		w.bad = true
		return 0
	}
	return n
}

func (w *walBytes) field() []byte {
	b := w.take(4)
	if b == nil {
		return nil
	}
	return slices.Clone(w.take(int(binary.BigEndian.Uint32(b))))
}

func (w *walBytes) digest() (d vault.Digest) {
	copy(d[:], w.take(len(d)))
	return d
}
