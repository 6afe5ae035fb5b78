package capability

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// cleanPath reports whether p is absolute and reads the same for every program:
// no NUL, no empty segment, no ".", no "..".
func cleanPath(p string) bool {
	if p == "/" {
		return true
	}
	if p == "" || p[0] != '/' || strings.IndexByte(p, 0) >= 0 {
		return false
	}
	for rest := p[1:]; ; {
		segment, after, more := strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
		if !more {
			return true
		}
		rest = after
	}
}

// underPath reports whether p is base or below it, by segments. Both are clean.
func underPath(p, base string) bool {
	if base == "/" || p == base {
		return true
	}
	return len(p) > len(base) && p[len(base)] == '/' && strings.HasPrefix(p, base)
}

// hostName reports whether h is a plain ASCII host name in lower case: labels of
// letters, digits, "-" and "_", the last one not a number. Names in other scripts
// come as A-labels (xn--); a trailing dot, which some resolvers and allow-lists
// read differently, is refused.
func hostName(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for rest := h; ; {
		label, after, more := strings.Cut(rest, ".")
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
		if !more {
			// The WHATWG URL parser takes a last label that begins like a number,
			// decimal or hexadecimal, for an IPv4 address.
			return label[0] < '0' || label[0] > '9'
		}
		rest = after
	}
}

// lowerHost returns h in lower case without allocating if it is already.
func lowerHost(h string) string {
	for i := range len(h) {
		if h[i] >= 'A' && h[i] <= 'Z' {
			return strings.ToLower(h)
		}
	}
	return h
}

func underHost(host, suffix string) bool {
	return host == suffix || len(host) > len(suffix) && host[len(host)-len(suffix)-1] == '.' && strings.HasSuffix(host, suffix)
}

func compileHost(suffixes []string) (test, error) {
	if err := checkHosts(suffixes); err != nil {
		return nil, err
	}
	suffixes = slices.Clone(suffixes)
	return text(func(s string) bool {
		s = lowerHost(s)
		return hostName(s) && slices.ContainsFunc(suffixes, func(suffix string) bool { return underHost(s, suffix) })
	}), nil
}

func checkHosts(hosts []string) error {
	if len(hosts) > maxSet {
		return fmt.Errorf("%d hosts: at most %d", len(hosts), maxSet)
	}
	for _, h := range hosts {
		if !hostName(h) {
			return fmt.Errorf("%q is no host name in lower-case ASCII", h)
		}
	}
	return nil
}

func compileEmail(domains []string) (test, error) {
	if err := checkHosts(domains); err != nil {
		return nil, err
	}
	domains = slices.Clone(domains)
	return text(func(s string) bool {
		local, domain, ok := strings.Cut(s, "@")
		return ok && localPart(local) && slices.Contains(domains, lowerHost(domain))
	}), nil
}

// localPart reports whether s is a dot-atom of RFC 5321, section 4.1.2: no quotes,
// comments, display names or second address can hide in it.
func localPart(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".!#$%&'*+-/=?^_`{|}~", c) >= 0) {
			return false
		}
	}
	return true
}

func (u *URL) compile() (test, error) {
	schemes := u.Schemes
	if schemes == nil {
		schemes = []string{"https"}
	}
	for _, s := range schemes {
		if defaultPort(s) == "" {
			return nil, fmt.Errorf("url: scheme %q: want https, http, wss or ws", s)
		}
	}
	if len(u.Hosts) == 0 || len(u.Hosts) > maxSet {
		return nil, errors.New("url: no hosts, or too many")
	}
	for _, h := range u.Hosts {
		if !hostName(strings.TrimPrefix(h, ".")) && !ipHost(h) {
			return nil, fmt.Errorf("url: %q is no host", h)
		}
	}
	ports, err := portNames(u.Ports)
	if err != nil {
		return nil, err
	}
	if u.Path != "" && !cleanPath(u.Path) {
		return nil, errors.New("url: path is not absolute and clean")
	}
	rule := compiledURL{slices.Clone(schemes), slices.Clone(u.Hosts), ports, u.Ports == nil, false, u.Path}
	return text(rule.match), nil
}

func portNames(ports []int) ([]string, error) {
	names := make([]string, len(ports))
	for i, p := range ports {
		if p < 1 || p > 65535 {
			return nil, fmt.Errorf("url: no port %d", p)
		}
		names[i] = strconv.Itoa(p)
	}
	return names, nil
}

// ipHost reports whether h is an IP address as a URL writes it. Addresses match
// only when the rule names them.
func ipHost(h string) bool {
	u, err := url.Parse("https://" + h + "/")
	return err == nil && u.Host == h && u.Port() == "" && u.User == nil && strings.Trim(h, "[]0123456789abcdef.:") == "" && !strings.HasPrefix(h, ".")
}

func defaultPort(scheme string) string {
	switch scheme {
	case "https", "wss":
		return "443"
	case "http", "ws":
		return "80"
	}
	return ""
}

type compiledURL struct {
	schemes, hosts, ports []string
	ownPort               bool // only the scheme's default
	public                bool // any host of the public internet instead of hosts
	path                  string
}

// match takes only URLs that RFC 3986 and WHATWG parsers read alike.
func (c *compiledURL) match(s string) bool {
	if len(s) > maxTargetName {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '\\' {
			return false
		}
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !slices.Contains(c.schemes, scheme) || strings.IndexByte(rest, '#') >= 0 {
		return false
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host, port := lowerHost(rest[:end]), defaultPort(scheme)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host, port = host[:i], host[i+1:]
	}
	if !c.host(host) || c.ownPort && port != defaultPort(scheme) || !c.ownPort && !slices.Contains(c.ports, port) {
		return false
	}
	if _, err := url.Parse(s); err != nil {
		return false
	}
	path, _, _ := strings.Cut(rest[end:], "?")
	return c.under(path)
}

func (c *compiledURL) host(host string) bool {
	if c.public {
		return publicHost(host)
	}
	name := hostName(host)
	for _, h := range c.hosts {
		if below, ok := strings.CutPrefix(h, "."); ok {
			if name && host != below && underHost(host, below) {
				return true
			}
		} else if host == h {
			return true
		}
	}
	return false
}

// under reports whether a URL path reads the same everywhere and is below the
// rule's. One slash at the end is common in URLs and let through.
func (c *compiledURL) under(path string) bool {
	if path == "" {
		path = "/"
	}
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		// url.Parse has checked that two hex digits follow.
		switch strings.ToLower(path[i+1 : i+3]) {
		case "00", "25", "2e", "2f", "5c":
			return false // decoded once more it would be another path
		}
	}
	if path != "/" {
		path = strings.TrimSuffix(path, "/")
	}
	return cleanPath(path) && (c.path == "" || underPath(path, c.path))
}
