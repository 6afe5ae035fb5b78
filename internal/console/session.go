package console

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"
)

const (
	cookieName = "pvault_console"

	// linkLife is the time to copy a link from a terminal to a browser.
	linkLife = 10 * time.Minute
	// sessionLife is a working day. It is not extended by use.
	sessionLife = 12 * time.Hour
	// maxTokens bounds links and sessions, each: a person with several browsers.
	// One more drops the oldest.
	maxTokens = 16
)

// sessions holds the digests of tokens: who reads the memory of a running daemon
// or a core of it cannot take over a browser's session. The zero sessions is empty.
type sessions struct {
	mu     sync.Mutex // guards both
	links  map[[32]byte]time.Time
	opened map[[32]byte]time.Time // by end of life
}

// newToken returns 256 random bits and remembers their digest in m until end.
func newToken(m *map[[32]byte]time.Time, now, end time.Time) string {
	var b [32]byte
	rand.Read(b[:])
	token := base64.RawURLEncoding.EncodeToString(b[:])
	if *m == nil {
		*m = make(map[[32]byte]time.Time)
	}
	var oldest [32]byte
	for k, until := range *m {
		if !now.Before(until) {
			delete(*m, k)
			continue
		}
		if first, ok := (*m)[oldest]; !ok || until.Before(first) {
			oldest = k
		}
	}
	if len(*m) >= maxTokens {
		delete(*m, oldest)
	}
	(*m)[sha256.Sum256([]byte(token))] = end
	return token
}

// link returns a token that opens one session.
func (s *sessions) link(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return newToken(&s.links, now, now.Add(linkLife))
}

// open burns a link's token and returns that of a new session.
func (s *sessions) open(token string, now time.Time) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := sha256.Sum256([]byte(token))
	until, ok := s.links[k]
	delete(s.links, k)
	if !ok || !now.Before(until) {
		return "", false
	}
	return newToken(&s.opened, now, now.Add(sessionLife)), true
}

// live reports whether token is of a session that has not ended. The lookup is by
// digest, so its timing says nothing about tokens.
func (s *sessions) live(token string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.opened[sha256.Sum256([]byte(token))]
	return ok && now.Before(until)
}

func (s *sessions) close(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opened, sha256.Sum256([]byte(token)))
}
