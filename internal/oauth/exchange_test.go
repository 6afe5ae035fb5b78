package oauth

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

var formType = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}

func goodForm() url.Values {
	return url.Values{"grant_type": {GrantType}, "subject_token": {"a.b.c"}, "subject_token_type": {TypeIDToken}, "audience": {"invoices"}}
}

// TestParseExchange lists the requests that are refused before anything is looked at.
func TestParseExchange(t *testing.T) {
	with := func(k string, v ...string) string { f := goodForm(); f[k] = v; return f.Encode() }
	for _, tt := range []struct {
		name, body, want string
	}{
		{"a good one", goodForm().Encode(), ""},
		{"an unknown parameter is ignored", with("tenant", "x"), ""},
		{"the type that is issued", with("requested_token_type", TypeAccessToken), ""},
		{"a chain of attenuating tokens", with("subject_token_type", TypeAAT), ""},
		{"another grant type", with("grant_type", "client_credentials"), UnsupportedType},
		{"no grant type", with("grant_type", ""), UnsupportedType},
		{"two audiences", with("audience", "invoices", "payroll"), InvalidRequest},
		{"two subject tokens", with("subject_token", "a.b.c", "d.e.f"), InvalidRequest},
		{"no subject token", with("subject_token", ""), InvalidRequest},
		{"an endless subject token", with("subject_token", strings.Repeat("a", maxToken+1)), InvalidRequest},
		{"an unknown type of subject token", with("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), InvalidRequest},
		{"an actor", with("actor_token", "a.b.c"), InvalidRequest},
		{"a scope", with("scope", "everything"), InvalidRequest},
		{"a resource", with("resource", "https://bank.example"), InvalidTarget},
		{"another type of token", with("requested_token_type", TypeIDToken), InvalidRequest},
		{"no audience", with("audience", ""), InvalidRequest},
		{"not a form", "grant_type=%zz", InvalidRequest},
		{"semicolons", "grant_type=a;audience=b", InvalidRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseExchange(formType, []byte(tt.body)); codeOf(err) != tt.want {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := ParseExchange(http.Header{"Content-Type": {"application/json"}}, []byte(goodForm().Encode())); codeOf(err) != InvalidRequest {
		t.Errorf("JSON: %v", err)
	}
}

// FuzzExchange holds that no body panics and that what is accepted is complete.
func FuzzExchange(f *testing.F) {
	f.Add([]byte(goodForm().Encode()))
	f.Add([]byte("a=b&a=c"))
	f.Fuzz(func(t *testing.T, body []byte) {
		x, err := ParseExchange(formType, body)
		if err == nil && (x.Audience == "" || x.SubjectToken == "" || x.SubjectType == "") {
			t.Errorf("accepted %+v", x)
		}
		if err != nil && codeOf(err) == err.Error() {
			t.Errorf("not an OAuth error: %v", err)
		}
	})
}
