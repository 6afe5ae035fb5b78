package keystore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
)

// Approvers is a directory of keys that people answer approvals with. Each has
// two files: NAME.key, the private half, encrypted with a passphrase by age's
// scrypt recipient; and NAME.pub, one line that the daemon reads.
type Approvers struct {
	Dir string // made with mode 0700 if missing

	// WorkFactor is log2 of scrypt's N for new keys. Zero means 18: about a
	// second and 256 MiB. Keys with more than 20 are refused when opened, as a
	// crafted file could otherwise take all memory.
	WorkFactor int
}

const (
	defaultWork = 18
	maxWork     = 20

	// minPassphrase is the least length NIST SP 800-63B asks of a secret that is
	// used together with something one has, here the key file.
	minPassphrase = 8
	maxPassphrase = 1024

	maxApproverFile = 8 << 10
	// maxApproverFiles bounds the directory; more people than this are a reason
	// for an identity provider.
	maxApproverFiles = 1024
	maxApproverName  = 64

	unprotectedPurpose = "approver, unprotected"
)

// Errors of approver keys.
var (
	// ErrPassphrase means that the passphrase is wrong, or too short for a new key.
	ErrPassphrase = errors.New("passphrase")
)

// An Approver is the public half of an approver key.
type Approver struct {
	Name        string            // lower-case letters, digits, dot, dash; at most 64
	Public      ed25519.PublicKey //
	Unprotected bool              // made without a passphrase; every event about it says so
}

// ID returns the id that approval groups name: "key:" and the name.
func (a Approver) ID() string { return "key:" + a.Name }

// An ApproverKey is an unwrapped approver key. Close it after use.
type ApproverKey struct {
	Approver
	priv ed25519.PrivateKey
}

// Sign returns the Ed25519 signature over message.
func (k *ApproverKey) Sign(message []byte) ([]byte, error) {
	if k.priv == nil {
		return nil, ErrClosed
	}
	return ed25519.Sign(k.priv, message), nil
}

// Close wipes the key.
func (k *ApproverKey) Close() {
	clear(k.priv)
	k.priv = nil
}

// Create makes a key that pass protects. A name that is taken gives os.ErrExist.
func (a Approvers) Create(name string, pass Passphrase) (Approver, error) {
	if pass == nil {
		return Approver{}, fmt.Errorf("create approver %s: %w: none given", name, ErrPassphrase)
	}
	return a.create(name, pass)
}

// CreateUnprotected makes a key without a passphrase, for tests and throw-away
// set-ups. Its public half says so, and so does every event it has a part in.
func (a Approvers) CreateUnprotected(name string) (Approver, error) { return a.create(name, nil) }

func (a Approvers) create(name string, pass Passphrase) (ap Approver, err error) {
	defer func() {
		if err != nil {
			ap, err = Approver{}, fmt.Errorf("create approver %s: %w", name, err)
		}
	}()
	if err := checkApproverName(name); err != nil {
		return ap, err
	}
	d, err := openDir(a.Dir)
	if err != nil {
		return ap, err
	}
	defer d.close() //nolint:errcheck // a directory that was only read from
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return ap, err
	}
	defer clear(priv)
	ap = Approver{Name: name, Public: pub, Unprotected: pass == nil}
	file, err := a.wrap(priv, pass)
	if err != nil {
		return ap, err
	}
	defer clear(file)
	// The private half comes first: a public key that nobody can use would be
	// listed as an approver.
	if err := d.create(name+".key", file); err != nil {
		return ap, err
	}
	return ap, d.create(name+".pub", []byte(ap.line()))
}

// wrap returns the content of the private file.
func (a Approvers) wrap(priv ed25519.PrivateKey, pass Passphrase) ([]byte, error) {
	if pass == nil {
		return encodePrivate(priv, unprotectedPurpose)
	}
	phrase, err := pass()
	if err != nil {
		return nil, err
	}
	defer clear(phrase)
	if len(phrase) < minPassphrase {
		return nil, fmt.Errorf("%w: %d characters, want at least %d", ErrPassphrase, len(phrase), minPassphrase)
	}
	r, err := age.NewScryptRecipient(string(phrase))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	work := a.WorkFactor
	if work == 0 {
		work = defaultWork
	}
	if work < 1 || work > maxWork {
		return nil, fmt.Errorf("scrypt work factor %d, want 1 to %d", work, maxWork)
	}
	r.SetWorkFactor(work)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r)
	if err != nil {
		return nil, err
	}
	seed := priv.Seed()
	defer clear(seed)
	if _, err := w.Write(seed); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Open unwraps the key called name. A nil pass opens unprotected keys only. The
// private half must match the public file, which is what the daemon trusts.
func (a Approvers) Open(name string, pass Passphrase) (*ApproverKey, error) {
	k, err := a.open(name, pass)
	if err != nil {
		return nil, fmt.Errorf("open approver %s: %w", name, err)
	}
	return k, nil
}

