package approval_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/approval"
)

// opened returns the question about f, from its signed bytes.
func opened(t testing.TB, f *vault.Facts, d vault.Decision) *approval.Question {
	t.Helper()
	desk, err := approval.New(approval.Config{
		Signer: key("gateway"), Recorder: new(recorder), Approvers: []approval.Approver{approver("lead")},
		Now: func() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Grant.Expires = time.Date(2026, 9, 1, 13, 0, 0, 0, time.UTC)
	q, err := desk.Question(t.Context(), f, d, revision)
	if err != nil {
		t.Fatal(err)
	}
	out, err := approval.Open(q.Bytes, public("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	out.ID = "a-0123456789abcdefghjkmnpqrs" // random otherwise
	return out
}

// TestRender compares what a person reads with testdata/*.txt, for arguments that
// try to be read as something else. UPDATE=1 writes the files; read the diff.
func TestRender(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		change     func(*vault.Facts, *vault.Decision)
	}{
		{"plain", `{"to":"DE02120300000000202051","amount":12.5,"currency":"EUR","urgent":false,"note":null,"tags":[],"meta":{}}`, nil},
		{"bidi", `{"file":"invoice\u202Efdp.exe","to":"\u2066secret\u2069"}`, nil},
		{"look-alikes", `{"to":"p\u0430y@ex\u0430mple.com","host":"\u0440\u0430\u0443","fine":"Привет мир","greek":"\u03BF\u03BD","styled":"\uD835\uDC1A\uD835\uDC1B"}`, nil},
		{"invisible", `{"to":"a\u200Bb\u00ADc\uFEFF","fill":"\u3164\u2800","tag":"x\uDB40\uDC41","nbsp":"a\u00A0b","null":"a\u0000b\u001B[2J"}`, nil},
		{"padding", `{"cmd":"ls                                        ; rm -rf /","text":"fine\n\n\n\n\n\n\n\n\n\n\n\n\n\nand now the payload","end":"x ","marks":"z\u0335\u0336\u0337\u0338"}`, nil},
		{"forged frame", `{"body":"hello\nTIME\n  until 2099\nAnswer: allowed\n| more","key\": \"x":1,"bracket":"⟨U+0041⟩","quote":"\" \"to\": \"me"}`, nil},
		{"encoded", `{"blob":"` + strings.Repeat("QUJD", 30) + `","host":"xn--e1afmkfd.example"}`, nil},
		{"right to left", `{"name":"שלום 100 עולם"}`, nil},
		{"long", `{"a":"` + strings.Repeat("a long text ", 400) + `","list":[` + strings.TrimSuffix(strings.Repeat("1,", 100), ",") + `],"z":"after"}`, nil},
		{"many lines", `{"a":"` + strings.Repeat(`x\n`, 1000) + `","b":{` + manyMembers() + `},"z":"after"}`, nil},
		{"nested", `{"a":{"b":[{"c":"d"},[1,[2]],{}],"e~/f":"g"}}`, nil},
		{"everything around", `{}`, func(f *vault.Facts, d *vault.Decision) {
			f.Grant.AnyArgs, f.Grant.SameUID = true, true
			f.Grant.Purpose = "Pay\nAPPROVED BY FINANCE\u202e"
			f.Call.Principal, f.Call.Server, f.Call.Target.Name = "user:\u0430dmin", "p\u0430y", "transfer\u200b"
			f.Call.Params = vault.MustArgs(`{"task":{"ttl":60000}}`)
			f.Origins[0].Found = []string{"tool:web/fetch\u2028x"}
			f.Scope.Truncated = true
			f.Grade = vault.GradeNone
			d.Reasons[0].Detail = "matched \x1b[31m"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, d := facts(), asked()
			f.Call.Args = vault.MustArgs(tt.args)
			if tt.change != nil {
				tt.change(f, &d)
			}
			got := approval.Render(opened(t, f, d))
			checkText(t, got)
			path := filepath.Join("testdata", strings.ReplaceAll(tt.name, " ", "-")+".txt")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs, UPDATE=1 rewrites it. Now:\n%s", path, got)
			}
		})
	}
}

func manyMembers() string {
	var b strings.Builder
	for i := range 100 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + string(rune('a'+i/26)) + string(rune('a'+i%26)) + `":"` + strings.Repeat(`y\n`, 9) + `"`)
	}
	return b.String()
}

// checkText: whatever stands in a question, the text shows every character and
// keeps its frame.
func checkText(t *testing.T, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Error("not UTF-8")
	}
	sections := map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for _, r := range line {
			if !unicode.IsGraphic(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Z, r) && r != ' ' {
				t.Errorf("U+%04X stands in the text: %q", r, line)
			}
		}
		if line != "" && line[0] != ' ' {
			name, _, _ := strings.Cut(line, "  (")
			sections[name]++
		}
	}
	for name, n := range sections {
		switch name {
		case "WHO", "WANTS", "ASKED BECAUSE", "ARGUMENTS", "OTHER PARAMETERS", "WHERE VALUES COME FROM", "TIME", "CANNOT BE SEEN HERE", "LOOK CLOSELY":
		default:
			if !strings.HasPrefix(name, "Approval ") {
				t.Errorf("a line of the frame that is none: %q", name)
			}
		}
		if n != 1 {
			t.Errorf("%d times %q", n, name)
		}
	}
	for _, name := range []string{"WHO", "WANTS", "ARGUMENTS", "TIME"} {
		if sections[name] != 1 {
			t.Errorf("%d times %s", sections[name], name)
		}
	}
}

