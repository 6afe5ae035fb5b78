package capability

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pilox/vault"
)

var (
	errRootOnly = errors.New("only a root says tenant, principal, task, audience, issued and not before")
	errEmptySet = errors.New("budgets without a counter")
)

// checkRoot checks a root link on its own.
func (l *Link) checkRoot() error {
	switch {
	case !l.Parent.IsZero():
		return errors.New("root with a parent")
	case l.Tenant == "" || l.Principal == "" || l.Agent == "" || l.Audience == "":
		return errors.New("root without tenant, principal, agent or audience")
	case l.Task == nil || l.Task.ID == "":
		return errors.New("root without task")
	case l.Issued <= 0 || l.NotBefore <= 0 || l.Expires <= 0:
		return errors.New("root without issued, not before or expires")
	case l.Expires <= l.NotBefore:
		return errors.New("expires before it begins")
	case l.Depth == nil:
		return errors.New("root without depth")
	case l.Holder == nil:
		return errors.New("root without holder")
	case l.Grants == nil:
		return errors.New("root without grants")
	case l.Budgets == nil || l.Budgets.Calls == nil:
		return errors.New("root without a budget of calls")
	}
	return l.check(true)
}

// checkChild checks a further link on its own.
func (l *Link) checkChild() error {
	if l.Tenant != "" || l.Principal != "" || l.Task != nil || l.Audience != "" || l.Issued != 0 || l.NotBefore != 0 {
		return errRootOnly
	}
	return l.check(false)
}

func (l *Link) check(root bool) error {
	for _, at := range []Instant{l.Issued, l.NotBefore, l.Expires} {
		if at < 0 || at > lastInstant {
			return errors.New("time before 1970 or after 9999")
		}
	}
	if l.Depth != nil && (*l.Depth < 0 || *l.Depth >= MaxLinks) {
		return fmt.Errorf("depth %d: want 0 to %d", *l.Depth, MaxLinks-1)
	}
	if l.MinGrade > vault.GradeA {
		return errors.New("unknown grade")
	}
	for _, s := range []string{string(l.Tenant), l.Principal, string(l.Agent), l.Audience} {
		if err := checkString(s, maxName); err != nil {
			return err
		}
	}
	if t := l.Task; t != nil {
		if err := errors.Join(checkString(string(t.ID), maxName), checkString(t.Purpose, maxText), checkString(t.Inputs, maxInputs)); err != nil {
			return fmt.Errorf("task: %w", err)
		}
	}
	for _, set := range [][]string{l.MayRead, l.MaySendTo} {
		for _, s := range set {
			if err := checkName(s); err != nil {
				return err
			}
		}
	}
	for _, a := range l.Delegates {
		if err := checkName(string(a)); err != nil {
			return err
		}
	}
	if l.Holder != nil {
		if err := l.Holder.check(); err != nil {
			return err
		}
	}
	if err := errors.Join(l.checkCaveats(), l.Budgets.check(true)); err != nil {
		return err
	}
	return l.Grants.check(root)
}

// checkCaveats checks what a link demands of every call.
func (l *Link) checkCaveats() error {
	if len(l.Caveats) > maxCaveats || len(l.ThirdParty) > maxCaveats {
		return fmt.Errorf("%d caveats and %d third parties: at most %d each", len(l.Caveats), len(l.ThirdParty), maxCaveats)
	}
	for _, c := range l.Caveats {
		if err := errors.Join(checkPattern(c), checkString(c, maxText)); err != nil {
			return fmt.Errorf("caveat: %w", err)
		}
	}
	for _, p := range l.ThirdParty {
		if err := errors.Join(checkName(p.Group), checkName(p.Audience)); err != nil {
			return fmt.Errorf("third party: %w", err)
		}
	}
	if _, ok := l.SignAt.risk(); !ok && l.SignAt != "" {
		return fmt.Errorf("sign at %q: want low, medium or high", l.SignAt)
	}
	if slices.Contains(l.DelegateKeys, vault.Digest{}) {
		return errors.New("delegate key without a thumbprint")
	}
	return nil
}

func (h *Holder) check() error {
	n := 0
	for _, set := range []bool{!h.Key.IsZero(), h.SPIFFE != "", h.Channel != "", h.UID != nil, h.Bearer} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("holder of %d kinds: want one", n)
	}
	if h.SPIFFE != "" && !strings.HasPrefix(h.SPIFFE, "spiffe://") {
		return errors.New("holder: not a SPIFFE ID")
	}
	return errors.Join(checkString(h.SPIFFE, maxTargetName), checkString(h.Channel, maxName))
}

