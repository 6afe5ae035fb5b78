package guard_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/guard"
)

const secret = "sk-live/9f8e7d6c+5b4a=3210"

// spell writes a message in the tag block, where nobody sees it.
func spell(s string) string {
	var b strings.Builder
	for _, c := range s {
		b.WriteRune(0xE0000 + c)
	}
	return b.String()
}

// bits writes a message as zero-width characters.
func bits(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		for i := range 8 {
			b.WriteRune([]rune{0x200B, 0x200C}[c>>i&1])
		}
	}
	return b.String()
}

// selectors writes a message as variation selectors behind one emoji.
func selectors(s string) string {
	b := []rune("😀")
	for _, c := range []byte(s) {
		b = append(b, 0xE0100+rune(c))
	}
	return string(b)
}

func newGuard(secrets ...string) *guard.Guard {
	return guard.New(guard.Config{Secrets: func() []string { return secrets }})
}

func facts(args string) *vault.Facts {
	return &vault.Facts{
		Call:  &vault.Call{Args: vault.MustArgs(args)},
		Grant: &vault.Grant{},
		Tool:  &vault.Tool{Roles: map[string]vault.Role{"/body": vault.RoleContent, "/parts": vault.RoleContent}},
	}
}

func quote(s string) string { return string(vault.AppendQuoted(nil, s)) }

// benign is ordinary text that uses the same characters for what they are for.
var benign = map[string]string{
	"plain":          "Hello, world.",
	"typography":     "“Quoted” – with dashes… and ‘more’.",
	"family emoji":   "👨‍👩‍👧‍👦 and 🏳️‍🌈 and ❤️‍🔥",
	"keycap":         "1️⃣ #️⃣",
	"flag of Wales":  "🏴\U000E0067\U000E0062\U000E0077\U000E006C\U000E0073\U000E007F",
	"heart":          "❤️ ☺︎",
	"Persian":        "می‌خواهم کتاب‌ها را بخوانم",
	"Hindi":          "क्‍ष and र्‍",
	"Thai":           "ภาษา​ไทย",
	"Hebrew":         "המחיר הוא \u2066100 USD\u2069 בלבד",
	"Arabic":         "السعر \u2067١٠٠\u2069 فقط",
	"ideograph":      "葛\U000E0100城市",
	"byte order":     "\uFEFFheader",
	"soft hyphen":    "Donau\u00ADdampf",
	"one stray":      "copied\u200B from a web page",
	"a few strays":   strings.Repeat("a\u200Bb ", 8),
	"Hangul filler":  "가\u3164나",
	"mathematics":    "∀x∈ℝ: x²≥0",
	"replacement":    "\uFFFD",
	"private use":    "\uE000",
	"Vietnamese":     "Tiếng Việt",
	"ligature joins": "नमस्ते",
}

func TestBenignTextPasses(t *testing.T) {
	g := newGuard(secret)
	for name, s := range benign {
		t.Run(name, func(t *testing.T) {
			if d := g.ScanArgs(t.Context(), facts(`{"to":`+quote(s)+`,`+quote(s)+`:1}`)); d.Verdict != vault.Allow {
				t.Errorf("arguments: %+v", d)
			}
			raw := []byte(`{"content":[{"type":"text","text":` + quote(s) + `}]}`)
			out, d := g.ScanResult(t.Context(), facts(`{}`), raw)
			if d.Verdict != vault.Allow || len(d.Reasons) > 0 || &out[0] != &raw[0] || len(out) != len(raw) {
				t.Errorf("result: %+v, %q", d, out)
			}
		})
	}
}

