package flow

import (
	"strings"

	"github.com/pilox/vault"
)

// Reach says whom a call reaches: the recipients and the hosts that it names, each
// in one spelling. It goes by the roles of arguments, and where nobody gave one by
// the form of the value, so it errs on the side of more.
func (w *Flow) Reach(f *vault.Facts) (recipients, hosts []string) {
	switch f.Call.Kind {
	case vault.KindEgress:
		host, _, _ := strings.Cut(f.Call.Target.Name, ":")
		hosts = append(hosts, host)
	case vault.KindModel:
		hosts = append(hosts, f.Call.Target.Name)
	case vault.KindAgent:
		recipients = append(recipients, f.Call.Target.Name)
	default: // whom the others reach stands in their arguments
	}
	for p, v := range f.Call.Args.Root().Walk() {
		if k := v.Kind(); k == vault.Array || k == vault.Object {
			continue // their elements come by themselves
		}
		s, isText := v.Str()
		if !isText {
			s = v.Raw()
		}
		kind, normal := classify(s)
		role, known := roleOf(f.Tool, p)
		switch {
		case known && role == vault.RoleRecipient:
			recipients = append(recipients, normal)
		case known && role == vault.RoleHost:
			if h := hostIn(kind, normal); h != "" {
				normal = h
			}
			hosts = append(hosts, normal)
		case known || !isText:
		case kind == kindEmail, kind == kindIBAN:
			recipients = append(recipients, normal)
		case kind == kindURL, kind == kindHost:
			hosts = append(hosts, hostIn(kind, normal))
		}
	}
	return recipients, hosts
}

// hostIn returns the host that a typed value names, "" if it names none.
func hostIn(k kind, normal string) string {
	switch k {
	case kindURL:
		return hostOf(normal)
	case kindHost:
		return normal
	case kindEmail:
		_, host, _ := strings.Cut(normal, "@")
		return host
	default:
		return ""
	}
}
