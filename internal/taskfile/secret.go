package taskfile

import (
	"regexp"
	"strings"
	"sync"
)

// The patterns below are compiled when they are first asked, which a daemon never does.

// secretForm are the forms of common credentials: what their issuers begin them with.
var secretForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(strings.Join([]string{
		`-----BEGIN [A-Z ]*PRIVATE KEY`,
		`\b(sk|pk|rk)[-_](live|test|proj|ant)?[-_]?[A-Za-z0-9_-]{16,}`,
		`\b(gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}`,
		`\bglpat-[A-Za-z0-9_-]{16,}`,
		`\bxox[abeoprs]-[A-Za-z0-9-]{10,}`,
		`\b(AKIA|ASIA)[A-Z0-9]{16}\b`,
		`\bAIza[A-Za-z0-9_-]{30,}`,
		`\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`, // a JWT
		`\bvc1\.[A-Za-z0-9_-]{20,}`,                   // a capability
		`(?i:\b(bearer|basic) +[A-Za-z0-9+/=._-]{12,})`,
		`://[^/@\s]+:[^/@\s]+@`, // a password in a URL
	}, "|"))
})

// secretName are names of arguments whose values are credentials whatever they look
// like.
var secretName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(passw(or)?d|passphrase|secret|api_?key|access_?key|private_?key|credential|auth(orization)?$|token$|otp$|\bpin$)`)
})

// token is a word that could be random.
var token = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`[A-Za-z0-9_+=-]{20,}`)
})

var uuid = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
})

// looksSecret reports text that may be a credential. It errs on that side: what it
// holds back costs a length where a value would have stood.
func looksSecret(s string) bool {
	if secretForm().MatchString(s) {
		return true
	}
	for _, t := range token().FindAllString(s, 64) {
		if !uuid().MatchString(t) && random(t) {
			return true
		}
	}
	return false
}

// random reports whether small letters, capitals and digits of s follow each other as
// they do in a random text: in words and numbers, one is mostly followed by its like.
func random(s string) bool {
	var last rune
	n, changes, digits, letters := 0, 0, 0, 0
	for _, r := range s {
		class := 'A'
		switch {
		case r >= '0' && r <= '9':
			class = '0'
			digits++
		case r >= 'a' && r <= 'z':
			class = 'a'
			letters++
		case r >= 'A' && r <= 'Z':
			letters++
		default:
			continue
		}
		if n++; n > 1 && class != last {
			changes++
		}
		last = class
	}
	return digits > 0 && letters > 0 && changes*20 >= n*7
}
