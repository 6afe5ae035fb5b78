package authz_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/authz"
)

// doors returns doors whose decisions are what answer says, and counts them and what
// is refused before.
func doors(asked, refused *int, answer error) *authz.Doors {
	return authz.New(authz.Config{
		Authenticate: func(*http.Request) (vault.Credential, error) { return vault.Credential{}, nil },
		Server:       func(name string) (vault.ServerID, bool) { return vault.ServerID{1}, name == "up" },
		Decide: func(_ context.Context, c *vault.Call) (vault.Result, error) {
			*asked++
			return vault.Result{}, answer
		},
		Refuse: func(_ context.Context, _ *vault.Call, d *vault.Denial) *vault.Denial {
			*refused++
			return d
		},
		Agent: func(context.Context, vault.Credential) vault.AgentID { return "a" },
	})
}

const plain = `{"subject":{"type":"agent","id":"a"},"action":{"name":"tool"},"resource":{"type":"tool","id":"up.act"},"context":{"arguments":{"x":1}}}`

// A yes comes from a decision and from nothing else.
func TestOnlyADecisionPermits(t *testing.T) {
	for name, answer := range map[string]error{"yes": nil, "no": vault.NewDenial(vault.CodeCapabilityTarget, "", nil), "an error of no kind": errors.New("disk full")} {
		asked, refused := 0, 0
		w := httptest.NewRecorder()
		doors(&asked, &refused, answer).Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/access/v1/evaluation", bytes.NewReader([]byte(plain))))
		var got struct{ Decision bool }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Decision != (answer == nil) || asked != 1 {
			t.Errorf("%s: %s, asked %d times, %v", name, w.Body, asked, err)
		}
		if bytes.Contains(w.Body.Bytes(), []byte("disk")) {
			t.Errorf("%s: our own trouble is told: %s", name, w.Body)
		}
	}
}

// FuzzEvaluation asks anything: no question is a yes before it was decided on.
func FuzzEvaluation(f *testing.F) {
	f.Add([]byte(plain), false)
	f.Add([]byte(`{"subject":{"type":"agent","id":"a"},"action":{"name":"egress"},"resource":{"type":"egress","id":"h.example"},"evaluations":[{},{"context":{}}]}`), true)
	f.Add([]byte(`{"evaluations":[null]}`), true)
	f.Fuzz(func(t *testing.T, body []byte, many bool) {
		asked, refused, path := 0, 0, "/access/v1/evaluation"
		if many {
			path += "s"
		}
		d := doors(&asked, &refused, nil)
		w := httptest.NewRecorder()
		d.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body)))
		if n := bytes.Count(w.Body.Bytes(), []byte(`"decision":true`)); n > asked {
			t.Errorf("%d yes of %d decisions: %s", n, asked, w.Body)
		}
		// A no has its record too, also one that is no answer to a question.
		if n := bytes.Count(w.Body.Bytes(), []byte(`"decision":false`)); n > refused || w.Code == http.StatusBadRequest && refused == 0 {
			t.Errorf("%d no and %d on record: %s", n, refused, w.Body)
		}
	})
}
