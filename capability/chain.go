package capability

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// A Chain is a parsed chain of links. It is immutable. Parsing says that it is
// well formed and hangs together; only [Verify] and [Verifier] say whose it is.
type Chain struct {
	raw   []byte
	links []signedLink
}

type signedLink struct {
	Link
	message
	id vault.Digest
}

// A Signer signs links. KID is the issuer's key id; it is empty where the holder
// of a chain signs the next link.
type Signer struct {
	Key crypto.Signer
	KID string
}

var errEmpty = errors.New("no chain")

// frame splits a chain into messages without decoding a payload.
func frame(raw []byte) ([]message, error) {
	if len(raw) == 0 {
		return nil, errEmpty
	}
	if len(raw) > MaxChainBytes {
		return nil, fmt.Errorf("chain of %d bytes: at most %d", len(raw), MaxChainBytes)
	}
	major, n, rest, ok := readHead(raw)
	if !ok || major != majorArray || n < 1 || n > MaxLinks {
		return nil, errFrame
	}
	var few [4]message
	links := few[:0]
	for range n {
		m, r, err := readMessage(rest, typLink)
		if err != nil {
			return nil, err
		}
		links, rest = append(links, m), r
	}
	if len(rest) != 0 {
		return nil, errors.New("data after the chain")
	}
	return slices.Clone(links), nil
}

// Parse decodes a chain, strictly: what it accepts is what [Mint] and
// [Attenuate] write. It checks no signature.
func Parse(raw []byte) (Chain, error) {
	raw = slices.Clone(raw)
	messages, err := frame(raw)
	if err != nil {
		return Chain{}, err
	}
	c := Chain{raw: raw}
	for i, m := range messages {
		if err := c.decode(m); err != nil {
			return Chain{}, fmt.Errorf("link %d: %w", i, err)
		}
	}
	return c, nil
}

// decode appends the link in m after checking its shape and its place.
func (c *Chain) decode(m message) error {
	l := signedLink{message: m, id: linkID(m.protected, m.payload)}
	if err := det.decode(m.payload, &l.Link); err != nil {
		return err
	}
	if err := c.fits(&l); err != nil {
		return err
	}
	c.links = append(c.links, l)
	return nil
}

// fits checks l as the next link of c.
func (c *Chain) fits(l *signedLink) error {
	if len(c.links) == 0 {
		if len(l.kid) == 0 {
			return errors.New("root without kid")
		}
		return l.checkRoot()
	}
	parent := &c.links[len(c.links)-1]
	if l.Parent != sha256.Sum256(parent.raw) {
		return errors.New("follows another link")
	}
	if c.depthLeft() < 1 {
		return errors.New("deeper than the chain allows")
	}
	if err := l.checkChild(); err != nil {
		return err
	}
	// Holders without a key cannot sign, so an issuer did, and says which.
	if holder := c.holder(); holder.Key.IsZero() != (len(l.kid) > 0) {
		return errors.New("not signed by the holder of the link before")
	}
	// A holder without a key is the word of the gateway, so a gateway signs it.
	if l.Holder != nil && l.Holder.Key.IsZero() && len(l.kid) == 0 {
		return errors.New("only the gateway binds to a holder without a key")
	}
	if l.Holder != nil && !l.Holder.Key.IsZero() {
		for _, p := range c.links {
			if p.DelegateKeys != nil && !slices.Contains(p.DelegateKeys, l.Holder.Key.Thumbprint()) {
				return errors.New("bound to a key that is no delegate's")
			}
		}
	}
	if agent := c.agent(); l.Agent != "" && l.Agent != agent {
		for _, p := range c.links {
			if p.Delegates == nil && p.Parent.IsZero() || p.Delegates != nil && !slices.Contains(p.Delegates, l.Agent) {
				return fmt.Errorf("agent %q is no delegate", l.Agent)
			}
		}
	}
	return nil
}

// depthLeft returns how many links may follow.
func (c *Chain) depthLeft() int {
	left := MaxLinks
	for _, l := range c.links {
		left--
		if l.Depth != nil {
			left = min(left, *l.Depth)
		}
	}
	return left
}

// holder returns who holds the last link.
func (c *Chain) holder() *Holder {
	for i := len(c.links) - 1; i >= 0; i-- {
		if h := c.links[i].Holder; h != nil {
			return h
		}
	}
	return &Holder{}
}

// agent returns whose the last link is.
func (c *Chain) agent() vault.AgentID {
	for i := len(c.links) - 1; i >= 0; i-- {
		if a := c.links[i].Agent; a != "" {
			return a
		}
	}
	return ""
}

