package anchor

import (
	"net/http"
	"strings"
	"testing"
)

// TestAnswersOfRekorV1: an answer is one entry, and a log that has it already is
// sent another signature.
func TestAnswersOfRekorV1(t *testing.T) {
	b := newBench(t)
	b.source.grow(5)
	for name, tc := range map[string]struct {
		answer func(good string) string
		want   string
	}{
		"none":                {func(string) string { return "{}" }, "not one entry"},
		"two":                 {func(good string) string { return `{"x":{},` + good[1:] }, "not one entry"},
		"a list":              {func(good string) string { return "[" + good + "]" }, "not one entry"},
		"nothing":             {func(string) string { return "null" }, "not one entry"},
		"an entry of nothing": {func(string) string { return `{"x":null}` }, "rekor v1 entry"},
	} {
		b.rekorV1.Set(func(w http.ResponseWriter, good []byte) bool { w.Write([]byte(tc.answer(string(good)))); return true })
		if err := b.Now(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
		if _, _, v1, _ := b.check(t); v1 != 0 {
			t.Fatalf("%s: kept", name)
		}
	}
	first := b.sigV1
	b.rekorV1.Set(func(w http.ResponseWriter, _ []byte) bool { w.WriteHeader(http.StatusConflict); return true })
	if err := b.ask(t.Context(), false); err == nil || b.sigV1 != nil || first == nil {
		t.Errorf("an entry that is there already: error %v, signature %x after %x", err, b.sigV1, first)
	}
	b.rekorV1.Set(nil)
	if err := b.ask(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, _, v1, _ := b.check(t); v1 != 5 {
		t.Errorf("logged at %d, want 5", v1)
	}
}
