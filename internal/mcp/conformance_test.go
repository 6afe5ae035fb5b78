package mcp

import (
	"testing"

	"github.com/pilox/vault/internal/vaulttest"
)

// TestConformance runs the official suite through front and upstreams, without the
// stages in between, against the SDK's everything-server.
func TestConformance(t *testing.T) {
	suite := vaulttest.NewConformance(t)
	for _, run := range vaulttest.ConformanceRuns {
		t.Run(run.Version, func(t *testing.T) {
			r := newRig(t, map[string]string{"everything": suite.Serve(t, run.Flags)})
			suite.Run(t, run, r.server.URL+"/")
		})
	}
}
