package vault

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/gowebpki/jcs"
)

func TestParseArgs(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		code           Code
	}{
		{"nothing is the empty object", "", "{}", ""},
		{"keys are sorted", `{"b":1,"a":2}`, `{"a":2,"b":1}`, ""},
		{"space goes", " {\n\"a\" : [ 1 , 2 ] } ", `{"a":[1,2]}`, ""},
		{"escapes are canonical", `{"a":"\u0041\/\u20ac\u0007\n"}`, `{"a":"A/€\u0007\n"}`, ""},
		{"a pair of surrogates is one rune", `{"a":"\ud83d\ude00"}`, `{"a":"😀"}`, ""},
		{"html is left alone", `{"a":"<&>"}`, `{"a":"<&>"}`, ""},
		{"numbers are canonical", `{"a":[1e2,-0,0.10,1E-7,100000000000000000000e-20,1.5]}`, `{"a":[100,0,0.1,1e-7,1,1.5]}`, ""},
		{"a safe integer passes", `{"a":9007199254740991}`, `{"a":9007199254740991}`, ""},
		{"an unsafe integer is refused", `{"a":9007199254740992}`, "", CodeNumberUnsafe},
		{"a large power of ten is an unsafe integer", `{"a":1e21}`, "", CodeNumberUnsafe},
		{"more digits than a double keeps", `{"a":0.10000000000000000001}`, "", CodeNumberUnsafe},
		{"overflow", `{"a":1e400}`, "", CodeNumberUnsafe},
		{"underflow", `{"a":1e-400}`, "", CodeNumberUnsafe},
		{"a key twice", `{"a":1,"a":2}`, "", CodeArgsDuplicate},
		{"a key twice by escape", `{"a":1,"\u0061":2}`, "", CodeArgsDuplicate},
		{"a key twice under case folding", `{"path":1,"Path":2}`, "", CodeArgsDuplicate},
		{"a key twice under Unicode folding", `{"k":1,"K":2}`, "", CodeArgsDuplicate},
		{"many keys, two under folding", `{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"s":1,"ſ":1}`, "", CodeArgsDuplicate},
		{"an array is no arguments", `[1]`, "", CodeArgsMalformed},
		{"null is no arguments", `null`, "", CodeArgsMalformed},
		{"trailing data", `{} {}`, "", CodeArgsMalformed},
		{"a lone surrogate", `{"a":"\ud800"}`, "", CodeArgsMalformed},
		{"a lone low surrogate", `{"a":"\udc00"}`, "", CodeArgsMalformed},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", "", CodeArgsMalformed},
		{"a bare control character", "{\"a\":\"\x01\"}", "", CodeArgsMalformed},
		{"a leading zero", `{"a":01}`, "", CodeArgsMalformed},
		{"a trailing comma", `{"a":1,}`, "", CodeArgsMalformed},
		{"NaN", `{"a":NaN}`, "", CodeArgsMalformed},
		{"an unknown escape", `{"a":"\x41"}`, "", CodeArgsMalformed},
		{"an open string", `{"a":"`, "", CodeArgsMalformed},
		{"too deep", strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65), "", CodeArgsTooLarge},
		{"too many values", `{"a":[` + strings.Repeat("1,", MaxArgsValues) + `1]}`, "", CodeArgsTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := ParseArgs([]byte(tt.in))
			if tt.code != "" {
				d, ok := errors.AsType[*Denial](err)
				if !ok || d.Reason.Code != tt.code {
					t.Fatalf("err = %v, want %s", err, tt.code)
				}
				return
			}
			if err != nil || a.String() != tt.want {
				t.Fatalf("got %s, %v; want %s", a, err, tt.want)
			}
		})
	}
}

// The order of RFC 8785 section 3.2.3, with its own example.
func TestKeyOrder(t *testing.T) {
	a := MustArgs(`{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}`)
	want := "{\"\\r\":2,\"1\":4,\"\u0080\":6,\"\u00f6\":7,\"\u20ac\":1,\"\U0001f600\":5,\"\ufb33\":3}"
	if a.String() != want {
		t.Errorf("got %q\nwant %q", a, want)
	}
}

