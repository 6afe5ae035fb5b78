package flow

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pilox/vault"
)

var kindNames = [kinds]string{"text", "email", "host", "url", "iban", "path", "amount", "number"}

func TestClassify(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"anna@example.com", "email anna@example.com"},
		{"Anna.B+x@EXAMPLE.Com", "email Anna.B+x@example.com"},
		{"anna@müller.example", "email anna@xn--mller-kva.example"},
		{"anna@example", "text anna@example"},
		{"anna@@example.com", "text anna@@example.com"},
		{" anna@example.com", "text  anna@example.com"},
		{"a@b.example,c@d.example", "text a@b.example,c@d.example"},
		{"Example.COM.", "host example.com"},
		{"192.0.2.1", "host 192.0.2.1"},
		{"::ffff:192.0.2.1", "host 192.0.2.1"},
		{"2001:DB8::1", "host 2001:db8::1"},
		{"report.zip", "path report.zip"},
		{"example", "text example"},
		{"HTTPS://Example.com", "url https://example.com/"},
		{"https://example.com:443?q=A%20b#f", "url https://example.com/?q=A%20b#f"},
		{"http://[2001:db8::1]:8080/x", "url http://[2001:db8::1]:8080/x"},
		{"https://user@example.com/", "text https://user@example.com/"},
		{"javascript://example.com/%0aalert(1)", "text javascript://example.com/%0aalert(1)"},
		{"DE02120300000000202051", "iban DE02120300000000202051"},
		{"de02 1203 0000 0000 2020 51", "iban DE02120300000000202051"},
		{"DE03120300000000202051", "text DE03120300000000202051"},
		{"/srv//a/./b", "path /srv/a/b"},
		{"/srv/../etc/passwd", "text /srv/../etc/passwd"},
		{"docs/a.txt", "path docs/a.txt"},
		{"12", "number 12"},
		{"012.50", "number 12.5"},
		{"1,234,567.8", "number 1234567.8"},
		{"1.234,56", "text 1.234,56"},
		{"1,23", "text 1,23"},
		{"-0.0", "number 0"},
		{"1e5", "text 1e5"},
		{"120.50 EUR", "amount 120.5 EUR"},
		{"EUR 120,000", "amount 120000 EUR"},
		{"€5", "amount 5 EUR"},
		{"5 $", "amount 5 $"},
		{"5 eur", "text 5 eur"},
	} {
		k, normal := classify(tt.in)
		if got := kindNames[k] + " " + normal; got != tt.want {
			t.Errorf("classify(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func extracted(s string) []string {
	var out []string
	extract(s, func(_ form, k kind, normal string) bool {
		if k != kindText {
			out = append(out, kindNames[k]+" "+normal)
		}
		return true
	})
	slices.Sort(out)
	return slices.Compact(out)
}

func TestExtract(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"Write to anna@example.com, then to <bob@example.org>.", "email anna@example.com|email bob@example.org"},
		{"mailto:anna@example.com to:bob@example.org", "email anna@example.com|email bob@example.org"},
		{"See (https://example.com/a_(b),c?d=1;e=2).", "url https://example.com/a_(b),c?d=1;e=2"},
		{"[link]( https://example.com/a )", "url https://example.com/a"},
		{"<https://example.com/a>", "url https://example.com/a"},
		{"**example.com** or `example.org`!", "host example.com|host example.org"},
		{"Pay 120.50 EUR and 3 more.", "amount 120.5 EUR|number 3"},
		{"Pay EUR 1,200.50, please", "amount 1200.5 EUR"},
		{"Pay €5 or 7€", "amount 5 EUR|amount 7 EUR"},
		{"1, 2 and 3,4", "number 1|number 2|number 3|number 4"},
		{"to DE02 1203 0000 0000 2020 51 today", "iban DE02120300000000202051"},
		{"to DE02120300000000202051.", "iban DE02120300000000202051"},
		{"to XDE02120300000000202051", ""},
		{"the files /srv/a.pdf and b.csv", "path /srv/a.pdf|path b.csv"},
		{"version 1.2.3 of nothing", ""},
		{"", ""},
	} {
		if s := strings.Join(extracted(tt.in), "|"); s != tt.want {
			t.Errorf("%q:\n got %s\nwant %s", tt.in, s, tt.want)
		}
	}
}

