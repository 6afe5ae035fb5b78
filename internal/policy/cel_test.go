package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
)

var celCall = &vault.Call{
	ID: "c-1", Kind: vault.KindTool, Server: "pay", Target: vault.Target{Name: "transfer"},
	Agent: "spiffe://example.org/agent/acme/clerk/1", Principal: "user:clerk@example.com", Task: "t-1",
	Args: vault.MustArgs(`{"amount":99.5,"count":3,"to":"DE1","list":[1,2,3],"note":null,"deep":{"x":{"y":true}}}`),
}

// TestCaveat reads as the specification of caveats: an expression and what it says
// of one call; "error" is a call that is refused because nothing can be said.
func TestCaveat(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"a number", `args.amount < 100`, "true"},
		{"a number beyond", `args.amount <= 99`, "false"},
		{"a whole number compares with a fraction", `args.count < 3.5 && args.count == 3.0`, "true"},
		{"text", `args.to in ["DE1", "DE2"]`, "true"},
		{"a list", `args.list.all(x, x < 4) && size(args.list) == 3`, "true"},
		{"null", `args.note == null`, "true"},
		{"what lies deep", `args.deep.x.y`, "true"},
		{"an argument that may be missing", `!has(args.cc) || args.cc.endsWith("@acme.example")`, "true"},
		{"an argument that is missing", `args.cc == "x"`, "error"},
		{"a type that does not fit", `args.to < 5`, "error"},
		{"something else than true or false", `args.to`, "error"},
		{"the target", `call.kind == "tool" && call.server == "pay" && call.tool == "transfer"`, "true"},
		{"who calls and for whom", `agent.startsWith("spiffe://example.org/") && principal == "user:clerk@example.com" && task == "t-1"`, "true"},
		{"the moment", `now < timestamp("2026-09-01T13:00:00Z") && now.getHours() == 12`, "true"},
		{"division by zero", `1 / (args.count - 3) == 1`, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eval, err := CompileCaveat(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			ok, err := eval(celCall, time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC))
			got := "false"
			switch {
			case err != nil:
				got = "error"
				if ok {
					t.Error("true beside an error")
				}
			case ok:
				got = "true"
			}
			if got != tt.want {
				t.Errorf("got %s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

func TestCaveatsThatDoNotCompile(t *testing.T) {
	for name, text := range map[string]string{
		"a name that does not exist": `arguments.amount < 100`,
		"no boolean":                 `1 + 1`,
		"no expression":              `args.`,
		"a function of the network":  `http.get("https://x.example")`,
		"a clock":                    `now() > timestamp("2026-01-01T00:00:00Z")`,
		"too long":                   `args.to == "` + strings.Repeat("x", celText) + `"`,
		"loops over its own lists":   `[[1,2,3,4,5,6,7,8,9,10]].all(l, l.all(a, l.all(b, l.all(c, l.all(d, l.all(e, a+b+c+d+e > 0))))))`,
		"too deep":                   strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200),
	} {
		if _, err := CompileCaveat(text); err == nil {
			t.Errorf("%s: compiled", name)
		}
	}
}

// What costs too much is refused by its cost, whatever the clock says.
func TestCaveatCost(t *testing.T) {
	list := "[" + strings.TrimSuffix(strings.Repeat("1,", 1000), ",") + "]"
	call := *celCall
	call.Args = vault.MustArgs(`{"l":` + list + `,"s":"` + strings.Repeat("a", 200_000) + `"}`)
	for name, text := range map[string]string{
		"a loop in a loop in a loop": `args.l.all(x, args.l.all(y, args.l.all(z, x + y + z > 0)))`,
		"a list that doubles":        `args.l.map(a, args.l.map(b, args.l)).size() > 0`,
		"text over and over":         `args.l.all(x, args.s.contains("b") == false)`,
	} {
		eval, err := CompileCaveat(text)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := eval(&call, time.Now()); ok || err == nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func FuzzCaveat(f *testing.F) {
	f.Add(`args.amount < 100 && call.kind == "tool"`, `{"amount":5}`)
	f.Add(`args.l.all(x, x.matches("^a+$"))`, `{"l":["a"]}`)
	f.Add(`[1,2].map(x, x * args.n)[0] == {"a": 1}.a`, `{"n":1e300}`)
	f.Fuzz(func(t *testing.T, text, args string) {
		a, err := vault.ParseArgs([]byte(args))
		if err != nil {
			return
		}
		call := *celCall
		call.Args = a
		if eval, err := CompileCaveat(text); err == nil {
			if ok, err := eval(&call, time.Unix(0, 0)); ok && err != nil {
				t.Fatal("true beside an error")
			}
		}
		if eval, err := CompileValue(text); err == nil {
			_, _ = eval(a.Root())
		}
	})
}

func BenchmarkCaveat(b *testing.B) {
	eval, err := CompileCaveat(`args.amount < 100 && args.to in ["DE1", "DE2"] && call.tool == "transfer"`)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := eval(celCall, time.Time{}); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
