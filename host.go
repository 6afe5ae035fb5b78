package vault

import (
	"errors"
	"strconv"
	"strings"
)

var (
	errHostForm   = errors.New("want HOST or HOST:PORT, without :443")
	errHostName   = errors.New("not a DNS name in lower case")
	errHostNumber = errors.New("an address or a bare word is not a name")
)

// ParseHost parses the target of an egress call: a DNS name in lower case (RFC
// 1123, section 2.1), at most 253 bytes, with a port if it is not 443. Each target
// has one spelling, so that two rules about one host cannot pass for two hosts.
//
// IP addresses in whatever spelling are refused, because a name is what a person
// reviewed; so are names of one label, which a resolver completes by itself.
func ParseHost(target string) (host, port string, err error) {
	host, port, found := strings.Cut(target, ":")
	if !found {
		port = "443"
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || n == 443 || port[0] == '0' {
		return "", "", errHostForm
	}
	if len(host) > 253 {
		return "", "", errHostName
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", "", errHostName
		}
	}
	// The last label of a name is not a number (RFC 3696, section 2), so 127.1,
	// 0x7f000001 and 2130706433 are no names.
	last := labels[len(labels)-1]
	if len(labels) < 2 || last[0] >= '0' && last[0] <= '9' {
		return "", "", errHostNumber
	}
	return host, port, nil
}