// Mint signs a root link. It refuses a root that [Parse] would refuse. A zero
// Depth pointer is set to 0: nobody may attenuate.
func Mint(root Link, issuer Signer) (Chain, error) {
	if root.Depth == nil {
		root.Depth = Depth(0)
	}
	return Chain{}.append(root, issuer)
}

// Attenuate signs child as the next link of c and returns the longer chain. The
// signer is the holder of c; if the holder has no key, it is the gateway's issuer
// with its KID. Attenuate sets child.Parent.
func Attenuate(c Chain, child Link, holder Signer) (Chain, error) {
	if len(c.links) == 0 {
		return Chain{}, errEmpty
	}
	if h := c.holder(); !h.Key.IsZero() {
		if holder.Key == nil {
			return Chain{}, errNoKey
		}
		if pub, err := KeyOf(holder.Key.Public()); err != nil || pub != h.Key {
			return Chain{}, errors.New("attenuate: the key is not the holder's")
		}
	}
	child.Parent = sha256.Sum256(c.links[len(c.links)-1].raw)
	return c.append(child, holder)
}

func (c Chain) append(l Link, s Signer) (Chain, error) {
	if s.Key == nil {
		return Chain{}, errNoKey
	}
	payload, err := det.enc.Marshal(&l)
	if err != nil {
		return Chain{}, fmt.Errorf("encode link: %w", err)
	}
	// The signature comes last, so that a link which no one would accept is not
	// signed: try it with an empty one.
	pub, err := KeyOf(s.Key.Public())
	if err != nil {
		return Chain{}, err
	}
	draft := Chain{raw: c.raw, links: slices.Clone(c.links)}
	protected := appendHeader(nil, pub.alg, []byte(s.KID), typLink)
	if err := draft.decode(message{protected: protected, payload: payload, alg: pub.alg, kid: []byte(s.KID)}); err != nil {
		return Chain{}, err
	}
	raw, err := signMessage(s.Key, s.KID, typLink, nil, payload)
	if err != nil {
		return Chain{}, err
	}
	out := appendHead(make([]byte, 0, len(c.raw)+len(raw)+1), majorArray, uint64(len(draft.links)))
	if len(c.raw) > 0 {
		out = append(out, c.raw[1:]...)
	}
	out = append(out, raw...)
	if len(out) > MaxChainBytes {
		return Chain{}, fmt.Errorf("chain of %d bytes: at most %d", len(out), MaxChainBytes)
	}
	m, _, err := readMessage(out[len(out)-len(raw):], typLink)
	if err != nil {
		return Chain{}, err
	}
	draft.raw = out
	draft.links[len(draft.links)-1].message = m
	return draft, nil
}

// IsZero reports whether c is no chain.
func (c Chain) IsZero() bool { return len(c.links) == 0 }

// Bytes returns a copy of the encoded chain.
func (c Chain) Bytes() []byte { return slices.Clone(c.raw) }

// Digest returns SHA-256 of the encoded chain with signatures, the key of caches
// and sessions.
func (c Chain) Digest() vault.Digest { return sha256.Sum256(c.raw) }

// IDs returns the link ids, root first.
func (c Chain) IDs() []vault.Digest {
	ids := make([]vault.Digest, len(c.links))
	for i := range c.links {
		ids[i] = c.links[i].id
	}
	return ids
}

// Links returns the links, root first. The caller must not change what they
// point to.
func (c Chain) Links() []Link {
	links := make([]Link, len(c.links))
	for i := range c.links {
		links[i] = c.links[i].Link
	}
	return links
}

// Holder returns who may use the chain.
func (c Chain) Holder() Holder { return *c.holder() }

// Text returns the text form.
func (c Chain) Text() string { return textPrefix + base64.RawURLEncoding.EncodeToString(c.raw) }

// DecodeText returns the bytes of a chain in text form. It does not parse them.
func DecodeText(s string) ([]byte, error) {
	body, ok := strings.CutPrefix(s, textPrefix)
	if !ok {
		return nil, errors.New(`a capability begins with "vc1."`)
	}
	if base64.RawURLEncoding.DecodedLen(len(body)) > MaxChainBytes {
		return nil, fmt.Errorf("chain: at most %d bytes", MaxChainBytes)
	}
	// Strict refuses a last character with stray bits; line breaks are ignored by
	// the decoder and so refused here.
	if strings.ContainsAny(body, "\r\n") {
		return nil, errors.New("a capability is one line")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, fmt.Errorf("capability: %w", err)
	}
	return raw, nil
}

// ParseText parses the text form.
func ParseText(s string) (Chain, error) {
	raw, err := DecodeText(s)
	if err != nil {
		return Chain{}, err
	}
	return Parse(raw)
}