// A typed value that stands as a word is found wherever it stands.
func TestExtractFindsWholeWords(t *testing.T) {
	for _, v := range []string{"anna@example.com", "https://example.com/a?b=1", "/srv/a.pdf", "example.org", "DE02120300000000202051"} {
		k, normal := classify(v)
		want := kindNames[k] + " " + normal
		for _, around := range []string{"%s", "x %s y", "%s\n", "\t%s", "a\n%s\nb", "<%s>", `"%s"`, "(see %s )", "%s, and", "%s; and", "it is %s."} {
			if text := fmt.Sprintf(around, v); !slices.Contains(extracted(text), want) {
				t.Errorf("%q: %v lacks %s", text, extracted(text), want)
			}
		}
	}
}

func TestHarvestIsBounded(t *testing.T) {
	w := New(Config{})
	var b strings.Builder
	for i := range 3 * maxHarvest {
		fmt.Fprintf(&b, "m%d@example.com\n", i)
	}
	doc, err := vault.ParseValue(vault.AppendQuoted(nil, b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(w.harvest(doc.Root())); n > maxHarvest {
		t.Errorf("%d values, at most %d", n, maxHarvest)
	}
}

// Whatever the text is, extraction ends, normal forms are stable, and every
// typed value occurs in the text as one piece that is not part of a longer word.
func FuzzExtract(f *testing.F) {
	for _, s := range []string{"Write to anna@example.com.", "EUR 1,200.50 to DE02 1203 0000 0000 2020 51", "https://[::1]:80/a,b", "“quoted text here” «und hier»", "a=b:c@d.example", `{"a":"b@c.example"}`, "1,2,3 €5$", "\xff\xfe\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n := 0
		extract(s, func(_ form, k kind, normal string) bool {
			n++
			if k == kindText {
				return n < maxHarvest
			}
			again, same := classify(normal)
			if k == kindPath { // 007/ is a path; 007, its clean form, is also a number
				again = k
				same, _ = normalPath(normal)
			}
			if again != k || same != normal {
				t.Errorf("%q in %q is not stable: %s %q", normal, s, kindNames[again], same)
			}
			if k == kindEmail {
				local, _, _ := strings.Cut(normal, "@")
				i := strings.Index(s, local+"@")
				if i < 0 {
					t.Errorf("%q is not in %q", normal, s)
				}
			}
			return n < maxHarvest
		})
		if n > len(s)*4+16 {
			t.Errorf("%d values from %d bytes", n, len(s))
		}
	})
}

func benchFacts(args string, roles map[string]vault.Role) *vault.Facts {
	return &vault.Facts{
		Call:  &vault.Call{Agent: "spiffe://example.org/agent/acme/clerk/1", Kind: vault.KindTool, Server: "mail", Target: vault.Target{Server: vault.ServerID{1}, Name: "send"}, Args: vault.MustArgs(args)},
		Grant: &vault.Grant{Inputs: "Write to anna@example.com about the invoice.", MaySendTo: []string{"example.com"}},
		Tool:  &vault.Tool{Server: "mail", Name: "send", Risk: vault.RiskMedium, Source: vault.FromOrganisation, Holds: vault.Public(), Roles: roles},
	}
}

func BenchmarkCheck(b *testing.B) {
	roles := map[string]vault.Role{"/to": vault.RoleRecipient, "/subject": vault.RoleContent, "/body": vault.RoleContent}
	for _, bb := range []struct {
		name  string
		scope vault.Label
	}{
		{"clean", vault.Clean()},
		{"untrusted", vault.Label{Integrity: vault.FromWeb, Readers: vault.Public()}},
		{"deadly", vault.Label{Integrity: vault.FromWeb, Readers: vault.Only("finance")}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w, f := New(Config{}), benchFacts(`{"to":["anna@example.com"],"subject":"Invoice","body":"Dear customer, please find attached the reminder."}`, roles)
			w.Taint(f.Call.Agent, bb.scope)
			b.ReportAllocs()
			for b.Loop() {
				if w.Check(b.Context(), f).Verdict != vault.Allow {
					b.Fatal("not allowed")
				}
			}
		})
	}
}

func BenchmarkLabel(b *testing.B) {
	line := "The customer anna@example.com asks about invoice 4711 of 120.50 EUR, see https://example.com/i/4711 for more.\n"
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("%dKiB", n), func(b *testing.B) {
			w, f := New(Config{}), benchFacts(`{}`, nil)
			raw := append(vault.AppendQuoted([]byte(`{"content":[{"type":"text","text":`), strings.Repeat(line, n<<10/len(line))), `}]}`...)
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				w.Label(b.Context(), f, raw)
			}
		})
	}
}