func (a Approvers) open(name string, pass Passphrase) (*ApproverKey, error) {
	if err := checkApproverName(name); err != nil {
		return nil, err
	}
	d, err := openDir(a.Dir)
	if err != nil {
		return nil, err
	}
	defer d.close() //nolint:errcheck // a directory that was only read from
	ap, err := readPublic(d, name)
	if err != nil {
		return nil, err
	}
	file, err := d.read(name+".key", maxApproverFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, err
	}
	defer clear(file)
	var priv ed25519.PrivateKey
	switch {
	case ap.Unprotected:
		priv, err = decodePrivate(file, unprotectedPurpose)
	case pass == nil:
		err = fmt.Errorf("%w: none given", ErrPassphrase)
	default:
		priv, err = unwrap(file, pass)
	}
	if err != nil {
		return nil, err
	}
	if !ap.Public.Equal(priv.Public()) {
		clear(priv)
		return nil, fmt.Errorf("%w: %s.key and %s.pub do not belong together", ErrUnsafe, name, name)
	}
	return &ApproverKey{Approver: ap, priv: priv}, nil
}

func unwrap(file []byte, pass Passphrase) (ed25519.PrivateKey, error) {
	phrase, err := pass()
	if err != nil {
		return nil, err
	}
	defer clear(phrase)
	id, err := age.NewScryptIdentity(string(phrase))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	id.SetMaxWorkFactor(maxWork)
	r, err := age.Decrypt(bytes.NewReader(file), id)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		return nil, fmt.Errorf("%w is wrong", ErrPassphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	seed := make([]byte, ed25519.SeedSize)
	defer clear(seed)
	if _, err := io.ReadFull(r, seed); err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	// The last chunk is authenticated by reading to its end.
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: the wrapped key is too long", ErrUnsafe)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// List returns the approvers of the directory by name. A missing directory has
// none and is not made.
func (a Approvers) List() ([]Approver, error) {
	if _, err := os.Lstat(a.Dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	d, err := openDir(a.Dir)
	if err != nil {
		return nil, fmt.Errorf("list approvers: %w", err)
	}
	defer d.close() //nolint:errcheck // a directory that was only read from
	names, err := d.names(".pub", 2*maxApproverFiles)
	if err != nil {
		return nil, fmt.Errorf("list approvers: %w", err)
	}
	slices.Sort(names)
	out := make([]Approver, 0, len(names))
	for _, n := range names {
		ap, err := readPublic(d, n)
		if err != nil {
			return nil, fmt.Errorf("list approvers: %s: %w", n, err)
		}
		out = append(out, ap)
	}
	return out, nil
}

func readPublic(d *dir, name string) (Approver, error) {
	b, err := d.read(name+".pub", maxApproverFile)
	if errors.Is(err, os.ErrNotExist) {
		return Approver{}, ErrNoKey
	}
	if err != nil {
		return Approver{}, err
	}
	ap, err := ParseApprover(string(b))
	if err == nil && ap.Name != name {
		err = fmt.Errorf("%w: the file says it is of %q", ErrUnsafe, ap.Name)
	}
	return ap, err
}

// Line format: magic, name, protected or unprotected, key; one space each.
const approverMagic = "vault-approver-v1"

// line returns the content of the public file.
func (a Approver) line() string {
	word := "protected"
	if a.Unprotected {
		word = "unprotected"
	}
	return strings.Join([]string{approverMagic, a.Name, word, base64.StdEncoding.EncodeToString(a.Public)}, " ") + "\n"
}

// ParseApprover parses the line of a public file. It accepts exactly what this
// package writes.
func ParseApprover(line string) (Approver, error) {
	fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
	if len(fields) != 4 || fields[0] != approverMagic {
		return Approver{}, fmt.Errorf("%w: want %s NAME protected|unprotected KEY", ErrUnsafe, approverMagic)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(fields[3])
	if err != nil || len(key) != ed25519.PublicKeySize {
		return Approver{}, fmt.Errorf("%w: not an Ed25519 public key in base64", ErrUnsafe)
	}
	ap := Approver{Name: fields[1], Public: key, Unprotected: fields[2] == "unprotected"}
	if err := checkApproverName(ap.Name); err != nil {
		return Approver{}, err
	}
	if ap.line() != line {
		return Approver{}, fmt.Errorf("%w: not in the form this program writes", ErrUnsafe)
	}
	return ap, nil
}

func checkApproverName(name string) error {
	ok := name != "" && len(name) <= maxApproverName && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-')
	}
	if !ok {
		return fmt.Errorf("approver name %q: want 1 to %d of a-z, 0-9, dot and dash, starting with a letter or digit", name, maxApproverName)
	}
	return nil
}