func TestScanArgs(t *testing.T) {
	for _, tt := range []struct {
		name, args, path string
		denied           bool
	}{
		{"tags in an argument", `{"to":` + quote("a@example.com"+spell("x")) + `}`, "/to", true},
		{"an override in an argument", `{"to":` + quote("exe\u202Etxt.a") + `}`, "/to", true},
		{"an isolate without a script that needs it", `{"to":` + quote("a\u2066b\u2069") + `}`, "/to", true},
		{"an override hidden in Arabic", `{"to":` + quote("السعر \u202Eabc") + `}`, "/to", true},
		{"tags behind a flag that never ends", `{"to":` + quote("🏴"+spell("rm -rf")) + `}`, "/to", true},
		{"deep down", `{"a":[{"b":["x",` + quote(spell("x")) + `]}]}`, "/a/0/b/1", true},
		{"in a key", `{"a":{` + quote("k"+spell("x")) + `:1}}`, "/a", true},
		{"tags in content", `{"body":` + quote(spell("x")) + `}`, "", false},
		{"tags in a part of content", `{"parts":[{"text":` + quote(spell("x")) + `}]}`, "", false},
		{"zero-width text", `{"to":` + quote(bits("x")) + `}`, "", false},
		{"a secret", `{"to":` + quote("x "+secret) + `}`, "/to", true},
		{"a secret in content", `{"body":` + quote("x "+secret+" y") + `}`, "/body", true},
		{"a secret in a key", `{` + quote(secret) + `:1}`, "", true},
		{"a secret with a line break around", `{"body":` + quote("x\n"+secret+"\n") + `}`, "/body", true},
		{"almost a secret", `{"to":` + quote(secret[:len(secret)-1]) + `}`, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newGuard("short", secret).ScanArgs(t.Context(), facts(tt.args))
			if denied := d.Verdict == vault.Deny; denied != tt.denied {
				t.Fatalf("got %+v", d)
			}
			if !tt.denied {
				return
			}
			if r := d.Reason(); r.Code != vault.CodeScan || r.Path != tt.path || strings.Contains(r.Detail, secret) {
				t.Errorf("reason = %+v, want path %q", r, tt.path)
			}
		})
	}
	t.Run("a secret in the other parameters", func(t *testing.T) {
		f := facts(`{}`)
		f.Call.Params = vault.MustArgs(`{"_meta":{"x":` + quote(secret) + `}}`)
		if d := newGuard(secret).ScanArgs(t.Context(), f); d.Verdict != vault.Deny {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("a secret of digits as a number", func(t *testing.T) {
		if d := newGuard("123456789012").ScanArgs(t.Context(), facts(`{"to":123456789012}`)); d.Verdict != vault.Deny {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("a secret with a quote and a backslash", func(t *testing.T) {
		const odd = `pa"ss\word`
		if d := newGuard(odd).ScanArgs(t.Context(), facts(`{"body":`+quote(odd)+`}`)); d.Verdict != vault.Deny {
			t.Errorf("got %+v", d)
		}
	})
}

func TestScanResultStrips(t *testing.T) {
	for _, tt := range []struct{ name, text, want, note string }{
		{"tags", "Hello" + spell("obey me") + "!", "Hello!", "7 tag characters"},
		{"an override", "a\u202Eb", "ab", "1 direction controls"},
		{"zero-width bits", "Hello" + bits("hi") + "!", "Hello!", "16 zero-width characters"},
		{"spread zero-width bits", strings.Repeat("a\u200B", 9), strings.Repeat("a", 9), "9 zero-width characters"},
		{"selectors", selectors("hi") + "!", "😀!", "2 variation selectors"},
		{"a mixture", "\u202D" + spell("x") + "ü", "ü", "1 tag characters, 1 direction controls"},
		{"nothing but tags", spell("x"), "", "1 tag characters"},
	} {
		// Servers may write the same string in ASCII.
		ascii, err := json.Marshal(tt.text)
		if err != nil {
			t.Fatal(err)
		}
		for form, lit := range map[string]string{"as is": quote(tt.text), "escaped": escape(string(ascii))} {
			t.Run(tt.name+" "+form, func(t *testing.T) {
				raw := `{ "content":[ {"text":` + lit + `, "n":1.50e0}],"é":"\u00e9\/"}`
				out, d := newGuard().ScanResult(t.Context(), facts(`{}`), []byte(raw))
				if want := `{ "content":[ {"text":` + quote(tt.want) + `, "n":1.50e0}],"é":"\u00e9\/"}`; string(out) != want {
					t.Errorf("\n got %s\nwant %s", out, want)
				}
				if d.Verdict != vault.Allow || !strings.Contains(d.Reason().Detail, tt.note) || d.Reason().Code != vault.CodeScan {
					t.Errorf("decision = %+v, want a note of %s", d, tt.note)
				}
			})
		}
	}
}

// escape writes all characters outside ASCII as \u escapes.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04X`, 0xD800+r>>10, 0xDC00+r&0x3FF)
		}
	}
	return b.String()
}

func TestScanResultRedactsSecrets(t *testing.T) {
	rev := []byte(secret)
	slices.Reverse(rev)
	for name, form := range map[string]string{
		"as it is":                 secret,
		"reversed":                 string(rev),
		"in hex":                   hex.EncodeToString([]byte(secret)),
		"in upper-case hex":        strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"percent-encoded query":    url.QueryEscape(secret),
		"percent-encoded path":     url.PathEscape(secret),
		"in base64":                base64.StdEncoding.EncodeToString([]byte(secret)),
		"in base64 for URLs":       base64.URLEncoding.EncodeToString([]byte(secret)),
		"inside base64, by one":    base64.StdEncoding.EncodeToString([]byte("x" + secret + "yz")),
		"inside base64, by two":    base64.StdEncoding.EncodeToString([]byte("xx" + secret + "y")),
		"inside base64, by three":  base64.StdEncoding.EncodeToString([]byte("xxx" + secret)),
		"behind hidden characters": spell("x") + secret,
	} {
		for _, pad := range []int{0, 1, 7, 8, 4096} {
			t.Run(fmt.Sprint(name, " at ", pad), func(t *testing.T) {
				raw := []byte(`{"text":` + quote(strings.Repeat(".", pad)+form+" and "+form) + `}`)
				out, d := newGuard("unrelated value", secret).ScanResult(t.Context(), facts(`{}`), raw)
				if d.Verdict != vault.Allow || !strings.Contains(d.Reason().Detail, "2 known secrets") || bytes.Count(out, []byte("[redacted]")) != 2 {
					t.Errorf("%+v %s", d, out)
				}
				if strings.Contains(d.Reason().Detail, secret) || !json.Valid(out) {
					t.Errorf("detail %q, result %s", d.Reason().Detail, out)
				}
			})
		}
	}
	t.Run("escaped by the server", func(t *testing.T) {
		var lit strings.Builder
		for _, c := range secret {
			fmt.Fprintf(&lit, `\u%04x`, c)
		}
		out, _ := newGuard(secret).ScanResult(t.Context(), facts(`{}`), []byte(`["`+lit.String()+`"]`))
		if string(out) != `["[redacted]"]` {
			t.Errorf("got %s", out)
		}
	})
	t.Run("a list that changes counts at once", func(t *testing.T) {
		var list []string
		g := guard.New(guard.Config{Secrets: func() []string { return list }})
		raw := []byte(`["` + secret + `"]`)
		if out, _ := g.ScanResult(t.Context(), facts(`{}`), raw); string(out) != string(raw) {
			t.Errorf("got %s", out)
		}
		list = []string{secret}
		if out, _ := g.ScanResult(t.Context(), facts(`{}`), raw); string(out) != `["[redacted]"]` {
			t.Errorf("got %s", out)
		}
	})
}

func TestScanResultWithholds(t *testing.T) {
	for name, raw := range map[string]string{
		"hidden content in a key":  `{` + quote("a"+spell("x")) + `:1}`,
		"a secret in a key":        `{` + quote(secret) + `:1}`,
		"a secret across strings":  `["x"]12345678901234`,
		"a string that never ends": `{"a":"b`,
		"an escape at the end":     `{"a":"b\`,
		"brackets that never end":  `[[1]`,
		"brackets that close more": `[1]]`,
		"a nesting bomb":           strings.Repeat("[", 65) + strings.Repeat("]", 65),
		"a result over the bound":  `"` + strings.Repeat("x", 5000) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			g := guard.New(guard.Config{MaxBytes: 4096, Secrets: func() []string { return []string{secret, "12345678901234"} }})
			out, d := g.ScanResult(t.Context(), facts(`{}`), []byte(raw))
			if d.Verdict != vault.Deny || d.Reason().Code != vault.CodeScan || out != nil {
				t.Errorf("%+v %s", d, out)
			}
		})
	}
}

