package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/ledger"
)

func FuzzSuccessor(f *testing.F) {
	f.Add([]byte(`{"id":"0123456789"}`))
	f.Add([]byte(`{"id":"../../../x"}`))
	f.Add([]byte(`{"id":"0123456789\n"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if id, ok := parseSuccessor(doc); ok && (len(id) != 10 || strings.ContainsAny(id, "/.@~\n ")) {
			t.Errorf("%q leads to %q", doc, id)
		}
	})
}

// What a store in doubt says of revocations counts, and ends nothing that is made
// after it.
func TestRevocationsThatAreTakenOver(t *testing.T) {
	now := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		what string
		want *capability.Revocation // nil: it is left
	}{
		{`{"agent":"a","at":"2026-11-27T00:00:00Z"}`, &capability.Revocation{Agent: "a", At: now.Add(-33 * time.Hour)}},
		{`{"everything":true,"at":"2026-11-27T00:00:00Z"}`, &capability.Revocation{Everything: true, At: now.Add(-33 * time.Hour)}},
		{`{"everything":true,"at":"2999-01-01T00:00:00Z"}`, &capability.Revocation{Everything: true, At: now}},
		{`{"everything":true}`, nil},
		{`{"agent":"a","task":"t-1"}`, nil},
		{`{}`, nil},
		{`garbage`, nil},
		{`{"agent":"` + strings.Repeat("a", maxRevocation) + `"}`, nil},
	} {
		got, err := readRevocation(ledger.Revocation{Fields: map[string][]byte{"what": []byte(tt.what)}}, now)
		if (err == nil) != (tt.want != nil) || tt.want != nil && got != *tt.want {
			t.Errorf("%.60s: %+v, %v", tt.what, got, err)
		}
	}
}
