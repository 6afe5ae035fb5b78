package evidence

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/pilox/vault"
)

// MaxCheckpoint bounds the bytes of a signed checkpoint: the three lines and
// some signatures of log and witnesses.
const MaxCheckpoint = 16 << 10

// A Checkpoint says what a ledger was at one moment: all its leaves, as one hash.
type Checkpoint struct {
	Origin string // the ledger, a schemeless URL; also the name of its key
	Size   uint64 // number of leaves
	Root   vault.Digest
}

// Text returns the signed text: origin, size and root in base64, a line each,
// and no extension lines (https://c2sp.org/tlog-checkpoint).
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatUint(c.Size, 10) + "\n" +
		base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Digest is what an anchor signs or stamps: SHA-256 of the text without
// signature lines.
func (c Checkpoint) Digest() vault.Digest { return sha256.Sum256([]byte(c.Text())) }

// ParseCheckpoint reads the text of a checkpoint, refusing what Text would not
// have written.
func ParseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 {
		return Checkpoint{}, errors.New("parse checkpoint: want three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("parse checkpoint: size: %w", err)
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return Checkpoint{}, errors.New("parse checkpoint: root: want 32 bytes in base64")
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: vault.Digest(root)}
	if c.Origin == "" || len(c.Origin) > MaxName || size > MaxInt || c.Text() != text {
		return Checkpoint{}, errors.New("parse checkpoint: not in canonical form")
	}
	return c, nil
}

// Sign returns c as a signed note. The key's name is the origin.
func (c Checkpoint) Sign(key crypto.Signer) ([]byte, error) {
	s, err := newSigner(c.Origin, key)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	b, err := note.Sign(&note.Note{Text: c.Text()}, s)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return b, nil
}

// VerifierKey returns the public key of a ledger in the form of a note verifier
// key, name+hash+base64: what an auditor pins.
func VerifierKey(origin string, pub crypto.PublicKey) (string, error) {
	ed, ok := pub.(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("ledger key is %T: want Ed25519", pub)
	}
	return note.NewEd25519VerifierKey(origin, ed)
}

// A signer makes a note.Signer of a crypto.Signer, so that a key need not leave
// its keystore.
type signer struct {
	note.Verifier
	key crypto.Signer
}

func newSigner(origin string, key crypto.Signer) (signer, error) {
	vkey, err := VerifierKey(origin, key.Public())
	if err != nil {
		return signer{}, err
	}
	v, err := note.NewVerifier(vkey)
	return signer{v, key}, err
}

func (s signer) Sign(msg []byte) ([]byte, error) {
	return s.key.Sign(rand.Reader, msg, crypto.Hash(0))
}

// Errors of [OpenCheckpoint].
var (
	// ErrWrongKey means that no signature is by one of the keys given.
	ErrWrongKey = errors.New("not signed by the given key")
	// ErrBadSignature means that a signature names a given key and is not by it,
	// or that the note cannot be read.
	ErrBadSignature = errors.New("the signature does not match the text")
)

// OpenCheckpoint reads a signed checkpoint. The signature must be by one of
// keys, and that key's name must be the checkpoint's origin. It returns the key.
func OpenCheckpoint(signed []byte, keys ...string) (Checkpoint, string, error) {
	if len(signed) > MaxCheckpoint {
		return Checkpoint{}, "", fmt.Errorf("open checkpoint: %d bytes, more than %d: %w", len(signed), MaxCheckpoint, ErrBadSignature)
	}
	byHash := map[string]string{}
	var verifiers []note.Verifier
	for _, k := range keys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return Checkpoint{}, "", fmt.Errorf("open checkpoint: key %q: want NAME+HASH+KEY as pvault up prints it: %w", k, err)
		}
		id := v.Name() + "+" + strconv.FormatUint(uint64(v.KeyHash()), 16)
		if _, twice := byHash[id]; !twice {
			byHash[id] = k
			verifiers = append(verifiers, v)
		}
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil {
		if _, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
			return Checkpoint{}, "", fmt.Errorf("open checkpoint: %w", ErrWrongKey)
		}
		return Checkpoint{}, "", fmt.Errorf("open checkpoint: %w: %w", ErrBadSignature, err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, "", fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	for _, s := range n.Sigs {
		if s.Name == c.Origin {
			return c, byHash[s.Name+"+"+strconv.FormatUint(uint64(s.Hash), 16)], nil
		}
	}
	return Checkpoint{}, "", fmt.Errorf("open checkpoint: the key is of another log: %w", ErrWrongKey)
}

// unverifiedCheckpoint reads the text of a signed checkpoint without a look at
// the signatures.
func unverifiedCheckpoint(signed []byte) (Checkpoint, error) {
	text, _, ok := strings.Cut(string(signed), "\n\n")
	if !ok || len(signed) > MaxCheckpoint {
		return Checkpoint{}, errors.New("parse checkpoint: no signature")
	}
	return ParseCheckpoint(text + "\n")
}
