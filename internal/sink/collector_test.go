package sink

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/pilox/vault/internal/vaulttest"
)

// TestCollector delivers to an OpenTelemetry collector, built from the parts that
// its project ships, that is away at first and in the middle.
func TestCollector(t *testing.T) {
	c := vaulttest.NewCollector(t)
	l := newLedger(600)
	o := options(t.TempDir())
	o.Linger = time.Millisecond
	s, err := Open(l, []Config{{Name: "otel", Kind: OTLP, URL: c.URL}}, o)
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, s)
	defer stop()
	vaulttest.Until(t, "the sink says that nobody is there", func() bool { return s.Status()[0].Error != "" })
	for range 2 {
		end := c.Start(t)
		size, _ := l.Size()
		vaulttest.Until(t, "all is delivered", func() bool { return s.Status()[0].Next == size })
		end()
		l.grow(600)
	}
	end := c.Start(t)
	vaulttest.Until(t, "all is delivered", func() bool { return s.Status()[0].Next == 1800 })
	end()
	got := map[string]bool{}
	b, err := os.ReadFile(c.File)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var req struct {
			ResourceLogs []struct {
				ScopeLogs []struct {
					LogRecords []struct {
						EventName string
						Body      struct{ StringValue string }
					}
				}
			}
		}
		if err := json.Unmarshal(line, &req); err != nil {
			t.Fatal(err)
		}
		for _, r := range req.ResourceLogs {
			for _, sc := range r.ScopeLogs {
				for _, rec := range sc.LogRecords {
					if rec.EventName == "" {
						t.Errorf("a record without a name: %s", rec.Body.StringValue)
					}
					got[rec.Body.StringValue] = true
				}
			}
		}
	}
	for _, e := range l.list {
		if !got[string(e.Raw)] {
			t.Fatalf("event %d did not arrive", e.Leaf.Index)
		}
	}
	if st := s.Status()[0]; st.Refused != 0 {
		t.Errorf("%+v", st)
	}
}
