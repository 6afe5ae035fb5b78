package daemon

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/aat"
	"github.com/pilox/vault/internal/oauth"
)

// An aatTrust says which chains of attenuating authorization tokens count. The zero
// aatTrust refuses all.
type aatTrust struct {
	anchors  []aat.Anchor
	audience string // the cluster
}

// openAAT reads the keys of the issuers.
func openAAT(issuers []AATIssuer, cluster string) (t aatTrust, err error) {
	t.audience = cluster
	for _, is := range issuers {
		b, err := os.ReadFile(is.JWKS)
		if err != nil {
			return t, fmt.Errorf("exchange.aat %s: %w", is.Issuer, err)
		}
		keys, err := aat.ParseKeys(b)
		if err != nil {
			return t, fmt.Errorf("exchange.aat %s: %s: %w", is.Issuer, is.JWKS, err)
		}
		t.anchors = append(t.anchors, aat.Anchor{Issuer: is.Issuer, Keys: keys, Audience: is.Audience})
	}
	return t, nil
}

// subject verifies a chain. It is bound to the key of its last token, as an access
// token with cnf is: only who proves that key has it exchanged.
func (t *aatTrust) subject(presentation string, now time.Time) (s exchangeSubject, err error) {
	c, err := aat.Verify([]byte(presentation), aat.Config{Anchors: t.anchors, Audience: t.audience, Now: now})
	if err != nil {
		return s, err
	}
	s.chain = c
	s.Subject = oauth.Subject{
		Principal: oauth.PrefixAAT + c.Issuer(), Issuer: "AAT " + c.ID(), Expires: c.Expires(), Bound: c.Holder().JWKThumbprint(),
	}
	return s, nil
}

// narrow makes link the meet of a chain of tokens and the root of a reviewed task. A
// tool is called as in a task file, server.tool. What one of them does not name is
// gone, and so is everything that is no tool.
func (d *Daemon) narrow(link *capability.Link, task *capability.Chain, c *aat.Chain) error {
	local := task.Links()[0].Grants[vault.KindTool]
	tools := map[vault.Target]capability.Rule{}
	for _, name := range c.Tools() {
		server, tool, _ := strings.Cut(name, ".")
		s, err := d.catalogue.Server(server)
		if err != nil || tool == "" || tool == everyTool {
			continue // nobody grants it here
		}
		t := vault.Target{Server: s.ID, Name: tool}
		rule, ok := local[t]
		if !ok {
			rule, ok = local[vault.Target{Server: s.ID, Name: everyTool}]
		}
		if !ok {
			continue
		}
		if tools[t], err = c.Rule(name, rule); err != nil {
			return errUnheld(fmt.Errorf("tool %s: %w", name, err))
		}
	}
	if len(tools) == 0 {
		return errTarget(errors.New("the task grants no tool that the tokens name"))
	}
	link.Grants = capability.Grants{vault.KindTool: tools}
	link.Depth = capability.Depth(min(c.Depth(), capability.MaxLinks-1))
	return nil
}

// everyTool is the name in a root that stands for every tool of its server.
const everyTool = "*"

// errUnheld says to whoever proved to hold a chain of a trusted issuer what of it no
// capability can say.
func errUnheld(cause error) *oauth.Error {
	// RFC 6749, section 5.2: printable ASCII without quotes and backslashes.
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, "no capability says what the tokens say: "+cause.Error())
	return &oauth.Error{Code: oauth.InvalidGrant, Description: text[:min(len(text), 400)], Err: cause}
}