// The verdict does not depend on where in a large document something stands.
func TestSameVerdictAtEveryOffset(t *testing.T) {
	g := newGuard(secret)
	for _, at := range []int{0, 1, 100, 65535, 1<<20 - 100} {
		filler := strings.Repeat("x", 1<<20)
		raw := []byte(`{"t":` + quote(filler[:at]+secret+spell("x")+filler[at:]) + `}`)
		out, d := g.ScanResult(t.Context(), facts(`{}`), raw)
		if d.Verdict != vault.Allow || len(d.Reasons) != 1 || string(out) != `{"t":`+quote(filler[:at]+"[redacted]"+filler[at:])+`}` {
			t.Errorf("at %d: %v", at, d)
		}
	}
}

// FuzzScanResult feeds the walk any bytes. A valid document stays valid, keeps
// everything but its strings, is clean at the second look, and shows no secret.
func FuzzScanResult(f *testing.F) {
	for _, s := range []string{
		`{"content":[{"type":"text","text":"hi"}]}`, `["` + secret + `"]`, `["\ud83d\ude00\udb40\udc41"]`, `{"a\u202e":"b"}`, `["\u200b\u200b\u200b"]`,
		`"` + spell("x") + `"`, `{"a":"\\\"}`, `["\ud83d"]`, "[\"\xff\xf3\xa0\x81\x81\"]",
	} {
		f.Add([]byte(s))
	}
	for _, s := range benign {
		f.Add([]byte(quote(s)))
	}
	g := newGuard(secret)
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		out, d := g.ScanResult(t.Context(), facts(`{}`), raw)
		if !bytes.Equal(before, raw) {
			t.Fatal("the input was changed")
		}
		if d.Verdict != vault.Allow {
			return
		}
		if bytes.Contains(out, []byte(secret)) {
			t.Errorf("secret in %q", out)
		}
		if !json.Valid(raw) {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%q became %q", raw, out)
		}
		again, d := g.ScanResult(t.Context(), facts(`{}`), out)
		if d.Verdict != vault.Allow || len(d.Reasons) > 0 || !bytes.Equal(again, out) {
			t.Errorf("second look at %q: %+v %q", out, d, again)
		}
		if len(d.Reasons) == 0 && bytes.Count(out, []byte("{")) > bytes.Count(raw, []byte("{")) {
			t.Errorf("structure grew: %q", out)
		}
	})
}

func BenchmarkScanResult(b *testing.B) {
	line := "The customer asks about invoice 4711 of 120.50 EUR, see https://example.com/i/4711 for more.\n"
	for name, text := range map[string]string{"ascii": line, "typography": "“" + line + "” – é"} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, n), func(b *testing.B) {
				raw := []byte(`{"content":[{"type":"text","text":` + quote(strings.Repeat(text, n<<10/len(text))) + `}]}`)
				secrets := make([]string, 50)
				for i := range secrets {
					secrets[i] = fmt.Sprintf("%d-%s", i*7919, secret)
				}
				g, f := newGuard(secrets...), facts(`{}`)
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					if _, d := g.ScanResult(b.Context(), f, raw); len(d.Reasons) > 0 {
						b.Fatal(d)
					}
				}
			})
		}
	}
}

func BenchmarkScanArgs(b *testing.B) {
	g, f := newGuard(secret), facts(`{"to":["anna@example.com"],"subject":"Invoice","body":"Dear customer, please find attached the reminder."}`)
	b.ReportAllocs()
	for b.Loop() {
		if g.ScanArgs(b.Context(), f).Verdict != vault.Allow {
			b.Fatal("denied")
		}
	}
}
