package capability

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// compileCIDR passes an IP address as RFC 5952 or dotted decimal writes it, without
// zone, in one of the networks. An IPv4 address inside an IPv6 one counts as the
// IPv4 address, as the kernel takes it.
func compileCIDR(networks []string) (test, error) {
	if len(networks) > maxSet {
		return nil, fmt.Errorf("%d networks: at most %d", len(networks), maxSet)
	}
	nets := make([]netip.Prefix, len(networks))
	for i, s := range networks {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return nil, fmt.Errorf("cidr: %w", err)
		case p != p.Masked() || p.Addr().Is4In6():
			return nil, fmt.Errorf("cidr: %q is not the plain form of a network, such as 192.0.2.0/24", s)
		}
		nets[i] = p
	}
	return text(func(s string) bool {
		if len(s) > 45 { // the longest form of an IPv6 address
			return false
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return false
		}
		a = a.Unmap()
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
	}), nil
}

func (u *PublicURL) compile() (test, error) {
	schemes := u.Schemes
	if schemes == nil {
		schemes = []string{"https"}
	}
	for _, s := range schemes {
		if defaultPort(s) == "" {
			return nil, fmt.Errorf("public_url: scheme %q: want https, http, wss or ws", s)
		}
	}
	ports, err := portNames(u.Ports)
	if err != nil {
		return nil, errors.New("public_url: no such port")
	}
	rule := compiledURL{slices.Clone(schemes), nil, ports, u.Ports == nil, true, ""}
	return text(rule.match), nil
}

// privateNames are the ends of names that are not of the public DNS (RFC 6761, RFC
// 6762, RFC 7686, RFC 8375, and what clouds use for metadata).
var privateNames = []string{"localhost", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa", "onion", "test", "example", "invalid", "in-addr.arpa", "ip6.arpa"}

// publicHost reports whether the host of a URL is a name or an address of the
// public internet. Numbers that are no dotted decimal (2130706433, 0x7f.1) are
// neither.
func publicHost(host string) bool {
	if v6, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		return err == nil && strings.HasSuffix(v6, "]") && a.Is6() && vault.PublicAddr(a)
	}
	if hostName(host) {
		return strings.IndexByte(host, '.') > 0 && !slices.ContainsFunc(privateNames, func(end string) bool { return underHost(host, end) })
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Is4() && vault.PublicAddr(a)
}
