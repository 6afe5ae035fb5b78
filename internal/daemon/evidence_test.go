package daemon

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/ledger"
)

// TestEventHoldsTheExactLeaf: what the daemon tells of an event is the leaf to the
// byte, whatever a tool is called.
func TestEventHoldsTheExactLeaf(t *testing.T) {
	rec := ledger.Record{Leaf: evidence.Leaf{
		Log: "vault.test/1", Epoch: 1, Time: time.Unix(1, 0), Class: vault.ClassCall, Phase: vault.PhaseRefused, Verdict: vault.Deny,
		Tool: "<b>&\u2028\n", Fields: evidence.Fields{N: len(vault.FieldsOf(vault.ClassCall)), Root: vault.Digest{1}},
	}}
	want, err := rec.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	event, err := eventJSON(&rec)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(admin.Frame{Event: event}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b.Bytes(), want) {
		t.Fatalf("%s\ndoes not hold\n%s", b.Bytes(), want)
	}
}
