// Package keystore keeps private keys in files of one directory: the node's own
// signing keys, one per purpose; symmetric keys that encrypt the details of the
// ledger and can be erased; and the keys of the people who answer approvals.
//
// It owns how keys rest on disk and who may read them. It does not decide what a
// key signs and it holds no keys of agents. Start with [Open] for a node and with
// [Approvers] for people.
//
// It promises: a key is written atomically and is durable before it is used; a
// file or directory that others can reach, that another user owns, or that is a
// symbolic link is refused and never repaired silently; keys of two purposes are
// two keys; an erased data key is never returned again; no error holds key
// material. It does not promise more than the file system gives: a node's keys
// lie on disk unencrypted, protected by mode bits alone. [Store.Describe] says so
// in words for the operator.
package keystore

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// A Purpose is what a signing key is for. A key of one purpose never signs for
// another, so a signature made for the ledger cannot pass for a capability.
type Purpose string

// The purposes a node has keys for (FORMATS section 1).
const (
	TenantRoot Purpose = "tenant-root" // root links of capability chains
	Gateway    Purpose = "gateway"     // answers that open a session
	Approval   Purpose = "approval"    // questions to people
	Ledger     Purpose = "ledger"      // checkpoints
	Anchor     Purpose = "anchor"      // digests anchored outside; P-256, see [Store.AnchorKey]
	StatusList Purpose = "status-list" // lists of what was revoked, for others
)

// Errors to branch on.
var (
	// ErrUnsafe means that a file or directory is reachable or owned by someone
	// else, or is not what it must be. Its text says how to repair that.
	ErrUnsafe = errors.New("unsafe key file")
	// ErrNoKey means that there is no such key, or no more.
	ErrNoKey = errors.New("no such key")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("key store is closed")
)

// A Store is an open key directory. It is safe for concurrent use.
type Store struct {
	dir  *dir // node keys
	data *dir // data keys, a directory of its own so that backups can leave it out

	mu     sync.Mutex // guards what follows
	closed bool
	keys   map[Purpose]*Key
	cache  map[string][]byte // data keys by name, at most maxCached
}

// dataDir is the sub-directory of data keys. Backups of the database must not
// hold it, or erasing a key would not reach them.
const dataDir = "data-keys"

// maxCached bounds the data keys held in memory: enough for the subjects that
// are active at the same time, and 128 KiB.
const maxCached = 4096

// Open opens the key directory at path and makes it, with mode 0700, if it does
// not exist. Keys are made when they are first asked for.
func Open(path string) (*Store, error) {
	d, err := openDir(path)
	if err != nil {
		return nil, fmt.Errorf("open key store: %w", err)
	}
	data, err := openDir(filepath.Join(path, dataDir))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open key store: %w", err), d.close())
	}
	return &Store{dir: d, data: data, keys: make(map[Purpose]*Key), cache: make(map[string][]byte)}, nil
}

// Close wipes every key that the store holds in memory. Keys it handed out stop
// working. Copies that the runtime or the kernel made on the way are out of reach.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for _, k := range s.keys {
		k.wipe()
	}
	for _, k := range s.cache {
		clear(k)
	}
	s.keys, s.cache = nil, nil
	return errors.Join(s.dir.close(), s.data.close())
}

