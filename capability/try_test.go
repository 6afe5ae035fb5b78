package capability

import (
	"testing"

	"github.com/pilox/vault"
)

// TestCompile holds that rules on their own say what a chain says of arguments.
func TestCompile(t *testing.T) {
	args := Args{"/path": One(Constraint{SubPath: ptr("/srv")}), "/n": {Optional: true, All: []Constraint{{Int: &IntRange{Min: 1, Max: 3}}}}}
	test, err := args.Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	for doc, want := range map[string]string{
		`{"path":"/srv/a"}`: "", `{"path":"/srv","n":3}`: "", `{}`: "/path", `{"path":"/etc"}`: "/path", `{"path":"/srv","n":4}`: "/n", `{"path":"/srv","x":1}`: "/x",
	} {
		a, err := vault.ParseArgs([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if bad, ok := test(a); bad != want || ok != (want == "") {
			t.Errorf("%s: %q, %v", doc, bad, ok)
		}
	}
	none, err := Args(nil).Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := none(vault.Args{}); ok {
		t.Error("nil arguments pass something")
	}
	if _, err := (Args{"/a": One(Constraint{})}).Compile(nil); err == nil {
		t.Error("a constraint without a field compiles")
	}
	optional := Arg{Optional: true, All: []Constraint{{MaxLength: ptr(int64(1))}}}
	value, err := optional.Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := vault.ParseValue([]byte(`["a","ab",1]`))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false, true} { // the last is absent
		if got := value(doc.Root().Index(i)); got != want {
			t.Errorf("element %d: %v", i, got)
		}
	}
}
