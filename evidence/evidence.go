// Package evidence holds the public formats of Vault's ledger and verifies them
// offline: the leaf, the field commitments, the checkpoint, the proofs and the
// bundle.
//
// It owns the bytes. It does not own a ledger, a database or a key, and it reads
// no file and no network: whoever holds a bundle and a public key needs nothing
// else. It builds for js/wasm. Start with [Verify]; producers start with
// [Leaf.Append], [Commit] and [NewWriter].
//
// # What it promises
//
// A [Leaf] has one encoding: the RFC 8785 form of a JSON object with a fixed set
// of members. [ParseLeaf] refuses every other byte sequence, so parsing and
// encoding again gives the same bytes. The leaf hash is that of RFC 6962, the
// tree over the leaves too, and a [Checkpoint] is a C2SP signed note
// (https://c2sp.org/tlog-checkpoint) signed with Ed25519. Version 1 of these
// formats does not change; a change is a version 2 beside it.
//
// Sensitive values are not in the leaf. It holds the root of an RFC 6962 tree
// over one salted commitment per field, so a value can be disclosed alone,
// withheld, or erased, and no proof changes.
//
// # The bundle
//
// A zip of stored files without times, extras, comments or gaps, in this order:
// manifest.json, README.txt, checkpoint, keys.txt, leaves.jsonl, then proofs.jsonl
// for one run or hashes.bin for a whole ledger, consistency.json if asked for,
// disclosures.jsonl, anchors.jsonl and witnesses.txt if there are any, and
// statement.json. Each line of JSON has exactly the members of its type in the
// order of its declaration ([Manifest], [Inclusion], [Consistency], [Disclosure],
// [Anchor], [Envelope]), without spaces; digests are lower-case hex, bytes standard
// base64. The manifest has the SHA-256 of every other file. [Statement] follows
// from the records. An [Anchor] brings its own checkpoint and the proof that the
// bundle's continues it. Keys and witnesses inside are hints.
//
// The verifiers in contrib/ are written from this text, and held to the table in
// testdata/table.json with this one.
//
// What a bundle can show, and what it cannot, is spelled out on [Report].
package evidence

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/pilox/vault"
)

// Limits of version 1. A producer stays below them, a verifier refuses more.
const (
	// MaxLeaf bounds the bytes of one leaf. A usual leaf has about 800; what can
	// make it long are debits and the name of a tool. An entry bundle of tlog-tiles has
	// 16 bits for its length.
	MaxLeaf = 1<<16 - 1
	// MaxBundle bounds the bytes of a bundle: a million usual leaves.
	MaxBundle = 1 << 30
	// MaxFields bounds the fields of one leaf. The classes of today have at most
	// five; a proof over 64 is 6 hashes.
	MaxFields = 64
	// MaxDebits bounds the counters that one call moves: a chain has at most a
	// few dozen links, each with a handful of budgets.
	MaxDebits = 128
	// MaxName bounds ids and names inside a leaf, in bytes.
	MaxName = 1024
	// MaxInt is the largest integer a leaf writes as a JSON number; beyond it a
	// double does not keep its neighbours apart, so it becomes a string.
	MaxInt = 1<<53 - 1
)

// HashLeaf returns the RFC 6962 leaf hash: SHA-256(0x00 ‖ leaf).
func HashLeaf(leaf []byte) vault.Digest {
	var small [2048]byte // no allocation for a usual leaf
	return sha256.Sum256(append(append(small[:0], 0), leaf...))
}

// hashNode returns the RFC 6962 node hash: SHA-256(0x01 ‖ left ‖ right). It is
// what the Merkle library is run with.
func hashNode(left, right []byte) []byte {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left)
	copy(b[1+sha256.Size:], right)
	h := sha256.Sum256(b[:])
	return h[:]
}

// Chain returns chain_n = SHA-256("vault/chain/v1" ‖ chain_{n−1} ‖ leaf hash n).
// The chain before the first leaf is the zero digest. It makes every prefix of a
// ledger a single value that its own store can be checked against cheaply.
func Chain(prev, leaf vault.Digest) vault.Digest {
	const context = "vault/chain/v1"
	var b [len(context) + 2*sha256.Size]byte
	n := copy(b[:], context)
	n += copy(b[n:], prev[:])
	copy(b[n:], leaf[:])
	return sha256.Sum256(b[:])
}

// An Entry is a leaf as a ledger stores it.
type Entry struct {
	Index uint64
	Micro int64 // time of the leaf, microseconds since 1970
	Run   vault.TaskID
	Class vault.Class
	Leaf  []byte       // exact bytes
	Hash  vault.Digest // RFC 6962 leaf hash
	Chain vault.Digest // up to and with this leaf
}

// A Sealed is a field as a ledger stores it, beside its leaf: encrypted, and
// erasable without a trace in the leaf. See [Opened.Seal].
type Sealed struct {
	Index uint64
	Field string
	Nonce []byte
	Text  []byte // ciphertext
	Key   string // id of the key
}

// A Head is the state of a stored ledger. The zero Head is that of an empty one.
type Head struct {
	Epoch    uint64 // of the daemon that may append; the fence against a stale one
	Size     uint64 // number of leaves
	Chain    vault.Digest
	Root     vault.Digest // RFC 6962 root; the zero digest for an empty ledger
	Frontier []byte       // compact range, 32 bytes a node, left to right
}

// appendUint64 appends n as eight bytes, big endian.
func appendUint64(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(b, n) }