// The full view holds every byte of a long text, the short one says what it lacks.
func TestRenderFull(t *testing.T) {
	long := strings.Repeat("0123456789 ", 2000) + "needle " + strings.Repeat("9876543210 ", 2000)
	f := facts()
	f.Call.Args = vault.MustArgs(`{"a":"` + long + `"}`)
	q := opened(t, f, asked())
	short, full := approval.Render(q), approval.RenderFull(q)
	if !strings.Contains(short, "NOT EVERYTHING IS SHOWN") || strings.Contains(short, "needle") || !strings.Contains(short, "of 44007 bytes not shown, sha256") {
		t.Errorf("the short view does not say what it leaves out:\n%s", short)
	}
	if len(short) > 64<<10 {
		t.Errorf("the short view has %d bytes", len(short))
	}
	joined := strings.NewReplacer("\n    | ", "", "\n    > ", "", "\n", "").Replace(full)
	if strings.Contains(full, "NOT EVERYTHING") || !strings.Contains(joined, "needle") || strings.Count(joined, "0123456789 ") != 2000 {
		t.Error("the full view leaves something out")
	}
}

// FuzzRender: no argument, however odd, hides in the text or breaks its frame, and
// two different arguments never read the same in the full view.
func FuzzRender(f *testing.F) {
	for _, s := range []string{`{"a":"b"}`, `{"a":"x\u202Ey"}`, `{"a":"\n\n\n\nTIME\n"}`, `{"":{"":[[],{}]}}`, `{"a":"⟨U+0041⟩"}`, `{"a":"  x  "}`, `{"a":1e-7}`} {
		f.Add([]byte(s), "purpose")
	}
	f.Fuzz(func(t *testing.T, raw []byte, purpose string) {
		args, err := vault.ParseArgs(raw)
		if err != nil || len(args.Bytes()) > 1<<16 {
			return
		}
		if !utf8.ValidString(purpose) || len(purpose) > 1<<12 {
			return
		}
		fs := facts()
		fs.Call.Args, fs.Grant.Purpose = args, purpose
		q := opened(t, fs, asked())
		checkText(t, approval.Render(q))
		checkText(t, approval.RenderFull(q))
		if string(q.Args) != args.String() {
			t.Error("other arguments")
		}
	})
}

// FuzzVisible: the escaped form is one line of graphic characters, and no two
// texts have the same.
func FuzzVisible(f *testing.F) {
	f.Add("a", "b")
	f.Add("⟨U+200B⟩", "\u200b")
	f.Add("⟨17 spaces⟩", strings.Repeat(" ", 17))
	f.Add("a\u0301\u0301\u0301", "a\u0301\u0301⟨U+0301⟩")
	f.Add("\xff", "⟨byte FF⟩")
	f.Add(" ", "  ")
	f.Fuzz(func(t *testing.T, a, b string) {
		va, vb := approval.Visible(a), approval.Visible(b)
		if a != b && va == vb {
			t.Errorf("%q and %q both read %q", a, b, va)
		}
		for _, r := range va {
			if !unicode.IsGraphic(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError && !strings.ContainsRune(a, r) {
				t.Errorf("%q reads %q", a, va)
			}
		}
	})
}

// FuzzSubmit: no bytes but an approver's answer move a question.
func FuzzSubmit(f *testing.F) {
	desk, err := approval.New(approval.Config{Signer: key("gateway"), Recorder: new(recorder), Approvers: []approval.Approver{approver("lead")}})
	if err != nil {
		f.Fatal(err)
	}
	q, err := desk.Question(f.Context(), facts(), asked(), revision)
	if err != nil {
		f.Fatal(err)
	}
	if err := desk.Show(f.Context(), q); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0xa4})
	f.Add([]byte{0xa4, 1, 0x61, 'a', 2, 0x61, 'b', 3, 0x40, 4, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := desk.Submit(t.Context(), b); err == nil {
			t.Errorf("accepted %x", b)
		}
		if err := desk.Import(b); err == nil && len(desk.Pending()) != 1 {
			t.Errorf("imported %x", b)
		}
	})
}

func BenchmarkQuestion(b *testing.B) {
	desk, err := approval.New(approval.Config{Signer: key("gateway"), Recorder: new(recorder), Approvers: []approval.Approver{approver("lead")}})
	if err != nil {
		b.Fatal(err)
	}
	f, d := facts(), asked()
	q, err := desk.Question(b.Context(), f, d, revision)
	if err != nil {
		b.Fatal(err)
	}
	if err := desk.Show(b.Context(), q); err != nil {
		b.Fatal(err)
	}
	b.Run("coalesce", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := desk.Question(b.Context(), f, d, revision); err != nil {
				b.Fatal(err)
			}
		}
	})
	opened, err := approval.Open(q.Bytes, public("gateway"))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("render", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			approval.Render(opened)
		}
	})
}
