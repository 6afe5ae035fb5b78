package flow

import (
	"math/big"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// A kind is the type of a value. Values match only within their kind.
type kind uint8

const (
	kindText   kind = iota // anything else, from minText bytes on, byte by byte
	kindEmail              // local part as is, domain as a host
	kindHost               // ASCII form, lower case, no trailing dot; or an address
	kindURL                // scheme and host in lower case, no default port
	kindIBAN               // upper case, no spaces, valid check digits
	kindPath               // cleaned, no ".." element
	kindAmount             // number, space, unit
	kindNumber             // decimal without needless zeros
	kinds
)

const (
	// minText is the least length at which a string that is nothing else counts
	// as a value: shorter ones occur everywhere by chance.
	minText = 8
	// maxTyped bounds a typed value. An e-mail address has at most 254 bytes, a
	// URL rarely more than 2,000.
	maxTyped = 2048
)

// classify returns the one kind of a whole string and its normal form. It never
// trims: "a@b.example " is text, and so matches nothing but itself.
func classify(s string) (kind, string) {
	if s == "" || len(s) > maxTyped {
		return kindText, s
	}
	// Which characters occur decides which forms are tried: most words of most
	// texts are none.
	var has marks
	for i := range len(s) {
		has |= markOf[s[i]]
	}
	if has&digit != 0 {
		if n, ok := normalNumber(s); ok {
			return kindNumber, n
		}
		if a, ok := normalAmount(s); ok {
			return kindAmount, a
		}
		if i, ok := normalIBAN(s); ok {
			return kindIBAN, i
		}
	}
	if has&(space|quote) != 0 {
		return kindText, s
	}
	if has&colon != 0 && has&slash != 0 {
		if u, ok := normalURL(s); ok {
			return kindURL, u
		}
		if strings.Contains(s, "://") {
			return kindText, s
		}
	}
	if has&at != 0 {
		if e, ok := normalEmail(s); ok {
			return kindEmail, e
		}
	}
	if has&slash == 0 && has&(dot|colon) != 0 {
		if h, ok := normalHost(s); ok && isName(h) && !isFileName(s) {
			return kindHost, h
		}
	}
	if has&slash != 0 || has&dot != 0 && isFileName(s) {
		if p, ok := normalPath(s); ok {
			return kindPath, p
		}
	}
	return kindText, s
}

// marks are the characters that typed values are told apart by.
type marks uint8

const (
	digit marks = 1 << iota
	at
	dot
	slash
	colon
	space
	quote // what may stand around a value and not in one
)

var markOf = func() (m [256]marks) {
	for c := '0'; c <= '9'; c++ {
		m[c] = digit
	}
	m['@'], m['.'], m['/'], m[':'] = at, dot, slash, colon
	m[' '], m['\t'], m['\n'], m['\r'] = space, space, space, space
	m['"'], m['<'], m['>'], m['`'], m['|'] = quote, quote, quote, quote, quote
	return m
}()

// normalHost returns the ASCII form of a host name or the canonical form of an
// IP address. A single label is a host here; [classify] wants more.
func normalHost(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return "", false
	}
	if isAddr := s[0] == '[' || s[0] >= '0' && s[0] <= '9' || strings.IndexByte(s, ':') >= 0; isAddr {
		if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			return a.Unmap().String(), a.Zone() == ""
		}
	}
	ascii := true
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf:
			ascii = false
		case c == '.' || c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z':
		default:
			return "", false
		}
	}
	if !ascii {
		var err error
		if s, err = idna.Lookup.ToASCII(s); err != nil {
			return "", false
		}
	}
	s = strings.ToLower(s)
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
	}
	return s, true
}

// isName reports whether a normal host is an address, or has at least two labels
// the last of which can be a top-level domain.
func isName(h string) bool {
	i := strings.LastIndexByte(h, '.')
	if i < 0 || h[len(h)-1] >= '0' && h[len(h)-1] <= '9' {
		_, err := netip.ParseAddr(h)
		return err == nil
	}
	tld := h[i+1:]
	if strings.HasPrefix(tld, "xn--") {
		return true
	}
	return len(tld) >= 2 && !strings.ContainsFunc(tld, func(r rune) bool { return r < 'a' || r > 'z' })
}

