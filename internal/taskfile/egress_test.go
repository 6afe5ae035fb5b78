package taskfile

import (
	"regexp"
	"strings"
	"testing"
)

// TestEgressPaths reads as the specification of paths: a pattern, a request, and
// whether the one lets the other through.
func TestEgressPaths(t *testing.T) {
	for _, tt := range []struct {
		name, pattern, request string
		ok                     bool
	}{
		{"a path is itself", "/v1/accounts", "/v1/accounts", true},
		{"a path is not its beginning", "/v1/accounts", "/v1/accounts/7", false},
		{"a path is without a query", "/v1/accounts", "/v1/accounts?all", false},
		{"a dot is a dot", "/v1.json", "/v1xjson", false},
		{"a star is one segment", "/v1/accounts/*", "/v1/accounts/7", true},
		{"a star stops at a slash", "/v1/accounts/*", "/v1/accounts/7/owner", false},
		{"a star does not start a query", "/v1/accounts/*", "/v1/accounts/7?to=evil", false},
		{"two stars cross slashes", "/v1/**", "/v1/accounts/7/owner", true},
		{"two stars do not start a query", "/v1/**", "/v1/accounts?to=evil", false},
		{"nor do three", "/v1/***", "/v1/accounts?to=evil", false},
		{"a star in the middle", "/v1/*/owner", "/v1/7/owner", true},
		{"a star in the middle takes one segment", "/v1/*/owner", "/v1/7/8/owner", false},
		{"a question mark starts the query and is no wildcard", "/v1/?", "/v1/7", false},
		{"a query is itself", "/find?q=a", "/find?q=a", true},
		{"a query is not its beginning", "/find?q=a", "/find?q=a&to=evil", false},
		{"a star in a query is one value", "/find?q=*", "/find?q=a/b", true},
		{"a star in a query starts no other parameter", "/find?q=*", "/find?q=a&to=evil", false},
		{"two stars are any query", "/find?**", "/find?q=a&to=b", true},
		{"a query that is granted has to be there", "/find?**", "/find", false},
		{"a star before the query stays before it", "/*?q=a", "/find?x&y?q=a", false},
		{"a pattern is no expression", "/a|/b", "/b", false},
		{"everything without a query", "/**", "/", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// As capability matches it: the whole value.
			if got := regexp.MustCompile(`\A(?:` + pathsRegex([]string{"/never", tt.pattern}) + `)\z`).MatchString(tt.request); got != tt.ok {
				t.Errorf("%s lets %s through: %v, want %v", tt.pattern, tt.request, got, tt.ok)
			}
		})
	}
}

func TestEgressThatIsTooLargeIsRefused(t *testing.T) {
	long := func(first, star string) string { return first + strings.Repeat("x", 1500) + star }
	for _, tt := range []struct {
		name, entry string
		ok          bool
	}{
		{"a long path", "{host: a.example, methods: [GET], path: " + long("/", "") + "}", true},
		{"a path beyond the bound", "{host: a.example, methods: [GET], path: /" + strings.Repeat("x", maxTarget) + "}", false},
		{"several long paths", "{host: a.example, methods: [GET], path: [" + long("/a", "") + "," + long("/b", "") + "," + long("/c", "") + "]}", true},
		{"several long paths with a star", "{host: a.example, methods: [GET], path: [" + long("/a", "") + "," + long("/b", "") + "," + long("/c", "*") + "]}", false},
		{"a host beyond the bound", "{host: " + strings.Repeat("a.", 127) + "example, methods: [GET], path: /}", false},
	} {
		f, err := Parse([]byte(least+"egress: ["+tt.entry+"]\n"), nil)
		if tt.ok != (err == nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil {
			if err := mint(t, f); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
}
