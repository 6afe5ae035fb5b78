package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/aat"
	"github.com/pilox/vault/internal/identity"
	"github.com/pilox/vault/internal/oauth"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/taskfile"
)

// Exchange says who may exchange a token of another issuer, or an SVID, for the
// capability of which task (RFC 8693, POST /token). The zero Exchange is off.
type Exchange struct {
	Issuers []TokenIssuer   `yaml:"issuers"` // OpenID providers
	Bundle  string          `yaml:"bundle"`  // SPIFFE trust bundle of domain, for JWT-SVIDs; "" means that none count
	AAT     []AATIssuer     `yaml:"aat"`     // issuers of attenuating authorization tokens
	Grants  []ExchangeGrant `yaml:"grants"`  //
}

// A TokenIssuer is an OpenID provider or authorisation server.
type TokenIssuer struct {
	Issuer   string `yaml:"issuer"`   // exactly the iss claim
	Audience string `yaml:"audience"` // must be in aud
	JWKS     string `yaml:"jwks"`     // file or https URL of its keys
	Claim    string `yaml:"claim"`    // whose value names the principal; "" means sub
	Prefix   string `yaml:"prefix"`   // of the principal; "" means "user:"
}

// An AATIssuer issues root tokens of chains that can be exchanged. All of them are one
// principal, aat: and its name, and share the budgets of one instance of a task: who
// holds a token makes keys and further tokens as he likes, and would make budgets too.
type AATIssuer struct {
	Issuer   string `yaml:"issuer"`   // exactly the iss claim of root tokens, a URI
	JWKS     string `yaml:"jwks"`     // file with its public keys: a JWK set, Ed25519 and P-256
	Audience string `yaml:"audience"` // what aud may name beside the cluster; "" means nothing
}

// An ExchangeGrant is one task that can be had by exchange.
type ExchangeGrant struct {
	Name     string        `yaml:"name"`     // what clients ask for as audience
	Task     string        `yaml:"task"`     // task file
	Digest   string        `yaml:"digest"`   // of the task file as it was reviewed
	Subjects []string      `yaml:"subjects"` // principals: user:anna@example.com, spiffe://…
	Life     time.Duration `yaml:"life"`     // of one exchanged capability; zero means 10m
	PerDay   int           `yaml:"per_day"`  // task instances, and so fresh budgets, of one subject in 24 hours; zero means 1
}

// Bounds on what exchange can be configured to do.
const (
	maxExchangeLife = time.Hour
	maxPerDay       = 100
	maxExchanges    = 8   // at the same time: each verifies signatures and writes to the ledger
	maxAATIssuer    = 190 // bytes of a name that is part of a principal
)

// complete fills in the defaults and refuses what cannot be meant.
func (x *Exchange) complete() error {
	seen := map[string]bool{}
	for i := range x.Grants {
		g := &x.Grants[i]
		at := fmt.Sprintf("exchange.grants[%d]", i)
		setDefault(&g.Life, 10*time.Minute)
		setDefault(&g.PerDay, 1)
		switch {
		case !agentName.MatchString(g.Name) || seen[g.Name]:
			return fmt.Errorf("%s: name %q: want lower-case letters, digits, '.', '_' and '-', once", at, g.Name)
		case g.Task == "" || len(g.Subjects) == 0:
			return fmt.Errorf("%s: task and subjects are required", at)
		case g.Life < time.Second || g.Life > maxExchangeLife:
			return fmt.Errorf("%s: life %v: want 1s to %v", at, g.Life, maxExchangeLife)
		case g.PerDay < 1 || g.PerDay > maxPerDay:
			return fmt.Errorf("%s: per_day %d: want 1 to %d", at, g.PerDay, maxPerDay)
		}
		seen[g.Name] = true
	}
	names := map[string]bool{}
	for i, is := range x.AAT {
		at := fmt.Sprintf("exchange.aat[%d]", i)
		u, err := url.Parse(is.Issuer)
		switch {
		case err != nil || !u.IsAbs() || len(is.Issuer) > maxAATIssuer || strings.ContainsFunc(is.Issuer, func(r rune) bool { return r <= ' ' || r > '~' }):
			return fmt.Errorf("%s: issuer %q: want a URI of at most %d bytes", at, is.Issuer, maxAATIssuer)
		case names[is.Issuer]:
			return fmt.Errorf("%s: issuer %s is there twice: put all of its keys into one file", at, is.Issuer)
		case is.JWKS == "" || strings.Contains(is.JWKS, "://"):
			return fmt.Errorf("%s: jwks: want a file with the public keys of %s", at, is.Issuer)
		}
		names[is.Issuer] = true
	}
	if len(x.Grants) == 0 && (len(x.Issuers) > 0 || x.Bundle != "" || len(x.AAT) > 0) {
		return errors.New("exchange: there are issuers and no grants")
	}
	return nil
}