func normalEmail(s string) (string, bool) {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || len(local) > 64 || strings.HasSuffix(domain, ".") {
		return "", false
	}
	for i := range len(local) {
		c := local[i]
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte(".!#$%&'*+/=?^_`{|}~-", c) >= 0) {
			return "", false
		}
	}
	h, ok := normalHost(domain)
	if !ok || !strings.Contains(h, ".") {
		return "", false
	}
	return local + "@" + h, true
}

// schemes are those that lead somewhere, with their default ports.
var schemes = map[string]string{
	"http": "80", "https": "443", "ws": "80", "wss": "443", "ftp": "21", "sftp": "22", "ssh": "22", "git": "9418",
}

// normalURL refuses user information: what stands before an @ is made to be
// taken for the host.
func normalURL(s string) (string, bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return "", false
	}
	scheme = strings.ToLower(scheme)
	port, ok := schemes[scheme]
	if !ok || rest == "" {
		return "", false
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Opaque != "" {
		return "", false
	}
	h, ok := normalHost(u.Hostname())
	if !ok {
		return "", false
	}
	if strings.Contains(h, ":") {
		h = "[" + h + "]"
	}
	if p := u.Port(); p != "" && p != port {
		h += ":" + p
	}
	_, tail, _ := strings.Cut(s, "://")
	i := strings.IndexAny(tail, "/?#")
	switch {
	case i < 0:
		tail = "/"
	case tail[i] != '/':
		tail = "/" + tail[i:]
	default:
		tail = tail[i:]
	}
	return scheme + "://" + h + tail, true
}

