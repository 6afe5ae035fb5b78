package aat

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// A Chain is a verified chain of tokens.
type Chain struct {
	tokens []*token
	anchor *Anchor // of the root
}

// Config says what a chain is held against.
type Config struct {
	Anchors  []Anchor  // who may issue root tokens; none: every chain is refused
	Audience string    // what aud names to mean this gateway; "" means nothing
	Now      time.Time // required
}

// Parse reads a presentation object (section 7.4) and returns its tokens, root first.
// Nothing is verified.
func Parse(raw []byte) ([]string, error) {
	if len(raw) > MaxChain {
		return nil, fmt.Errorf("chain of %d bytes: at most %d", len(raw), MaxChain)
	}
	doc, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	list := doc.Get("aat_chain")
	if list.Kind() != vault.Array || list.Len() < 1 || list.Len() > MaxDepth+1 {
		return nil, fmt.Errorf("chain: want aat_chain, an array of 1 to %d tokens", MaxDepth+1)
	}
	tokens := make([]string, 0, list.Len())
	for _, v := range list.All() {
		s, ok := v.Str()
		if !ok {
			return nil, errors.New("chain: a token that is no text")
		}
		tokens = append(tokens, s)
	}
	return tokens, nil
}

// Holder returns the key that the last token of a presentation object names, for the
// client that is to prove it. Nothing is verified.
func Holder(raw []byte) (capability.Key, error) {
	list, err := Parse(raw)
	if err != nil {
		return capability.Key{}, err
	}
	jws, _, err := parseSigned(list[len(list)-1])
	if err != nil {
		return capability.Key{}, fmt.Errorf("last token: %w", err)
	}
	claims, err := parse(jws.UnsafePayloadWithoutVerification())
	if err != nil {
		return capability.Key{}, fmt.Errorf("last token: claims: %w", err)
	}
	return keyOf(claims.At("/cnf/jwk"))
}

// Verify parses a presentation object and verifies its chain: signatures, types,
// linkage, depth, times, audience, and that each token narrows the one before it
// (section 8, steps 1 to 6). Who presents it is not looked at: it says whose key that
// has to be proven with ([Chain.Holder]).
func Verify(raw []byte, c Config) (*Chain, error) {
	list, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	chain := &Chain{}
	for i, compact := range list {
		t, err := chain.next(compact, &c)
		if err == nil {
			err = t.checkTimes(c.Now)
		}
		if err == nil {
			err = chain.fits(t, &c)
		}
		if err != nil {
			return nil, fmt.Errorf("token %d: %w", i, err)
		}
		chain.tokens = append(chain.tokens, t)
	}
	if !chain.leaf().entry {
		return nil, errors.New("the last token has no entry of type " + entryType)
	}
	return chain, nil
}

// next verifies the signature of the next token of the chain, and only then reads it.
func (c *Chain) next(compact string, conf *Config) (*token, error) {
	jws, alg, err := parseSigned(compact)
	if err != nil {
		return nil, err
	}
	var t *token
	if len(c.tokens) > 0 {
		payload, err := verified(jws, alg, c.leaf().holder)
		if err != nil {
			return nil, fmt.Errorf("not signed by the holder of the token before: %w", err)
		}
		if t, err = decode(payload); err != nil {
			return nil, err
		}
	} else {
		err = errors.New("no trusted issuer signed it")
		for i := range conf.Anchors {
			a := &conf.Anchors[i]
			for _, key := range a.Keys {
				payload, verr := verified(jws, alg, key)
				if verr != nil {
					continue
				}
				if t, err = decode(payload); err != nil {
					return nil, err
				}
				if t.issuer == a.Issuer {
					c.anchor = a
					t.hash = hashOf(compact)
					return t, nil
				}
				err = errors.New("iss is not the issuer whose key signed it")
			}
		}
		return nil, err
	}
	t.hash = hashOf(compact)
	return t, nil
}

// fits checks t as the next token of c, all but its signature and times of its own.
func (c *Chain) fits(t *token, conf *Config) error {
	if t.deeper > MaxDepth {
		return fmt.Errorf("del_max_depth %d: at most %d", t.deeper, MaxDepth)
	}
	if t.audience != nil && !slices.ContainsFunc(t.audience, func(a string) bool { return a != "" && (a == conf.Audience || a == c.anchor.Audience) }) {
		return errors.New("aud does not name this gateway")
	}
	if len(c.tokens) == 0 {
		switch {
		case t.depth != 0:
			return errors.New("a root with a del_depth")
		case t.parent != "":
			return errors.New("a root with a par_hash")
		case !t.entry:
			return errors.New("a root without an entry of type " + entryType)
		}
		return nil
	}
	for _, before := range c.tokens {
		if before.id == t.id {
			return errors.New("jti: the token is in the chain twice")
		}
	}
	parent := c.leaf()
	switch {
	case t.issuer != thumbprint(parent.holder):
		return errors.New("iss is not the thumbprint of the holder of the token before (I1)")
	case t.depth != parent.depth+1:
		return errors.New("del_depth does not follow (I2)")
	case t.depth > parent.deeper || t.depth > t.deeper || t.deeper > parent.deeper:
		return errors.New("deeper than the chain allows (I2)")
	case t.ends > parent.ends:
		return errors.New("exp is later than that of the token before (I3)")
	case t.issued < parent.issued:
		return errors.New("iat is earlier than that of the token before (I3)")
	case t.parent != parent.hash:
		return errors.New("par_hash is of another token (I5)")
	}
	for name, args := range t.tools {
		wider, ok := parent.tools[name]
		if !ok {
			return fmt.Errorf("tool %q: the token before does not have it (I4)", name)
		}
		if err := args.narrows(&wider); err != nil {
			return fmt.Errorf("tool %q: %w (I4)", name, err)
		}
	}
	return nil
}

func (c *Chain) leaf() *token { return c.tokens[len(c.tokens)-1] }

// Issuer returns who issued the root.
func (c *Chain) Issuer() string { return c.tokens[0].issuer }

// ID returns the jti of the last token.
func (c *Chain) ID() string { return c.leaf().id }

// Holder returns the key that the last token is bound to.
func (c *Chain) Holder() capability.Key { return c.leaf().holder }

// Depth returns how many more tokens the holder could derive.
func (c *Chain) Depth() int { return int(c.leaf().deeper - c.leaf().depth) }

// Expires returns when the first of the tokens expires.
func (c *Chain) Expires() time.Time {
	ends := c.tokens[0].ends
	for _, t := range c.tokens {
		ends = min(ends, t.ends)
	}
	return time.Unix(ends, 0)
}