// An exchange is what is configured, loaded.
type exchange struct {
	issuers *oauth.Issuers
	trust   *identity.Trust // of JWT-SVIDs; nil if none count
	aat     aatTrust
	grants  map[string]*exchangeGrant
	slots   chan struct{}
}

type exchangeGrant struct {
	ExchangeGrant

	file *taskfile.File
}

// openExchange reads keys and task files. A task file that is not the one that was
// reviewed stops the start.
func (d *Daemon) openExchange(context.Context) error {
	c := &d.conf.Exchange
	if len(c.Grants) == 0 {
		return nil
	}
	x := &exchange{grants: make(map[string]*exchangeGrant), slots: make(chan struct{}, maxExchanges)}
	var issuers []oauth.Issuer
	for _, is := range c.Issuers {
		issuers = append(issuers, oauth.Issuer(is))
	}
	var err error
	if x.issuers, err = oauth.NewIssuers(issuers, d.conf.jwks, nil); err != nil {
		return err
	}
	if c.Bundle != "" {
		if x.trust, err = identity.Load(d.conf.Domain, c.Bundle); err != nil {
			return err
		}
	}
	if x.aat, err = openAAT(c.AAT, d.cluster); err != nil {
		return err
	}
	for _, g := range c.Grants {
		f, err := taskfile.Load(g.Task)
		if err != nil {
			return fmt.Errorf("grant %s: %w", g.Name, err)
		}
		if g.Digest != f.Digest().String() {
			return fmt.Errorf("grant %s: %s is not as reviewed: its digest is %s", g.Name, g.Task, f.Digest())
		}
		x.grants[g.Name] = &exchangeGrant{g, f}
	}
	d.exchange = x
	return nil
}

// exchangeToken serves POST /token: RFC 8693. The request authenticates itself by the
// subject token, and by the DPoP proof or the certificate of who is to hold the
// capability.
func (d *Daemon) exchangeToken(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	answer, err := d.exchanged(w, r)
	if err == nil {
		raw, merr := json.Marshal(answer) //nolint:gosec // the answer of a token endpoint holds the token
		if merr == nil {
			_, err = w.Write(raw)
		} else {
			err = merr
		}
		if err != nil {
			d.log.DebugContext(r.Context(), "token answer not delivered", "err", err)
		}
		return
	}
	e, ok := errors.AsType[*oauth.Error](err)
	if !ok {
		e = &oauth.Error{Code: oauth.Unavailable, Err: err}
	}
	code := vault.CodeProof
	switch e.Code {
	case oauth.InvalidTarget:
		code = vault.CodeCapabilityTarget
	case oauth.InvalidRequest, oauth.UnsupportedType:
		code = vault.CodeRequestMalformed
	case oauth.Unavailable:
		code = vault.CodeBusy
	case oauth.UseNonce, oauth.InvalidProof:
		h.Set("Dpop-Nonce", d.prover.Nonce())
	}
	d.gateway.CountStranger("token", code)
	d.log.InfoContext(r.Context(), "token exchange refused", "code", e.Code, "cause", e.Err)
	w.WriteHeader(e.Status())
	_ = json.NewEncoder(w).Encode(e) // the client is gone if this fails
}

// errTarget is the one answer to a grant that does not exist, is not for this subject,
// was stopped or is used up for today: no oracle for which grants there are.
func errTarget(cause error) *oauth.Error {
	return &oauth.Error{Code: oauth.InvalidTarget, Description: "nothing of this name can be had by this subject now", Err: cause}
}

func errSubject(cause error) *oauth.Error {
	return &oauth.Error{Code: oauth.InvalidGrant, Description: "the subject token does not count here", Err: cause}
}

