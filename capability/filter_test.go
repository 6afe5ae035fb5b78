package capability

import (
	"crypto/rand"
	"strconv"
	"testing"

	"github.com/pilox/vault"
)

// TestManyRevocations: of very many, each is found, whatever its kind and however
// often the set has grown, and what was not revoked is not.
func TestManyRevocations(t *testing.T) {
	const each = 20_000
	var r Revocations
	id := func(kind string, i int) string { return kind + "-" + strconv.Itoa(i) }
	links := make([]vault.Digest, 2*each)
	for i := range links {
		rand.Read(links[i][:])
	}
	subjects := func(i int) []subject {
		return []subject{
			{links: []vault.Digest{{1}, links[i], {2}}},
			{agents: []vault.AgentID{"a", vault.AgentID(id("agent", i))}},
			{task: vault.TaskID(id("task", i))},
			{kid: id("kid", i)},
		}
	}
	check := func(n int) {
		t.Helper()
		for i := range 2 * each {
			for kind, s := range subjects(i) {
				if got := r.revokes(s); got != (i < n) {
					t.Fatalf("of %d, subject %d of kind %d: revoked %v", n, i, kind, got)
				}
			}
		}
	}
	check(0)
	for i := range each {
		for _, v := range []Revocation{
			{Link: links[i], At: testStart},
			{Agent: vault.AgentID(id("agent", i)), At: testStart},
			{Task: vault.TaskID(id("task", i)), At: testStart},
			{Issuer: id("kid", i), At: testStart},
		} {
			if err := r.Add(v); err != nil {
				t.Fatal(err)
			}
		}
		switch i + 1 {
		case 1, 100, 128, 129, 5000, each:
			check(i + 1)
		}
	}
	if n := len(r.Export()); n != 4*each {
		t.Errorf("%d exported", n)
	}
	// What makes it fast: nearly all that is not there is known not to be.
	wrong := 0
	for i := each; i < 2*each; i++ {
		for _, s := range subjects(i) {
			if r.mayCover(&s) {
				wrong++
			}
		}
	}
	if wrong > 4*each/50 {
		t.Errorf("%d of %d had to be looked up", wrong, 4*each)
	}
}
