package flow

import (
	"strings"

	"github.com/pilox/vault"
)

// wayOut reports whether the call leads private data in scope to somebody whom
// the capability does not name as a receiver of such data, and through which
// argument. A target that cannot reach beyond its sandbox is none. The list is
// Grant.MaySendTo and nothing else: that a tool may be called with a recipient
// does not say that private data may go there.
//
// A tool that only reads is none while nothing but selectors go to it: which
// record, out of a server that the operator registered. Free text, a path, or an
// argument that nobody classified can carry anything.
//
// With own, writing back to a server is none as long as everybody who reads
// there may read the data anyway. That holds only while nobody outside had a say
// in what is written: one server can hold private and public things, and an
// injected instruction moves data from one to the other.
func wayOut(f *vault.Facts, own bool) (path string, out bool) {
	if f.Tool.Local {
		return "", false
	}
	found := false              // somebody is named as the receiver
	carries := !f.Tool.ReadOnly // something but selectors goes out
	switch f.Call.Kind {
	case vault.KindEgress, vault.KindAgent, vault.KindModel:
		found = true
		to := f.Call.Target.Name
		if f.Call.Kind == vault.KindEgress {
			to, _, _ = strings.Cut(to, ":") // the list names hosts, whatever their port
		}
		if !mayReceive(f.Grant.MaySendTo, to) {
			return "", true
		}
	default: // whom the others reach stands in their arguments
	}
	for p, v := range f.Call.Args.Root().Walk() {
		s, isText := v.Str()
		role, ok := roleOf(f.Tool, p)
		carries = carries || role != vault.RoleSelector && role != vault.RoleAmount
		switch {
		case ok && role != vault.RoleRecipient && role != vault.RoleHost:
			continue
		case !ok && (!isText || !namesRecipient(s)):
			continue
		}
		found = true
		if !isText {
			s = v.Raw()
		}
		if !mayReceive(f.Grant.MaySendTo, s) {
			return p, true
		}
	}
	if found || !carries {
		return "", false
	}
	// Nobody is named: the server itself is the receiver.
	holds := f.Tool.Holds
	if (f.Tool.ReadOnly || own) && len(holds.Names()) > 0 && f.Scope.Readers.Covers(holds) {
		return "", false
	}
	return "", true
}

// namesRecipient reports whether a value of an unclassified argument is by its
// form somebody that data can be sent to.
func namesRecipient(s string) bool {
	switch k, _ := classify(s); k {
	case kindEmail, kindURL, kindIBAN:
		return true
	default:
		return false
	}
}

// mayReceive reports whether the list names the recipient: the whole address,
// its domain, or its host. An entry "*.example.com" covers what is below
// example.com; any other is exact.
func mayReceive(list []string, recipient string) bool {
	k, normal := classify(recipient)
	host := ""
	switch k {
	case kindEmail:
		_, host, _ = strings.Cut(normal, "@")
	case kindURL:
		host = hostOf(normal)
	case kindHost:
		host = normal
	default:
		if h, ok := normalHost(recipient); ok { // a single label, a host with an extension for a TLD
			host = h
		}
	}
	for _, entry := range list {
		if entry == recipient {
			return true
		}
		if ek, en := classify(entry); ek != kindText && ek == k && en == normal {
			return true
		}
		below, wild := strings.CutPrefix(entry, "*.")
		eh, ok := normalHost(below)
		if !ok || host == "" {
			continue
		}
		if !wild && host == eh || wild && strings.HasSuffix(host, "."+eh) {
			return true
		}
	}
	return false
}

// roleOf returns the role of an argument, or of the nearest value around it that
// has one.
func roleOf(t *vault.Tool, path string) (vault.Role, bool) {
	for path != "" {
		if r, ok := t.Roles[path]; ok {
			return r, true
		}
		path = path[:strings.LastIndexByte(path, '/')]
	}
	return "", false
}