func TestValueLookup(t *testing.T) {
	a := MustArgs(`{"a":{"b/c":[10,"x\ny",true,null,1.5]},"q\"k":1}`)
	if n, ok := a.At("/a/b~1c/0").Int(); !ok || n != 10 {
		t.Errorf("int = %d, %v", n, ok)
	}
	if s, ok := a.At("/a/b~1c/1").Str(); !ok || s != "x\ny" {
		t.Errorf("string = %q, %v", s, ok)
	}
	if b, ok := a.At("/a/b~1c/2").Bool(); !ok || !b {
		t.Errorf("bool = %v, %v", b, ok)
	}
	if f, ok := a.At("/a/b~1c/4").Float(); !ok || f != 1.5 {
		t.Errorf("float = %v, %v", f, ok)
	}
	if k := a.At("/q\"k").Kind(); k != Number {
		t.Errorf("escaped key: %v", k)
	}
	for _, absent := range []string{"/b", "/a/b~1c/5", "/a/b~1c/00", "/a/b~1c/-1", "x", "/a/b~1c/0/x"} {
		if k := a.At(absent).Kind(); k != Absent {
			t.Errorf("%s is %v, want absent", absent, k)
		}
	}
	var paths []string
	for p := range a.Root().Walk() {
		paths = append(paths, p)
	}
	if got, want := strings.Join(paths, " "), `/a/b~1c/0 /a/b~1c/1 /a/b~1c/2 /a/b~1c/3 /a/b~1c/4 /q"k`; got != want {
		t.Errorf("walk: %s, want %s", got, want)
	}
}

// FuzzParseArgs holds the decoder against encoding/json and another RFC 8785
// implementation: what it accepts they accept, with the same canonical bytes,
// and canonical bytes are a fixed point.
func FuzzParseArgs(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":[1.5e3,"\u00e9\ud83d\ude00",null,true]}`, `{"a":-0}`, `{"x":{"y":[{}]}}`, `{"a":1e-7}`, `{"a":123456789012345680}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := ParseArgs(raw)
		if err != nil {
			if _, ok := errors.AsType[*Denial](err); !ok {
				t.Fatalf("error without a code: %v", err)
			}
			return
		}
		again, err := ParseArgs(a.Bytes())
		if err != nil || again.String() != a.String() || again.Digest() != a.Digest() {
			t.Fatalf("not a fixed point: %q → %q, %v", a, again, err)
		}
		if len(raw) == 0 {
			return
		}
		if !json.Valid(raw) {
			t.Fatalf("accepted what encoding/json refuses: %q", raw)
		}
		want, err := jcs.Transform(raw)
		if err != nil {
			t.Skip("the other implementation refuses it")
		}
		if string(want) != a.String() {
			t.Fatalf("canonical form differs:\n ours %q\nother %q", a, want)
		}
	})
}

func FuzzNumber(f *testing.F) {
	for _, x := range []float64{0, 1, -1.5, 1e21, 1e-7, 5e-324, math.MaxFloat64, 0.000001, 123456.789} {
		f.Add(math.Float64bits(x))
	}
	f.Fuzz(func(t *testing.T, bits uint64) {
		x := math.Float64frombits(bits)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return
		}
		want, err := jcs.NumberToJSON(x)
		if err != nil {
			t.Skip()
		}
		if got := string(appendNumber(nil, x)); got != want {
			t.Errorf("%b: got %s, want %s", x, got, want)
		}
	})
}

func BenchmarkParseArgs(b *testing.B) {
	raw := []byte(`{"path":"/srv/invoices/2026/november.txt","head":100,"options":{"encoding":"utf-8","follow":false}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseArgs(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func TestValueArgsIsThePartItself(t *testing.T) {
	whole := MustArgs(`{"b":[1,{"y":"é\n","x":{"":[2,{}]}}],"a":"s"}`)
	for _, pointer := range []string{"", "/a", "/b", "/b/0", "/b/1", "/b/1/x", "/b/1/x/", "/b/1/y"} {
		v := whole.At(pointer)
		part := v.Args()
		fresh, err := ParseValue([]byte(v.Raw()))
		if err != nil {
			t.Fatal(err)
		}
		if part.Digest() != fresh.Digest() || part.String() != fresh.String() {
			t.Errorf("%q: part %s, parsed again %s", pointer, part, fresh)
		}
		if len(part.d.nodes) != len(fresh.d.nodes) {
			t.Fatalf("%q: %d nodes, want %d", pointer, len(part.d.nodes), len(fresh.d.nodes))
		}
		for i := range part.d.nodes {
			if part.d.nodes[i] != fresh.d.nodes[i] {
				t.Errorf("%q: node %d is %+v, want %+v", pointer, i, part.d.nodes[i], fresh.d.nodes[i])
			}
		}
	}
	if a := whole.At("/none").Args(); !a.IsZero() {
		t.Errorf("absent value gave %s", a)
	}
}
