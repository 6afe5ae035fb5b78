package console

import (
	"net/http"
	"slices"
	"strings"
)

// Guard refuses requests that a foreign web page could have caused, before next
// sees them: a Host that is not in hosts (DNS rebinding), an Origin that is not one
// of hosts, or a Sec-Fetch-Site that says another site. Each gets 403. hosts are
// host:port as clients write them; ports matter. Without hosts everything is
// refused.
//
// It wraps every route of a listener, reading ones too: a page that may not read
// the answer can still cause it. It does not authenticate.
func Guard(next http.Handler, hosts ...string) http.Handler {
	allowed := make([]string, len(hosts))
	for i, h := range hosts {
		allowed[i] = strings.ToLower(h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(allowed, strings.ToLower(r.Host)) {
			http.Error(w, "this host name is not served here", http.StatusForbidden)
			return
		}
		for _, origin := range r.Header.Values("Origin") {
			if !sameOrigin(origin, allowed, r.TLS != nil) {
				http.Error(w, "requests from other origins are refused", http.StatusForbidden)
				return
			}
		}
		for _, site := range r.Header.Values("Sec-Fetch-Site") {
			// none is what a person typed or opened from a terminal.
			if site != "same-origin" && site != "none" {
				http.Error(w, "requests from other sites are refused", http.StatusForbidden)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// sameOrigin compares an Origin header with scheme://host for each host. Values are
// compared as text: browsers write them in one way only (RFC 6454, section 6.2).
func sameOrigin(origin string, hosts []string, tls bool) bool {
	scheme := "http://"
	if tls {
		scheme = "https://"
	}
	host, ok := strings.CutPrefix(strings.ToLower(origin), scheme)
	return ok && slices.Contains(hosts, host)
}