// Signer returns the Ed25519 key for purpose p. The first call ever makes it.
func (s *Store) Signer(p Purpose) (*Key, error) {
	if !known(p) {
		return nil, fmt.Errorf("signing key: unknown purpose %q", p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if k := s.keys[p]; k != nil {
		return k, nil
	}
	k, err := s.load(p)
	if errors.Is(err, os.ErrNotExist) {
		k, err = s.create(p)
	}
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", p, err)
	}
	s.keys[p] = k
	return k, nil
}

func known(p Purpose) bool {
	switch p {
	case TenantRoot, Gateway, Approval, Ledger, StatusList:
		return true
	case Anchor: // another algorithm, see AnchorKey
	}
	return false
}

func (s *Store) load(p Purpose) (*Key, error) {
	b, err := s.dir.read(string(p)+".pem", maxKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	priv, err := decodePrivate(b, string(p))
	if err != nil {
		return nil, err
	}
	return newKey(p, priv), nil
}

// create makes the key of p. If another process makes it at the same moment,
// that one's key is loaded: the file is never replaced.
func (s *Store) create(p Purpose) (*Key, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	defer clear(priv)
	b, err := encodePrivate(priv, string(p))
	if err != nil {
		return nil, err
	}
	defer clear(b)
	if err := s.dir.create(string(p)+".pem", b); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	// Read it back, so that what signs is what rests on disk.
	return s.load(p)
}

// Describe says in sentences what protects the keys, for pvault doctor.
func (s *Store) Describe() []string {
	return []string{
		"Node keys are files in " + s.dir.path + ". They are not encrypted: mode 0600 in a directory of mode 0700 is all that protects them.",
		"Whoever runs as the same user, as root, or reads a backup of that directory has the keys and can sign as this node.",
		"Keys that encrypt ledger details are files in " + s.data.path + ". Leave that directory out of database backups, or erasing a key does not reach them.",
	}
}

// A Key is a node's signing key for one purpose. It implements [crypto.Signer]
// and is safe for concurrent use.
type Key struct {
	purpose Purpose
	public  ed25519.PublicKey

	mu   sync.RWMutex // guards priv
	priv ed25519.PrivateKey
}

func newKey(p Purpose, priv ed25519.PrivateKey) *Key {
	return &Key{purpose: p, public: priv.Public().(ed25519.PublicKey), priv: priv}
}

// Purpose returns what the key is for.
func (k *Key) Purpose() Purpose { return k.purpose }

// Public returns the public half, an [ed25519.PublicKey].
func (k *Key) Public() crypto.PublicKey { return k.public }

// Thumbprint returns the RFC 9679 thumbprint of the public half in hex.
func (k *Key) Thumbprint() string { return Thumbprint(k.public) }

// Sign signs message, which must not be hashed before: opts must say hash 0. The
// randomness is not used. After [Store.Close] the error is [ErrClosed].
func (k *Key) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.priv == nil {
		return nil, ErrClosed
	}
	return k.priv.Sign(nil, message, opts)
}

// String names the purpose and never the key.
func (k *Key) String() string { return "key for " + string(k.purpose) }

func (k *Key) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.priv)
	k.priv = nil
}

// Thumbprint returns the SHA-256 COSE key thumbprint (RFC 9679) of an Ed25519 key
// in hex: the hash over the deterministic encoding of {1: 1, -1: 6, -2: x}.
func Thumbprint(pub ed25519.PublicKey) string {
	h := sha256.Sum256(append([]byte{0xa3, 0x01, 0x01, 0x20, 0x06, 0x21, 0x58, 0x20}, pub...))
	return hex.EncodeToString(h[:])
}

const (
	pemType    = "PRIVATE KEY"
	pemPurpose = "Purpose"
	maxKeyFile = 4 << 10 // a PEM Ed25519 key is 150 bytes; the rest is room for headers
)

// encodePrivate returns priv as PKCS #8 (RFC 8410) in PEM. The purpose stands in
// a header: it finds files that were mixed up, and is no protection against
// someone who can write them.
func encodePrivate(priv ed25519.PrivateKey, purpose string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Headers: map[string]string{pemPurpose: purpose}, Bytes: der}), nil
}

func decodePrivate(b []byte, purpose string) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("%w: not one PEM block of type %s", ErrUnsafe, pemType)
	}
	defer clear(block.Bytes)
	if got := block.Headers[pemPurpose]; got != purpose || len(block.Headers) != 1 {
		return nil, fmt.Errorf("%w: the file says it is for %q, wanted %q", ErrUnsafe, got, purpose)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The cause could quote the input.
		return nil, fmt.Errorf("%w: not a PKCS #8 key", ErrUnsafe)
	}
	priv, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T, want Ed25519", ErrUnsafe, key)
	}
	return priv, nil
}
