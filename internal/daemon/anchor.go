package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/anchor"
)

// Anchor says who vouches for the ledger's checkpoints. The zero Anchor is nobody.
type Anchor struct {
	Rekor      string        `yaml:"rekor"`        // URL of a Rekor v2 log; "" means none
	RekorKey   string        `yaml:"rekor_key"`    // verifier key of that log, NAME+HASH+KEY
	Witnesses  string        `yaml:"witnesses"`    // file with a witness policy (C2SP tlog-policy), relative to vault.yaml; "" means none
	RekorV1    string        `yaml:"rekor_v1"`     // URL of a Rekor v1 log; "" means none
	RekorV1Key string        `yaml:"rekor_v1_key"` // file with that log's public key in PEM, relative to vault.yaml
	TSA        string        `yaml:"tsa"`          // URL of a time-stamp authority (RFC 3161); "" means none
	TSARoots   string        `yaml:"tsa_roots"`    // file with the certificates in PEM that its own leads to, relative to vault.yaml
	Every      time.Duration `yaml:"every"`        // time between two anchors; zero means 5m
}

// policy returns the witness policy, nil for none.
func (c *Anchor) policy() ([]byte, error) {
	return readAnchorFile("witnesses", c.Witnesses, evidence.MaxPolicy)
}

// readAnchorFile returns the file that a key names, nil for none.
func readAnchorFile(key, name string, most int64) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("anchor.%s: %w", key, err)
	}
	if info.Size() > most {
		return nil, fmt.Errorf("anchor.%s: %s is larger than %d bytes", key, name, most)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("anchor.%s: %w", key, err)
	}
	return b, nil
}

func (d *Daemon) openAnchors(context.Context) error {
	c := &d.conf.Anchor
	if c.Rekor == "" && c.RekorV1 == "" && c.Witnesses == "" && c.TSA == "" {
		return nil
	}
	policy, err := c.policy()
	if err != nil {
		return err
	}
	roots, err := readAnchorFile("tsa_roots", c.TSARoots, evidence.MaxTSARoots)
	if err != nil {
		return err
	}
	keyV1, err := readAnchorFile("rekor_v1_key", c.RekorV1Key, 4096)
	if err != nil {
		return err
	}
	conf := anchor.Config{
		Policy: policy, Rekor: c.Rekor, RekorKey: c.RekorKey, RekorV1: c.RekorV1, RekorV1Key: string(keyV1),
		TSA: c.TSA, TSARoots: roots, Dir: d.path("anchors"), Every: c.Every, Log: d.log,
	}
	if c.logs() {
		if conf.Key, err = d.keys.AnchorKey(); err != nil {
			return err
		}
	}
	d.anchors, err = anchor.Open(d.ledger, conf)
	return err
}

// logs reports whether a transparency log is asked, which wants a signature.
func (c *Anchor) logs() bool { return c.Rekor != "" || c.RekorV1 != "" }

// keptAnchors is what goes into bundles.
func (d *Daemon) keptAnchors(ctx context.Context) ([]evidence.Anchor, error) {
	if d.anchors == nil {
		return nil, nil
	}
	return d.anchors.Anchors(ctx)
}

// anchorKey is the public half of the key that signs for transparency logs, in
// PKIX form; nil if there is none.
func (d *Daemon) anchorKey() ([]byte, error) {
	if !d.conf.Anchor.logs() {
		return nil, nil
	}
	key, err := d.keys.AnchorKey()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key.Public())
}

func (d *Daemon) anchorStatus() []admin.Anchor {
	if d.anchors == nil {
		return nil
	}
	head := d.ledger.Head().Size
	var out []admin.Anchor
	for _, s := range d.anchors.Status() {
		out = append(out, admin.Anchor{Target: s.Target, Size: s.Size, Lag: head - min(s.Size, head), At: s.At, Error: s.Error})
	}
	return out
}

// Anchor asks everybody who vouches for the ledger now. Who failed stands in the
// answer, beside those who did not.
func (b backend) Anchor(ctx context.Context) ([]admin.Anchor, error) {
	if b.d.anchors == nil {
		return nil, &admin.Error{Code: "not_found", Message: "nobody is asked to vouch for the ledger", Hint: "set anchor.witnesses, anchor.rekor, anchor.rekor_v1 or anchor.tsa in vault.yaml"}
	}
	if err := b.d.anchors.Now(ctx); err != nil {
		b.d.log.WarnContext(ctx, "checkpoint not anchored everywhere", "err", err)
	}
	return b.d.anchorStatus(), nil
}
