package policy_test

import (
	"sync"
	"testing"

	"github.com/pilox/vault"
)

// Decisions go on, each under one whole revision, while rules are reloaded.
func TestDecideWhileReloading(t *testing.T) {
	p := eight(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if d := p.Decide(t.Context(), facts("mail", "send", benchArgs)); d.Verdict != vault.Allow {
					t.Errorf("got %+v", d)
				}
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			if err := p.Reload(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}
