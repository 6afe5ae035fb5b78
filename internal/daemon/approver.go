package daemon

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/pilox/vault/internal/approval"
	"github.com/pilox/vault/internal/keystore"
)

// A Passphrase returns a passphrase when it is needed.
type Passphrase = keystore.Passphrase

// TerminalPassphrase asks on a terminal without echo, twice if confirm.
func TerminalPassphrase(tty *os.File, prompt string, confirm bool) Passphrase {
	return keystore.TerminalPassphrase(tty, prompt, confirm)
}

// ReaderPassphrase reads one line from r.
func ReaderPassphrase(r io.Reader) Passphrase { return keystore.ReaderPassphrase(r) }

// An ApproverInfo is the public half of an approver key.
type ApproverInfo struct {
	Name        string `json:"name"`
	ID          string `json:"id"` // what approvals.groups names
	Unprotected bool   `json:"unprotected"`
}

// CreateApprover makes an approver key in dir. A nil pass leaves it without a
// passphrase, and every event it has a part in says so.
func CreateApprover(dir, name string, pass Passphrase) (ApproverInfo, error) {
	keys := keystore.Approvers{Dir: dir}
	var a keystore.Approver
	var err error
	if pass == nil {
		a, err = keys.CreateUnprotected(name)
	} else {
		a, err = keys.Create(name, pass)
	}
	if err != nil {
		return ApproverInfo{}, err
	}
	return ApproverInfo{Name: a.Name, ID: a.ID(), Unprotected: a.Unprotected}, nil
}

// An Approver is an unwrapped approver key. Close it after use.
type Approver struct {
	name string
	key  *keystore.ApproverKey
}

// OpenApprover unwraps the key called name. pass is asked only if it has one.
func OpenApprover(dir, name string, pass Passphrase) (*Approver, error) {
	key, err := keystore.Approvers{Dir: dir}.Open(name, pass)
	if err != nil {
		return nil, err
	}
	return &Approver{name: name, key: key}, nil
}

// Sign signs an admin request.
func (a *Approver) Sign(message []byte) ([]byte, error) { return a.key.Sign(message) }

// Close wipes the key.
func (a *Approver) Close() { a.key.Close() }

// Answer signs an answer to a question of the gateway whose approval key is given.
func (a *Approver) Answer(question []byte, gateway ed25519.PublicKey, allow bool) ([]byte, error) {
	effect := approval.Deny
	if allow {
		effect = approval.Allow
	}
	return approval.Sign(question, gateway, "key:"+a.name, effect, time.Time{}, a.key.Sign)
}

// RenderQuestion verifies a question and shows it to a person, from the bytes
// that an answer binds.
func RenderQuestion(question []byte, gateway ed25519.PublicKey) (string, error) {
	q, err := approval.Open(question, gateway)
	if err != nil {
		return "", fmt.Errorf("question: %w", err)
	}
	return approval.RenderFull(q), nil
}