func (g Grants) check(root bool) error {
	for kind, targets := range g {
		if _, err := vault.ParseKind(string(kind)); err != nil {
			return err
		}
		for t, r := range targets {
			if t.Name == "" || len(t.Name) > maxTargetName {
				return errors.New("target without a name, or with one too long")
			}
			if !root && t.Name == anyName {
				return errors.New(`only a root grants "*"`)
			}
			if err := r.check(root); err != nil {
				return fmt.Errorf("%s %s: %w", kind, t.Name, err)
			}
		}
	}
	return nil
}

func (r *Rule) check(root bool) error {
	switch {
	case !root && r.Any:
		return errors.New("only a root leaves arguments open")
	case r.Any && r.Args != nil:
		return errors.New("args that are both named and open")
	case root && !r.Any && r.Args == nil:
		return errors.New("a root says args or any; an empty map allows none")
	}
	if len(r.Ask) > maxTests {
		return fmt.Errorf("%d approval groups: at most %d", len(r.Ask), maxTests)
	}
	for _, g := range r.Ask {
		if err := checkName(g); err != nil {
			return fmt.Errorf("approval group: %w", err)
		}
	}
	if err := r.Budgets.check(false); err != nil {
		return err
	}
	_, err := compileArgs(r.Args, "", 0, nil)
	return err
}

// lastInstant is the end of the year 9999, the last that RFC 3339 can write.
const lastInstant Instant = 253_402_300_799_999

// check checks budgets of a link or, if not link, of a rule.
func (b *Budgets) check(link bool) error {
	if b == nil {
		return nil
	}
	if b.Calls == nil && b.BytesOut == nil && len(b.Sums) == 0 && b.Recipients == nil && b.Hosts == nil && b.Wall == nil {
		return errEmptySet
	}
	for _, n := range []*int64{b.Calls, b.BytesOut, b.Recipients, b.Hosts, b.Wall} {
		if n != nil && *n < 0 {
			return errors.New("negative budget")
		}
	}
	if len(b.Sums) > maxSums {
		return fmt.Errorf("%d sums: at most %d", len(b.Sums), maxSums)
	}
	for _, s := range b.Sums {
		if err := s.check(link); err != nil {
			return fmt.Errorf("sum of %s: %w", s.Arg, err)
		}
	}
	return nil
}

func (s *Sum) check(link bool) error {
	if _, err := vault.ParseKind(string(s.Kind)); link == (err != nil) {
		return errors.New("a sum of a link names its target, one of a rule does not")
	}
	if link == (s.Name == "" || s.Name == anyName || len(s.Name) > maxTargetName) || !link && (s.Name != "" || !s.Server.IsZero() || s.Kind != "") {
		return errors.New("a sum of a link names its target, one of a rule does not")
	}
	if _, err := tokens(s.Arg); err != nil {
		return err
	}
	if s.UnitArg != "" {
		if _, err := tokens(s.UnitArg); err != nil {
			return err
		}
	}
	if s.Limit < 0 {
		return errors.New("negative limit")
	}
	return checkName(s.Unit)
}

// tokens splits a JSON Pointer into decoded reference tokens.
func tokens(pointer string) ([]string, error) {
	if len(pointer) < 2 || pointer[0] != '/' || len(pointer) > maxText {
		return nil, fmt.Errorf("%q is no JSON Pointer to an argument", pointer)
	}
	list := strings.Split(pointer[1:], "/")
	if len(list) > maxNesting {
		return nil, fmt.Errorf("%q: at most %d levels", pointer, maxNesting)
	}
	for i, t := range list {
		plain := strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
		if vault.PointerToken(plain) != t {
			return nil, fmt.Errorf("%q is no JSON Pointer: ~ stands alone", pointer)
		}
		list[i] = plain
	}
	return list, nil
}

// checkName checks an identifier that must be there.
func checkName(s string) error {
	if s == "" {
		return errors.New("empty name")
	}
	return checkString(s, maxName)
}

// checkString checks text of up to limit bytes. Control characters other than line
// breaks and tabs have no business in what people will read.
func checkString(s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("text of %d bytes: at most %d", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return errors.New("text is not UTF-8")
	}
	for _, r := range s {
		if r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0x7f {
			return errors.New("control character in text")
		}
	}
	return nil
}
