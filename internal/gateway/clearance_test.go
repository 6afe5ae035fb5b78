package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/vaulttest"
)

// holding is a catalogue whose tools hold what readers may read.
type holding struct {
	vaulttest.Catalogue
	readers vault.Readers
}

func (h holding) Resolve(ctx context.Context, c *vault.Call, g *vault.Grant) (vault.Tool, error) {
	t, err := h.Catalogue.Resolve(ctx, c, g)
	t.Holds = h.readers
	return t, err
}

// written is a flow in which what readers may read was written where it is read.
type written struct {
	*vaulttest.Stages
	readers vault.Readers
}

func (w written) Label(ctx context.Context, f *vault.Facts, raw []byte) vault.Label {
	l := w.Stages.Label(ctx, f, raw)
	l.Readers = w.readers
	return l
}

// TestClearance: data of named compartments reaches only a task that may read one of
// them: a server that holds it is not called, and what was written elsewhere is
// withheld, in frames as well.
func TestClearance(t *testing.T) {
	finance, both := vault.Only("finance"), vault.Only("finance", "legal")
	for name, tt := range map[string]struct {
		holds, label vault.Readers
		mayRead      []string
		ran, frames  bool
		code         vault.Code
	}{
		"public":                             {vault.Public(), vault.Public(), nil, true, true, ""},
		"private of the principal":           {vault.Readers{}, vault.Readers{}, nil, true, true, ""},
		"a compartment":                      {finance, finance, []string{"finance"}, true, true, ""},
		"one of two":                         {both, both, []string{"legal"}, true, true, ""},
		"no compartment":                     {finance, finance, nil, false, false, vault.CodeFlowClearance},
		"another compartment":                {both, both, []string{"crm"}, false, false, vault.CodeFlowClearance},
		"written from another":               {vault.Public(), finance, nil, true, false, vault.CodeResultWithheld},
		"written from another, cleared":      {vault.Public(), finance, []string{"finance"}, true, true, ""},
		"written from another, else cleared": {finance, finance.Join(vault.Only("legal")), []string{"finance"}, true, false, vault.CodeResultWithheld},
		"of two, cleared for both":           {finance, finance.Join(vault.Only("legal")), []string{"finance", "legal"}, true, true, ""},
		"joined with what is private":        {vault.Readers{}, finance.Join(vault.Readers{}), nil, true, false, vault.CodeResultWithheld},
		"the same, cleared":                  {vault.Readers{}, vault.Readers{}.Join(finance), []string{"finance"}, true, true, ""},
		"more compartments than are told":    {vault.Public(), vault.Readers{}.With(many()...), many(), true, false, vault.CodeResultWithheld},
	} {
		for n := range 2 { // with and without a frame before the result
			t.Run(fmt.Sprintf("%s, %d frames", name, n), func(t *testing.T) {
				s := &vaulttest.Stages{OnPolicy: vault.Allowed(), Frames: n, Grant: vault.Grant{Task: "t-1", Agent: "spiffe://test/agent/a/b/c", Proof: vault.ProofSession, MayRead: tt.mayRead}}
				g := newGateway(s)
				g.Catalogue, g.Flow = holding{s.Catalogue(), tt.holds}, written{s, tt.label}
				out := new(frames)
				res, err := g.Handle(t.Context(), call("1"), out)
				if d := vault.DenialOf(err); (d == nil) != (tt.code == "") || d != nil && d.Reason.Code != tt.code {
					t.Fatalf("error %v, want code %q", err, tt.code)
				}
				if ran := strings.Contains(s.Ran(), "intent"); ran != tt.ran {
					t.Errorf("it ran: %v, want %v", ran, tt.ran)
				}
				if err != nil && res.Raw != nil || n > 0 && (out.n > 0) != tt.frames {
					t.Errorf("%d frames and %s reached the agent", out.n, res.Raw)
				}
				for _, e := range s.Events() {
					for _, f := range e.Fields {
						if err != nil && f.Name == "result" {
							t.Error("what was withheld was kept")
						}
					}
				}
			})
		}
	}
}

func many() (names []string) {
	for i := range 300 {
		names = append(names, fmt.Sprint("c", i))
	}
	return names
}

// frames counts what reaches the agent beside the result.
type frames struct {
	vaulttest.Sink
	n int
}

func (f *frames) Notify(ctx context.Context, method string, params json.RawMessage) error {
	f.n++
	return f.Sink.Notify(ctx, method, params)
}