// exchanged is one exchange.
func (d *Daemon) exchanged(w http.ResponseWriter, r *http.Request) (*oauth.ExchangeAnswer, error) {
	select {
	case d.exchange.slots <- struct{}{}:
		defer func() { <-d.exchange.slots }()
	default:
		return nil, &oauth.Error{Code: oauth.Unavailable, Err: errors.New("too many exchanges at once")}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, oauth.MaxExchange+1))
	if err != nil {
		return nil, &oauth.Error{Code: oauth.InvalidRequest, Description: "too large", Err: err}
	}
	req, err := oauth.ParseExchange(r.Header, body)
	if err != nil {
		return nil, err
	}
	var proof *oauth.Proof
	if len(r.Header.Values("DPoP")) > 0 {
		if proof, err = d.prover.Check(r.Header, r.Method, urlOf(r), ""); err != nil {
			return nil, err
		}
	}
	b, err := d.bindingOf(r)
	if err != nil {
		return nil, errSubject(err)
	}
	subject, err := d.exchange.subject(r.Context(), &req, b.SPIFFE, d.cluster)
	if err != nil {
		return nil, errSubject(err)
	}
	if !subject.Bound.IsZero() && (proof == nil || proof.Thumbprint() != subject.Bound) {
		return nil, errSubject(errors.New("the token is bound to a key that was not proven"))
	}
	holder, kind, err := holderFor(proof, b.SPIFFE, subject.Principal)
	if err != nil {
		return nil, err
	}
	g := d.exchange.grants[req.Audience]
	if g == nil || !slices.Contains(g.Subjects, subject.Principal) {
		return nil, errTarget(fmt.Errorf("%s asks for %q", subject.Principal, req.Audience))
	}
	if proof != nil {
		if err := d.prover.Use(proof); err != nil {
			return nil, err
		}
	}
	return d.exchangeFor(r.Context(), g, &subject, holder, kind)
}

// An exchangeSubject is whom a subject token speaks of, and what else it restricts.
type exchangeSubject struct {
	oauth.Subject

	chain *aat.Chain // nil: nothing
}

// subject finds out whom a subject token speaks of.
func (x *exchange) subject(ctx context.Context, req *oauth.Exchange, client, audience string) (s exchangeSubject, err error) {
	switch req.SubjectType {
	case oauth.TypeAAT:
		return x.aat.subject(req.SubjectToken, time.Now())
	case oauth.TypeX509SVID:
		if client == "" || client != req.SubjectToken {
			return s, errors.New("the connection shows no such SVID")
		}
		s.Subject = oauth.Subject{Principal: client, Issuer: "mTLS"}
		return s, nil
	case oauth.TypeJWTSVID:
		if x.trust == nil {
			return s, errors.New("no bundle for JWT-SVIDs is configured")
		}
		id, expires, err := x.trust.JWT(req.SubjectToken, audience)
		s.Subject = oauth.Subject{Principal: id, Issuer: "JWT-SVID", Expires: expires}
		return s, err
	}
	s.Subject, err = x.issuers.Subject(ctx, req.SubjectToken)
	return s, err
}

// holderFor says who is to hold the capability: the key that was proven, else the
// SVID of the connection if it is the subject itself. A token alone holds nothing.
func holderFor(proof *oauth.Proof, client, principal string) (holder *capability.Holder, tokenType string, err error) {
	switch {
	case proof != nil:
		return capability.HeldBy(proof.Key), "DPoP", nil
	case client != "" && client == principal:
		return &capability.Holder{SPIFFE: client}, "Bearer", nil
	}
	return nil, "", &oauth.Error{Code: oauth.InvalidRequest, Description: "show the key that is to hold the token with a DPoP proof", Err: errors.New("no holder")}
}

