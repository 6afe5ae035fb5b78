package taskfile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault/capability"
)

func network(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("%q is no network: write 192.0.2.0/24 or 2001:db8::/32", s)
	}
	return nil
}

func (d *decoder) schemes(n *yaml.Node, at string) []string {
	if n == nil {
		return nil
	}
	out := d.texts(n, at, 32, func(s string) error {
		if !urlScheme.MatchString(s) {
			return errScheme
		}
		return nil
	})
	slices.Sort(out)
	return out
}

func (d *decoder) ports(n *yaml.Node, at string) (out []int) {
	if n == nil {
		return nil
	}
	for _, c := range d.list(n, at) {
		if p, ok := d.integer(c, at, 1, 65535); ok && !slices.Contains(out, int(p)) {
			out = append(out, int(p))
		}
	}
	slices.Sort(out)
	return out
}

// publicURL reads public_url: true, or a mapping of schemes and ports.
func (d *decoder) publicURL(n *yaml.Node, at string) *capability.PublicURL {
	if n.Kind == yaml.ScalarNode {
		if !d.boolean(n, at) {
			d.failHint(n, at, "leave it out", "false says nothing")
		}
		return &capability.PublicURL{}
	}
	m := d.fields(n, at, publicURLKeys)
	return &capability.PublicURL{Schemes: d.schemes(m["schemes"], at+".schemes"), Ports: d.ports(m["ports"], at+".ports")}
}

func (d *decoder) url(n *yaml.Node, at string) *capability.URL {
	m := d.fields(n, at, urlKeys)
	var u capability.URL
	u.Schemes, u.Ports = d.schemes(m["schemes"], at+".schemes"), d.ports(m["ports"], at+".ports")
	if v := m["hosts"]; v != nil {
		u.Hosts = d.texts(v, at+".hosts", 254, func(s string) error { return hostName(strings.TrimPrefix(s, ".")) })
		slices.Sort(u.Hosts)
	} else if n.Kind == yaml.MappingNode {
		d.failHint(n, at, "name the hosts; .example.com is every host below it", "hosts is missing")
	}
	if v := m["path"]; v != nil {
		if p := d.pattern(v, at+".path"); p != nil {
			if u.Path = *p; !plainPath(u.Path) {
				d.fail(v, at+".path", "want an absolute path without ., .. and doubled slashes")
			}
		}
	}
	return &u
}