// hostOf returns the host of a normal URL, without port and brackets.
func hostOf(normal string) string {
	u, err := url.Parse(normal)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// normalIBAN checks form and check digits (ISO 13616).
func normalIBAN(s string) (string, bool) {
	if len(s) < 15 || len(s) > 42 {
		return "", false
	}
	s = strings.ToUpper(strings.ReplaceAll(s, " ", ""))
	if len(s) < 15 || len(s) > 34 {
		return "", false
	}
	rem := 0
	for i := range len(s) {
		c := s[(i+4)%len(s)]
		switch {
		case c >= '0' && c <= '9':
			rem = (rem*10 + int(c-'0')) % 97
		case c >= 'A' && c <= 'Z':
			rem = (rem*100 + int(c-'A') + 10) % 97
		default:
			return "", false
		}
	}
	letter := func(c byte) bool { return c >= 'A' && c <= 'Z' }
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	return s, rem == 1 && letter(s[0]) && letter(s[1]) && digit(s[2]) && digit(s[3])
}

// normalPath cleans a path lexically. An element ".." is refused: where it leads
// depends on links.
func normalPath(s string) (string, bool) {
	if s == "" || len(s) > maxTyped || strings.ContainsAny(s, "\x00\n\r") || s != strings.TrimSpace(s) {
		return "", false
	}
	for e := range strings.SplitSeq(s, "/") {
		if e == ".." {
			return "", false
		}
	}
	return path.Clean(s), true
}

// fileTypes are extensions that make a word with a dot a file and not a host.
// Some are top-level domains as well: a host of that name has to be written as a
// URL to be one.
var fileTypes = map[string]bool{
	"txt": true, "md": true, "csv": true, "tsv": true, "json": true, "jsonl": true, "yaml": true, "yml": true, "toml": true, "ini": true,
	"conf": true, "cfg": true, "env": true, "log": true, "pdf": true, "doc": true, "docx": true, "xls": true, "xlsx": true, "ppt": true,
	"pptx": true, "odt": true, "rtf": true, "html": true, "htm": true, "xml": true, "svg": true, "png": true, "jpg": true, "jpeg": true,
	"gif": true, "webp": true, "zip": true, "gz": true, "tar": true, "tgz": true, "go": true, "py": true, "js": true, "ts": true,
	"rs": true, "c": true, "h": true, "cpp": true, "java": true, "rb": true, "php": true, "sh": true, "sql": true, "db": true,
	"key": true, "pem": true, "crt": true, "lock": true, "mod": true, "sum": true, "eml": true, "ics": true, "mp3": true, "mp4": true,
}

func isFileName(s string) bool {
	i := strings.LastIndexByte(s, '.')
	return i > 0 && fileTypes[strings.ToLower(s[i+1:])]
}

// normalNumber returns a decimal number without needless zeros. Thousands may be
// grouped by commas. Exponents and other groupings are not read: they are rare
// where people write, and a wrong guess would trust a wrong number.
func normalNumber(s string) (string, bool) {
	if len(s) > 40 || s == "" || s[len(s)-1] > '9' {
		return "", false
	}
	in, sign := s, ""
	switch {
	case strings.HasPrefix(s, "-"):
		sign, s = "-", s[1:]
	case strings.HasPrefix(s, "+"):
		s = s[1:]
	}
	whole, frac, dot := strings.Cut(s, ".")
	if dot && frac == "" || whole == "" {
		return "", false
	}
	if strings.IndexByte(whole, ',') >= 0 {
		groups := strings.Split(whole, ",")
		if len(groups[0]) == 0 || len(groups[0]) > 3 {
			return "", false
		}
		for _, g := range groups[1:] {
			if len(g) != 3 {
				return "", false
			}
		}
		whole = strings.Join(groups, "")
	}
	for _, part := range []string{whole, frac} {
		for i := range len(part) {
			if part[i] < '0' || part[i] > '9' {
				return "", false
			}
		}
	}
	whole, frac = strings.TrimLeft(whole, "0"), strings.TrimRight(frac, "0")
	if whole == "" {
		whole = "0"
	}
	if frac != "" {
		whole += "." + frac
	}
	if whole == "0" {
		sign = ""
	}
	if sign == "" && whole == in {
		return in, true
	}
	return sign + whole, true
}

// jsonNumber is the normal form of a number as arguments hold it, exponents
// included; it must be canonical.
func jsonNumber(raw string) (string, bool) {
	if n, ok := normalNumber(raw); ok {
		return n, true
	}
	if len(raw) > 40 {
		return "", false
	}
	r, ok := new(big.Rat).SetString(raw)
	if !ok || !r.IsInt() || r.Num().BitLen() > 128 {
		return "", false
	}
	return r.Num().String(), true
}

// isUnit reports whether s is a currency code or sign.
func isUnit(s string) bool {
	switch s {
	case "€", "£", "$", "¥":
		return true
	}
	return len(s) == 3 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'A' && s[1] <= 'Z' && s[2] >= 'A' && s[2] <= 'Z'
}

// normalUnit maps the signs that stand for one currency to its code. A dollar or
// yen sign stands for several and only matches itself.
func normalUnit(s string) string {
	switch s {
	case "€":
		return "EUR"
	case "£":
		return "GBP"
	}
	return s
}

// normalAmount reads "12.50 EUR", "EUR 12.50", "€12.50" and "12.50€".
func normalAmount(s string) (string, bool) {
	if len(s) > 48 {
		return "", false
	}
	for _, u := range []string{"€", "£", "$", "¥"} {
		for _, cut := range []func(string, string) (string, bool){strings.CutPrefix, strings.CutSuffix} {
			if rest, ok := cut(s, u); ok {
				if n, ok := normalNumber(strings.TrimSpace(rest)); ok {
					return n + " " + normalUnit(u), true
				}
			}
		}
	}
	a, b, ok := strings.Cut(s, " ")
	if !ok {
		return "", false
	}
	if isUnit(a) {
		a, b = b, a
	}
	n, ok := normalNumber(a)
	return n + " " + normalUnit(b), ok && isUnit(b)
}
