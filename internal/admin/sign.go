package admin

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/pilox/vault"
)

// Headers of a signed request.
const (
	headerApprover  = "Vault-Approver"
	headerChallenge = "Vault-Challenge"
	headerSignature = "Vault-Signature"
)

// maxChallenges bounds the challenges that are open at once; a person signs a few
// requests a minute, and the oldest gives way.
const maxChallenges = 64

// challengeLife is how long a challenge may be answered: as long as a person
// takes to type a passphrase.
const challengeLife = 2 * time.Minute

// signedBytes is what an approver signs: everything the request says.
func signedBytes(challenge, method, path string, body []byte) []byte {
	d := vault.Hash("admin", []byte(challenge), []byte(method), []byte(path), body)
	return d[:]
}

// challenges hands out random values that each verify one request.
type challenges struct {
	now func() time.Time

	mu   sync.Mutex
	open map[string]time.Time // expiry
}

func (c *challenges) issue() string {
	var b [16]byte
	rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[string]time.Time)
	}
	now := c.now()
	var oldest string
	for k, t := range c.open {
		if now.After(t) {
			delete(c.open, k)
		} else if oldest == "" || t.Before(c.open[oldest]) {
			oldest = k
		}
	}
	if len(c.open) >= maxChallenges {
		delete(c.open, oldest)
	}
	c.open[id] = now.Add(challengeLife)
	return id
}

// use reports whether id was issued, is fresh, and was not used before.
func (c *challenges) use(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.open[id]
	delete(c.open, id)
	return ok && !c.now().After(t)
}

var errSignature = errors.New("the approver's signature does not verify")

// verify checks a signature over a request. The challenge is spent whatever the
// outcome, so that each can be tried once.
func (c *challenges) verify(key []byte, challenge, method, path string, body, sig []byte) error {
	fresh := c.use(challenge)
	if !fresh || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, signedBytes(challenge, method, path, body), sig) {
		return errSignature
	}
	return nil
}