// exchangeFor returns a capability of the subject's instance of the task. The root
// link is bound to nothing that anybody can show; what the subject gets is a child of
// it, short-lived and bound to the holder. So all exchanges of a subject share the
// budgets of one instance, and none of them is more than the task file.
func (d *Daemon) exchangeFor(ctx context.Context, g *exchangeGrant, s *exchangeSubject, holder *capability.Holder, tokenType string) (*oauth.ExchangeAnswer, error) {
	d.tasksMu.Lock()
	defer d.tasksMu.Unlock()
	id, doc, err := d.exchangeInstance(ctx, g, &s.Subject)
	if err != nil {
		return nil, err
	}
	root, err := capability.ParseText(doc.Token)
	if err != nil {
		return nil, fmt.Errorf("task %s: %w", id, err)
	}
	now := time.Now()
	expires := now.Add(g.Life)
	for _, e := range []time.Time{s.Expires, doc.Expires} {
		if !e.IsZero() && e.Before(expires) {
			expires = e
		}
	}
	child := capability.Link{Holder: holder, Expires: capability.InstantOf(expires)}
	if s.chain != nil {
		if err := d.narrow(&child, &root, s.chain); err != nil {
			return nil, err
		}
	}
	grant := &vault.Grant{Tenant: d.tenant, Task: id, Agent: doc.Agent, Principal: s.Principal, Purpose: doc.Purpose, Expires: expires, Chain: root.Digest()}
	if err := d.hookDelegate(ctx, grant, holder, "exchange "+g.Name); err != nil {
		return nil, errTarget(err)
	}
	chain, err := capability.Attenuate(root, child, d.issuer)
	if err != nil {
		if s.chain != nil {
			return nil, errUnheld(err)
		}
		return nil, fmt.Errorf("attenuate: %w", err)
	}
	view, err := json.Marshal(capability.Inspect(chain))
	if err != nil {
		return nil, fmt.Errorf("describe capability: %w", err)
	}
	_, err = d.ledger.Commit(ctx, &vault.Event{
		Run: id, Class: vault.ClassTask, Phase: vault.PhaseNoted, Verdict: vault.Allow,
		Fields: []vault.Field{
			{Name: "agent", Value: []byte(doc.Agent)},
			{Name: "by", Value: []byte("exchange " + g.Name + ", subject vouched for by " + s.Issuer)},
			{Name: "capability", Value: view},
			{Name: "principal", Value: []byte(s.Principal)},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("record exchange: %w", err)
	}
	return &oauth.ExchangeAnswer{
		AccessToken: chain.Text(), IssuedType: oauth.TypeAccessToken, TokenType: tokenType, ExpiresIn: int64(expires.Sub(now) / time.Second),
	}, nil
}

// exchangeChannel begins the name of the channel that the root of an exchanged task
// is bound to. No socket has such a name, so the root alone proves nothing.
const exchangeChannel = "exchange-"

// exchangeInstance returns the open instance of a grant for a subject. A new one is
// opened when the last has lived its life, as often a day as the configuration says;
// one that was stopped is not replaced before its life is over. d.tasksMu is held.
func (d *Daemon) exchangeInstance(ctx context.Context, g *exchangeGrant, s *oauth.Subject) (vault.TaskID, taskDoc, error) {
	rows, err := d.rows.Tasks(ctx, "")
	if err != nil {
		return "", taskDoc{}, err
	}
	today, now := 0, time.Now()
	for _, row := range rows {
		if row.FileDigest != g.file.Digest() || row.Principal != s.Principal {
			continue
		}
		doc, err := decodeTask(row)
		if err != nil {
			return "", taskDoc{}, err
		}
		if now.Sub(row.Opened) < 24*time.Hour {
			today++
		}
		lives := now.Before(doc.Expires)
		switch {
		case lives && row.State == store.TaskOpen && !d.over(ctx, row):
			if !strings.HasPrefix(doc.Holder, "channel "+exchangeChannel) {
				return "", taskDoc{}, errTarget(fmt.Errorf("task %s is open and bound to %s", row.ID, doc.Holder))
			}
			return row.ID, doc, nil
		case lives:
			return "", taskDoc{}, errTarget(fmt.Errorf("task %s was stopped", row.ID))
		case row.State == store.TaskOpen:
			if err := d.closeTask(ctx, row, "its life is over"); err != nil {
				return "", taskDoc{}, err
			}
		}
	}
	if today >= g.PerDay {
		return "", taskDoc{}, errTarget(fmt.Errorf("%s has had %d instances today", s.Principal, today))
	}
	file := *g.file
	file.Principal = s.Principal
	t, err := d.mint(ctx, &file, &capability.Holder{Channel: exchangeChannel + vault.NewCallID()[2:]}, g.Name, "exchange "+s.Issuer)
	if d, ok := errors.AsType[*vault.Denial](err); ok { // the rules have spoken: to try again is no use
		return "", taskDoc{}, errTarget(d)
	}
	if err != nil {
		return "", taskDoc{}, fmt.Errorf("open task: %w", err)
	}
	row, err := d.rows.Task(ctx, t.ID)
	if err != nil {
		return "", taskDoc{}, err
	}
	doc, err := decodeTask(row)
	return row.ID, doc, err
}
