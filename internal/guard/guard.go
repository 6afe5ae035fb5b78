// Package guard looks at the content of arguments and results for what no rule
// about authority can see: characters that people do not see, and secrets that
// do not belong there.
//
// It owns the scanners, one file each, and the walk over JSON they share. It
// does not judge what text says, and it never makes a verdict looser. Start with
// [New], [Guard.ScanArgs] and [Guard.ScanResult].
//
// It promises: a known secret value leaves in no argument and no result, in none
// of the forms that secret.go lists; a clean result is the same slice, not a
// copy; a changed one differs only in the strings where something was found; a
// result that cannot be walked is withheld. Time is linear in the content.
package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/pilox/vault"
)

// A Config says what the scanners know. Its zero value scans for hidden
// characters only.
type Config struct {
	// Secrets returns the values that must never be seen, canaries included. It
	// is called for every scan and must be cheap: return the same slice until
	// something changes. Values under 8 bytes are not looked for, they occur by
	// chance. Nil means none.
	Secrets func() []string
	// MaxBytes bounds a result; zero means 16 MiB, a backstop behind the bound
	// of the edge that read it.
	MaxBytes int
	// MaxDepth bounds the nesting of a result; zero means vault.MaxArgsDepth.
	MaxDepth int
}

// A Guard scans. It is safe for concurrent use.
type Guard struct {
	cfg   Config
	known atomic.Pointer[secrets] // of the last list seen
}

// New returns a Guard.
func New(cfg Config) *Guard {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 16 << 20
	}
	if cfg.MaxDepth <= 0 {
		cfg.MaxDepth = vault.MaxArgsDepth
	}
	g := &Guard{cfg: cfg}
	g.known.Store(newSecrets(nil))
	return g
}

// secrets returns the matcher for the current list, building it on change.
func (g *Guard) secrets() *secrets {
	known := g.known.Load()
	if g.cfg.Secrets == nil {
		return known
	}
	if list := g.cfg.Secrets(); !slices.Equal(list, known.list) {
		known = newSecrets(list)
		g.known.Store(known)
	}
	return known
}

// ScanArgs denies a call whose arguments hold a known secret, or hidden tag or
// direction characters where they decide something: anywhere but in an argument
// that is mere content. What a person approves must be what they see.
func (g *Guard) ScanArgs(_ context.Context, f *vault.Facts) vault.Decision {
	known := g.secrets()
	for _, doc := range []vault.Args{f.Call.Args, f.Call.Params} {
		text := doc.String()
		// Canonical text keeps every character but quotes, backslashes and
		// controls as it is, so one look at the whole mostly is enough.
		escaped := known.quoted && strings.IndexByte(text, '\\') >= 0
		if !hides(text) && !escaped && !known.in(text) {
			continue
		}
		if d := g.scanValues(f, doc.Root(), "", known); d.Verdict != vault.Allow {
			return d
		}
		if known.in(text) { // a number, or over several strings
			return vault.Denied(vault.CodeScan, "", "a known secret stands in the arguments")
		}
	}
	return vault.Allowed()
}

// scanValues looks at every key and string below v.
func (g *Guard) scanValues(f *vault.Facts, v vault.Value, path string, known *secrets) vault.Decision {
	switch v.Kind() {
	case vault.Object:
		for k, c := range v.All() {
			at := path + "/" + vault.PointerToken(k)
			if d := judge(k, path, true, known); d.Verdict != vault.Allow {
				return d
			}
			if d := g.scanValues(f, c, at, known); d.Verdict != vault.Allow {
				return d
			}
		}
	case vault.Array:
		i := 0
		for _, c := range v.All() {
			if d := g.scanValues(f, c, fmt.Sprintf("%s/%d", path, i), known); d.Verdict != vault.Allow {
				return d
			}
			i++
		}
	case vault.String:
		s, _ := v.Str()
		return judge(s, path, !isContent(f.Tool, path), known)
	default: // a number, true, false or null hides nothing
	}
	return vault.Allowed()
}

// judge decides about one string of the arguments.
func judge(s, path string, decides bool, known *secrets) vault.Decision {
	if known.in(s) {
		return vault.Denied(vault.CodeScan, path, "a known secret stands in the arguments")
	}
	if !decides || !hides(s) {
		return vault.Allowed()
	}
	if _, n := reveal(s); n.tags > 0 || n.direction > 0 {
		return vault.Denied(vault.CodeScan, path, n.String())
	}
	return vault.Allowed()
}

// isContent reports whether an argument is declared as content, by itself or by
// the nearest value around it that has a role.
func isContent(t *vault.Tool, path string) bool {
	for path != "" {
		if r, ok := t.Roles[path]; ok {
			return r == vault.RoleContent
		}
		path = path[:strings.LastIndexByte(path, '/')]
	}
	return false
}

// redacted stands where a secret was.
const redacted = "[redacted]"

var errResidue = errors.New("a known secret outside of strings")

// ScanResult takes hidden characters and known secrets out of a result or frame.
// The decision then allows with a reason that says what was taken out, without
// the value. A result that cannot be cleaned is withheld by a denying decision.
func (g *Guard) ScanResult(_ context.Context, _ *vault.Facts, raw []byte) ([]byte, vault.Decision) {
	if len(raw) > g.cfg.MaxBytes {
		return nil, vault.Denied(vault.CodeScan, "", fmt.Sprintf("%d bytes, at most %d", len(raw), g.cfg.MaxBytes))
	}
	known := g.secrets()
	// Most strings need no second look: one without a byte outside ASCII hides
	// nothing, and one without escapes was part of the look at the whole.
	plain := known.inBytes(raw)
	var n found
	out, err := rewrite(raw, g.cfg.MaxDepth, func(lit literal) (string, bool, error) {
		if !plain && !lit.masked && !(lit.escaped && known.quoted) && !(lit.high && hides(lit.raw)) {
			return "", false, nil
		}
		s := lit.decode()
		clean, c := reveal(s)
		clean, c.secrets = known.redact(clean)
		if c == (found{}) {
			return "", false, nil
		}
		if lit.key {
			// Two keys could become one, and what a client reads would depend on
			// which it takes.
			return "", false, errors.New("hidden content in a key")
		}
		n.add(c)
		return clean, true, nil
	})
	if err == nil && plain && known.inBytes(out) {
		err = errResidue
	}
	if err != nil {
		return nil, vault.Denied(vault.CodeScan, "", "result withheld: "+err.Error())
	}
	d := vault.Allowed()
	if n != (found{}) {
		d.Reasons = []vault.Reason{{Code: vault.CodeScan, Detail: "taken out of the result: " + n.String()}}
	}
	return out, d
}

// A found counts what was found in some content.
type found struct {
	tags, direction, zeroWidth, selectors, secrets int
}

func (n *found) add(m found) {
	n.tags += m.tags
	n.direction += m.direction
	n.zeroWidth += m.zeroWidth
	n.selectors += m.selectors
	n.secrets += m.secrets
}

func (n found) String() string {
	var parts []string
	for _, p := range []struct {
		count int
		what  string
	}{
		{n.tags, "tag characters"},
		{n.direction, "direction controls"},
		{n.zeroWidth, "zero-width characters"},
		{n.selectors, "variation selectors"},
		{n.secrets, "known secrets"},
	} {
		if p.count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.count, p.what))
		}
	}
	return strings.Join(parts, ", ")
}
