package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/policy"
)

// An entry is one of an archive; the zero type is a file.
type entry struct {
	name, text string
	typ        byte
	link       string
}

const rules = "package p\n\ndecision := {\"effect\": \"allow\"} if input.call.args.text == data.limits.word\n"

// pack returns a tar.gz archive of the entries.
func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	tw := tar.NewWriter(gz)
	for _, e := range entries {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		err := tw.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Size: int64(len(e.text)), Mode: 0o644})
		if _, err2 := tw.Write([]byte(e.text)); errors.Join(err, err2) != nil {
			t.Fatal(err, err2)
		}
	}
	if err := errors.Join(tw.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// opaBundle returns an archive as opa build writes it.
func opaBundle(t testing.TB, text string, roots ...string) []byte {
	t.Helper()
	one := 1
	b := opabundle.Bundle{
		Manifest: opabundle.Manifest{Revision: "r7", Roots: &roots, RegoVersion: &one},
		Data:     map[string]any{"limits": map[string]any{"word": "hello"}},
		Modules:  []opabundle.ModuleFile{{URL: "/rules/p.rego", Path: "/rules/p.rego", Raw: []byte(text), Parsed: ast.MustParseModule(text)}},
	}
	var out bytes.Buffer
	if err := opabundle.Write(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// put writes an archive and returns the bundle in it.
func put(t testing.TB, raw []byte) policy.Bundle {
	t.Helper()
	at := filepath.Join(t.TempDir(), "bundle.tar.gz")
	if err := os.WriteFile(at, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return policy.Bundle{Name: "main", File: at, Unsigned: true}
}

func loads(t testing.TB, b policy.Bundle) (*policy.Policy, error) {
	t.Helper()
	return policy.New(t.Context(), policy.Config{Bundles: []policy.Bundle{b}, Hooks: []policy.Hook{hook()}})
}

// TestArchives reads as the specification of archives: what is in one, and what comes
// of it.
func TestArchives(t *testing.T) {
	const data = `{"limits": {"word": "hello"}}`
	manifest := func(text string) []entry {
		return []entry{{name: ".manifest", text: text}, {name: "p.rego", text: rules}, {name: "data.json", text: data}}
	}
	with := func(more ...entry) []entry {
		return append([]entry{{name: "p.rego", text: rules}, {name: "data.json", text: data}}, more...)
	}
	var many []entry
	for i := range 2000 {
		many = append(many, entry{name: fmt.Sprintf("doc/%d.txt", i)})
	}
	packed := pack(t, with()...)
	for _, tt := range []struct {
		name string
		raw  []byte
		want string // in the error; "" is none
	}{
		{"what opa build writes", opaBundle(t, rules, ""), ""},
		{"with roots that are kept", opaBundle(t, rules, "p", "limits"), ""},
		{"what tar writes of a directory", pack(t, entry{name: "./", typ: tar.TypeDir}, entry{name: "./p.rego", text: rules}, entry{name: "./limits/", typ: tar.TypeDir}, entry{name: "./limits/data.json", text: `{"word": "hello"}`}), ""},
		{"files that do not count", pack(t, with(entry{name: "README.md", text: "x"}, entry{name: ".git/config", text: "x"}, entry{name: ".git/data.json", text: "x"}, entry{name: "p_test.rego", text: "x"})...), ""},
		{"no rules", pack(t, entry{name: "data.json", text: data}), "no *.rego file"},
		{"a delta bundle", pack(t, entry{name: "/patch.json", text: `{"data": []}`}, entry{name: "/.manifest", text: `{"revision": "r8"}`}), "delta bundles are not supported"},
		{"compiled rules", pack(t, with(entry{name: "/policy.wasm", text: "\x00asm"})...), "compiled rules are not supported"},
		{"data in YAML", pack(t, with(entry{name: "limits/data.yaml", text: "word: x"})...), "convert it"},
		{"roots that do not permit a rule", opaBundleUnchecked(t, `{"revision": "", "roots": ["q", "limits"]}`), "not under the roots"},
		{"roots that do not permit data", opaBundleUnchecked(t, `{"revision": "", "roots": ["p"]}`), "data.limits is not under the roots"},
		{"roots that permit a part of the data", pack(t, manifest(`{"roots": ["p", "limits/word"]}`)...), ""},
		{"no roots at all", pack(t, manifest(`{"roots": []}`)...), "not under the roots"},
		{"rules of another version", pack(t, manifest(`{"revision": "", "rego_version": 0}`)...), "version 0 of Rego"},
		{"a file of another version", pack(t, manifest(`{"file_rego_versions": {"p.rego": 0}}`)...), "version 0 of Rego"},
		{"entry points of compiled rules", pack(t, manifest(`{"wasm": [{"entrypoint": "p/decision", "module": "/policy.wasm"}]}`)...), "compiled rules are not supported"},
		{"a manifest with an unknown member", pack(t, manifest(`{"root": ["p"]}`)...), `unknown member "root"`},
		{"a manifest with a member twice", pack(t, manifest(`{"roots": [""], "roots": ["p"]}`)...), ".manifest"},
		{"a manifest that is no JSON", pack(t, manifest(`{`)...), ".manifest"},
		{"a manifest below the top", pack(t, with(entry{name: "x/.manifest", text: `{}`})...), "below the top"},
		{"a manifest in another form", pack(t, with(entry{name: "/.manifest.pb", text: "x"})...), "read as JSON only"},
		{"a symbolic link", pack(t, with(entry{name: "q.rego", typ: tar.TypeSymlink, link: "p.rego"})...), "a link in an archive"},
		{"a hard link", pack(t, with(entry{name: "q.rego", typ: tar.TypeLink, link: "p.rego"})...), "a link in an archive"},
		{"a link in the place of a directory", pack(t, with(entry{name: "q", typ: tar.TypeSymlink, link: "/etc"})...), "a link in an archive"},
		{"a pipe", pack(t, with(entry{name: "q.rego", typ: tar.TypeFifo})...), "neither a file nor a directory"},
		{"a way out", pack(t, with(entry{name: "../q.rego", text: rules})...), "no name of a file"},
		{"a way out in the middle", pack(t, with(entry{name: "a/../../q.rego", text: rules})...), "no name of a file"},
		{"a way out behind the slash", pack(t, with(entry{name: "/../q.rego", text: rules})...), "no name of a file"},
		{"an absolute path behind the slash", pack(t, with(entry{name: "//etc/q.rego", text: rules})...), "no name of a file"},
		{"a backslash", pack(t, with(entry{name: `a\q.rego`, text: rules})...), "no name of a file"},
		{"a control character", pack(t, with(entry{name: "a\nq.rego", text: rules})...), "no name of a file"},
		{"a long name", pack(t, with(entry{name: strings.Repeat("a", 513), text: rules})...), "no name of a file"},
		{"the top as a file", pack(t, with(entry{name: ".", text: rules})...), "no name of a file"},
		{"a file twice", pack(t, with(entry{name: "/p.rego", text: "package p\ndecision := true\n"})...), "in the archive twice"},
		{"a file that is a directory too", pack(t, with(entry{name: "p.rego/data.json", text: "{}"})...), "as a file and as a directory"},
		{"many entries", pack(t, with(many...)...), "more than 2000 entries"},
		{"more than a bundle holds", pack(t, with(entry{name: "x", text: noise(17 << 20)})...), "larger than"},
		{"a bomb", pack(t, with(entry{name: "x", text: strings.Repeat("\x00", 12<<20)})...), "times its size"},
		{"a bomb after the end", bomb(t, with()...), "times its size"},
		{"no archive", []byte(rules), "no tar.gz archive"},
		{"nothing", nil, "no tar.gz archive"},
		{"half of one", packed[:len(packed)/2], "unexpected EOF"},
		{"without its checksum", packed[:len(packed)-8], "unexpected EOF"},
		{"with a wrong checksum", append(bytes.Clone(packed[:len(packed)-8]), 1, 2, 3, 4, 5, 6, 7, 8), "checksum"},
		{"a second stream", append(bytes.Clone(packed), packed...), "after the end"},
		{"a word after the end", append(bytes.Clone(packed), "x"...), "after the end"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := loads(t, put(t, tt.raw))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for text, want := range map[string]vault.Verdict{"hello": vault.Allow, "bye": vault.Deny} {
				if d := p.Decide(t.Context(), facts("mail", "send", `{"text":"`+text+`"}`)); d.Verdict != want {
					t.Errorf("%s: %+v", text, d)
				}
			}
		})
	}
}

// opaBundleUnchecked is a bundle that opa build would not write.
func opaBundleUnchecked(t testing.TB, manifest string) []byte {
	return pack(t, entry{name: "/data.json", text: `{"limits": {"word": "hello"}}`}, entry{name: "/rules/p.rego", text: rules}, entry{name: "/.manifest", text: manifest})
}

// noise shrinks to half.
func noise(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = "abcdefghijklmnop"[x>>28]
	}
	return string(b)
}

// bomb is an archive whose tar file goes on after its end.
func bomb(t testing.TB, entries ...entry) []byte {
	t.Helper()
	in, err := gzip.NewReader(bytes.NewReader(pack(t, entries...)))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	_, err1 := gz.Write(readAll(t, in))
	_, err2 := gz.Write(make([]byte, 12<<20))
	if err := errors.Join(err1, err2, gz.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSignedArchive signs archives, and changes them.
func TestSignedArchive(t *testing.T) {
	s := newSigner(t, "k1", "ES256")
	raw := opaBundle(t, rules, "")
	b := put(t, raw)
	b.Unsigned, b.Key = false, &s.key
	if _, err := loads(t, b); !errors.Is(err, policy.ErrSignature) {
		t.Errorf("an archive that nobody signed: %v", err)
	}
	names, err := policy.Sign(b.File, "k1", "ES256", s.private)
	if err != nil || strings.Join(names, " ") != ".manifest data.json rules/p.rego" {
		t.Fatalf("signed %q: %v", names, err)
	}
	if _, err := loads(t, b); err != nil {
		t.Errorf("a signed archive: %v", err)
	}
	if n, err := policy.Verify(b.File, s.key); n != 3 || err != nil {
		t.Errorf("verified %d files: %v", n, err)
	}
	unsigned := b
	unsigned.Unsigned, unsigned.Key = true, nil
	if _, err := loads(t, unsigned); err == nil || !strings.Contains(err.Error(), "the bundle is signed") {
		t.Errorf("a signature that nobody looks at: %v", err)
	}
	if _, err := loads(t, unsigned.OnTrial()); err != nil {
		t.Errorf("on trial: %v", err)
	}
	whole, err := os.ReadFile(b.File)
	if err != nil {
		t.Fatal(err)
	}
	files, _, err := policy.ReadArchive(whole)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(map[string][]byte){
		"another rule":                  func(f map[string][]byte) { f["rules/p.rego"] = []byte("package p\ndecision := true\n") },
		"one more":                      func(f map[string][]byte) { f["q.rego"] = []byte("package p\ndecision := true\n") },
		"one less":                      func(f map[string][]byte) { delete(f, "data.json") },
		"another manifest":              func(f map[string][]byte) { f[".manifest"] = []byte(`{"revision": "r8", "roots": [""]}`) },
		"no manifest":                   func(f map[string][]byte) { delete(f, ".manifest") },
		"rules under another root":      func(f map[string][]byte) { f["x/p.rego"] = f["rules/p.rego"]; delete(f, "rules/p.rego") },
		"the signature of another file": func(f map[string][]byte) { f[".signatures.json"] = []byte(`{"signatures": ["a.b.c"]}`) },
	} {
		edited := maps.Clone(files)
		edit(edited)
		var entries []entry
		for n, data := range edited {
			entries = append(entries, entry{name: "/" + n, text: string(data)})
		}
		c := put(t, pack(t, entries...))
		c.Unsigned, c.Key = false, &s.key
		if _, err := loads(t, c); !errors.Is(err, policy.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// OPA itself takes what we signed, and we take what OPA signed.
	config := opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{"k1": {Key: string(s.key.PEM), Algorithm: "ES256"}}, "k1", "", nil)
	if _, err := opabundle.NewReader(bytes.NewReader(whole)).WithBundleVerificationConfig(config).Read(); err != nil {
		t.Errorf("OPA refuses our signature: %v", err)
	}
	read, err := opabundle.NewReader(bytes.NewReader(raw)).Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := read.GenerateSignature(opabundle.NewSigningConfig(string(s.private), "ES256", ""), "k1", false); err != nil {
		t.Fatal(err)
	}
	var theirs bytes.Buffer
	if err := opabundle.Write(&theirs, read); err != nil {
		t.Fatal(err)
	}
	c := put(t, theirs.Bytes())
	c.Unsigned, c.Key = false, &s.key
	if _, err := loads(t, c); err != nil {
		t.Errorf("we refuse OPA's signature: %v", err)
	}
}

// TestArchiveReload replaces an archive under a policy that uses it.
func TestArchiveReload(t *testing.T) {
	b := put(t, opaBundle(t, rules, ""))
	p, err := loads(t, b)
	if err != nil {
		t.Fatal(err)
	}
	f, before := facts("mail", "send", `{"text":"bye"}`), p.Revision()
	whole := opaBundle(t, "package p\n\ndecision := true\n", "")
	for _, tt := range []struct {
		name string
		raw  []byte
		want vault.Verdict
	}{{"half an archive", whole[:len(whole)/2], vault.Deny}, {"a whole one", whole, vault.Allow}, {"a delta bundle", pack(t, entry{name: "patch.json", text: "{}"}), vault.Allow}} {
		if err := os.WriteFile(b.File, tt.raw, 0o600); err != nil {
			t.Fatal(err)
		}
		err := p.Reload(t.Context())
		good := tt.name == "a whole one"
		if (err == nil) != good || (p.Status().Err == nil) != good {
			t.Errorf("%s: %v, status %v", tt.name, err, p.Status().Err)
		}
		if d := p.Decide(t.Context(), f); d.Verdict != tt.want {
			t.Errorf("%s: %+v", tt.name, d)
		}
	}
	if p.Revision() == before {
		t.Error("other rules have the same revision")
	}
}

// An archive and the directory it was made of are the same bundle.
func TestArchiveIsItsDirectory(t *testing.T) {
	dir := bundle(t, map[string]string{"p.rego": rules, "limits/data.json": `{"word":"hello"}`})
	a, err1 := loads(t, dir)
	b, err2 := loads(t, put(t, pack(t, entry{name: "limits/data.json", text: `{"word":"hello"}`}, entry{name: "p.rego", text: rules})))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if a.Revision() != b.Revision() {
		t.Error("they have different revisions")
	}
}

// FuzzArchive reads anything: what is read has names inside the bundle, is within
// bounds, and is the same after it was written again. plain is a tar file that is
// packed first, which gets further than changing a packed one.
func FuzzArchive(f *testing.F) {
	for _, raw := range [][]byte{
		opaBundle(f, rules, ""),
		pack(f, entry{name: "./p.rego", text: rules}, entry{name: "./a/", typ: tar.TypeDir}, entry{name: "q", typ: tar.TypeSymlink, link: "p.rego"}),
		pack(f, entry{name: "/patch.json", text: "{}"}),
	} {
		f.Add(raw, false)
		in, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(readAll(f, in), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, plain bool) {
		if plain {
			var out bytes.Buffer
			gz := gzip.NewWriter(&out)
			if _, err := gz.Write(raw); errors.Join(err, gz.Close()) != nil {
				t.Fatal(err)
			}
			raw = out.Bytes()
		}
		files, signed, err := policy.ReadArchive(raw)
		if err != nil {
			return
		}
		size := 0
		for name, data := range files {
			if size += len(data); !fs.ValidPath(name) || strings.Contains(name, "\\") {
				t.Errorf("a file named %q", name)
			}
		}
		if size > 16<<20 || len(files) > 2000 {
			t.Errorf("%d files of %d bytes", len(files), size)
		}
		again, _, err := policy.ReadArchive(signed)
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		files[".signatures.json"] = []byte("{}")
		if !maps.EqualFunc(files, again, bytes.Equal) {
			t.Error("other files after writing them")
		}
	})
}

// FuzzManifest: what is read permits nothing outside its roots.
func FuzzManifest(f *testing.F) {
	f.Add(`{"revision":"r","roots":["p","limits"],"rego_version":1,"metadata":{}}`)
	f.Add(`{"roots":[""]}`)
	f.Add(`{"roots":["/p/"]}`)
	f.Add(`{"roots":["",""]}`)
	f.Fuzz(func(t *testing.T, text string) {
		b := pack(t, entry{name: ".manifest", text: text}, entry{name: "p.rego", text: "package p\n\ndecision := true\n"})
		_, ours := loads(t, put(t, b))
		_, theirs := opabundle.NewReader(bytes.NewReader(b)).Read()
		if ours == nil && theirs != nil {
			t.Errorf("OPA refuses what we take: %v", theirs)
		}
	})
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
