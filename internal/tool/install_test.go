package tool

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pilox/vault"
)

// writeTree makes files below a new directory. A value that starts with "-> " is
// a link; a name that ends in * is executable.
func writeTree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		mode := os.FileMode(0o644)
		if n, ok := strings.CutSuffix(name, "*"); ok {
			name, mode = n, 0o755
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, p); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fakeLook finds a node that is a file of the test.
func fakeLook(t testing.TB) func(string) (string, error) {
	dir := writeTree(t, map[string]string{"node*": "the interpreter", "npm/bin/npm-cli.js*": "npm"})
	return func(name string) (string, error) {
		if name == "npm" {
			return filepath.Join(dir, "npm/bin/npm-cli.js"), nil
		}
		return filepath.Join(dir, name), nil
	}
}

// jailFunc is a Jail that is a function.
type jailFunc func(context.Context, InstallSpec) error

func (f jailFunc) Run(ctx context.Context, spec InstallSpec) error { return f(ctx, spec) }

// removable makes a read-only tree go away with the test.
func removable(t testing.TB, dir string) string {
	t.Cleanup(func() {
		if err := RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

var jsServer = map[string]string{
	"package.json": `{"name":"srv","version":"1.0.0","bin":"./bin/srv.js"}`,
	"bin/srv.js*":  "#!/usr/bin/env node\n1",
	"lib/a.js":     "2", "lib/b": "-> a.js",
}

func TestInstallPath(t *testing.T) {
	dest := removable(t, filepath.Join(t.TempDir(), "srv"))
	src := Source{Scheme: "path", Dir: writeTree(t, jsServer)}
	tree, err := Install(t.Context(), InstallConfig{Look: fakeLook(t)}, src, "", dest)
	if err != nil {
		t.Fatal(err)
	}
	if tree.Entry != "bin/srv.js" || tree.Runtime != RuntimeNode || tree.Dir != dest || tree.Files != 6 {
		t.Errorf("tree %+v", tree)
	}
	for name, want := range map[string]os.FileMode{".": 0o555, "bin": 0o555, "bin/srv.js": 0o555, "lib/a.js": 0o444} {
		info, err := os.Stat(filepath.Join(dest, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode().Perm(), want, err)
		}
	}
	if _, err := Install(t.Context(), InstallConfig{Look: fakeLook(t)}, src, "", dest); err == nil {
		t.Error("installed over an existing tree")
	}
	again := removable(t, filepath.Join(t.TempDir(), "srv"))
	other, err := Install(t.Context(), InstallConfig{Look: fakeLook(t)}, src, "", again)
	if err != nil || other.Digest != tree.Digest {
		t.Errorf("the same code has another digest (%v)", err)
	}
}

func TestInstallRefuses(t *testing.T) {
	with := func(more map[string]string) map[string]string {
		out := map[string]string{}
		for k, v := range jsServer {
			out[k] = v
		}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	fifo := writeTree(t, jsServer)
	if err := syscall.Mkfifo(filepath.Join(fifo, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, src := range map[string]string{
		"a link to an absolute path":         writeTree(t, with(map[string]string{"x": "-> /etc/passwd"})),
		"a link out of the tree":             writeTree(t, with(map[string]string{"x": "-> ../x"})),
		"a link that leaves through another": writeTree(t, with(map[string]string{"s/d": "-> ..", "x": "-> s/d/../y"})),
		"a link to nothing":                  writeTree(t, with(map[string]string{"x": "-> none"})),
		"a pipe":                             fifo,
		"an entry outside the package":       writeTree(t, with(map[string]string{"package.json": `{"name":"srv","bin":"../srv.js"}`})),
		"an entry that is a shell script":    writeTree(t, with(map[string]string{"bin/srv.js*": "#!/bin/sh\nrm -rf /"})),
		"an entry that is missing":           writeTree(t, with(map[string]string{"package.json": `{"name":"srv","bin":"x.js"}`})),
		"two entries and no choice":          writeTree(t, with(map[string]string{"package.json": `{"bin":{"a":"bin/srv.js","b":"lib/a.js"}}`})),
		"no entry":                           writeTree(t, with(map[string]string{"package.json": `{}`})),
	} {
		parent := t.TempDir()
		if _, err := Install(t.Context(), InstallConfig{Look: fakeLook(t)}, Source{Scheme: "path", Dir: src}, "", filepath.Join(parent, "srv")); err == nil {
			t.Errorf("%s is installed", what)
		}
		if left, _ := os.ReadDir(parent); len(left) != 0 {
			t.Errorf("%s leaves %v behind", what, left)
		}
	}
	npm := Source{Scheme: "npm", Name: "srv", Version: "1.0.0"}
	if _, err := Install(t.Context(), InstallConfig{Look: fakeLook(t)}, npm, "", filepath.Join(t.TempDir(), "srv")); err == nil {
		t.Error("npm runs without a jail")
	}
}

func TestInstallNpmSpec(t *testing.T) {
	src := Source{Scheme: "npm", Name: "@acme/srv", Version: "1.0.0"}
	install := func(version string, fail error) (InstallSpec, error) {
		var seen InstallSpec
		_, err := Install(t.Context(), InstallConfig{
			Look: fakeLook(t), Registry: "https://registry.example/",
			Jail: jailFunc(func(_ context.Context, spec InstallSpec) error {
				seen = spec
				dir := filepath.Join(spec.Dir, "node_modules/@acme/srv")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				manifest := fmt.Sprintf(`{"name":"@acme/srv","version":%q,"bin":{"srv":"i.js"}}`, version)
				return errors.Join(fail, os.WriteFile(filepath.Join(dir, "package.json"), []byte(manifest), 0o644),
					os.WriteFile(filepath.Join(dir, "i.js"), []byte("1"), 0o644))
			}),
		}, src, "", removable(t, filepath.Join(t.TempDir(), "srv")))
		return seen, err
	}
	spec, err := install("1.0.0", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--ignore-scripts", "--omit=dev", "--no-audit", "--install-links", "@acme/srv@1.0.0"} {
		if !slices.Contains(spec.Argv, flag) {
			t.Errorf("npm runs without %s: %q", flag, spec.Argv)
		}
	}
	if !slices.Equal(spec.Hosts, []string{"registry.example:443"}) {
		t.Errorf("hosts %q", spec.Hosts)
	}
	for _, e := range spec.Env {
		if strings.Contains(e, "TOKEN") || strings.HasPrefix(e, "HOME="+os.Getenv("HOME")+"/.") {
			t.Errorf("environment %q", e)
		}
	}
	if _, err := install("1.0.1", nil); err == nil {
		t.Error("another version than asked for is installed")
	}
	if _, err := install("1.0.0", errDisk); !errors.Is(err, errDisk) {
		t.Errorf("an installer that failed: %v", err)
	}
}

func TestTreeDigest(t *testing.T) {
	base := map[string]string{"a": "1", "d/b": "2", "x*": "3", "l": "-> a"}
	digest := func(files map[string]string) vault.Digest {
		t.Helper()
		root, err := os.OpenRoot(writeTree(t, files))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		list, err := readTree(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		d, err := digestFiles(t.Context(), root, list)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := digest(base)
	if digest(base) != want {
		t.Fatal("the same tree has two digests")
	}
	for what, files := range map[string]map[string]string{
		"another content":   {"a": "9", "d/b": "2", "x*": "3", "l": "-> a"},
		"another name":      {"A": "1", "d/b": "2", "x*": "3", "l": "-> A"},
		"another place":     {"a": "1", "e/b": "2", "x*": "3", "l": "-> a"},
		"an executable bit": {"a*": "1", "d/b": "2", "x*": "3", "l": "-> a"},
		"another target":    {"a": "1", "d/b": "2", "x*": "3", "l": "-> d/b"},
		"a file for a link": {"a": "1", "d/b": "2", "x*": "3", "l": "1"},
		"one file more":     {"a": "1", "d/b": "2", "x*": "3", "l": "-> a", "z": ""},
		"one file less":     {"a": "1", "x*": "3", "l": "-> a"},
		"moved bytes":       {"a": "12", "d/b": "", "x*": "3", "l": "-> a"},
	} {
		if digest(files) == want {
			t.Errorf("%s has the same digest", what)
		}
	}
}

func TestLaunch(t *testing.T) {
	dest := removable(t, filepath.Join(t.TempDir(), "srv"))
	look := fakeLook(t)
	tree, err := Install(t.Context(), InstallConfig{Look: look}, Source{Scheme: "path", Dir: writeTree(t, jsServer)}, "", dest)
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, &memStore{})
	s, err := c.Register(t.Context(), "files", registration(t, `{"install":"path:/src/srv","args":["--x"],"read":["/srv/a"]}`), tree)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pin(t.Context(), "files", tools(readFile)); err != nil {
		t.Fatal(err)
	}
	good := func(when string) {
		t.Helper()
		l, err := c.Launch(t.Context(), s.ID)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if want := []string{tree.Interpreter, dest + "/bin/srv.js", "--x"}; !slices.Equal(l.Argv, want) || !slices.Equal(l.Read, []string{"/srv/a"}) {
			t.Errorf("%s: launch %+v", when, l)
		}
		if got := resolve(t, c, s.ID, "read_file", `{"path":"x"}`); got != "" {
			t.Errorf("%s: a call gives %q", when, got)
		}
	}
	bad := func(when string) {
		t.Helper()
		if _, err := c.Launch(t.Context(), s.ID); !errors.Is(err, ErrTreeChanged) {
			t.Errorf("%s: %v", when, err)
		}
		if got := resolve(t, c, s.ID, "read_file", `{"path":"x"}`); got != vault.CodeToolQuarantined {
			t.Errorf("%s: a call gives %q", when, got)
		}
	}
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(dest, name)
		if err := errors.Join(os.Chmod(p, 0o644), os.WriteFile(p, []byte(content), 0o644), os.Chmod(p, 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	good("as installed")
	good("again, from memory")
	info, _ := os.Stat(filepath.Join(dest, "lib/a.js"))
	write("lib/a.js", "3") // the same size, and the same time below
	if err := os.Chtimes(filepath.Join(dest, "lib/a.js"), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	bad("after a byte changed and the time was set back")
	if broken := c.CheckTrees(t.Context()); broken["files"] == nil {
		t.Errorf("CheckTrees finds %v", broken)
	}
	write("lib/a.js", "2")
	good("after it was put back")
	node, _ := look("node")
	if err := os.WriteFile(node, []byte("another interpreter"), 0o755); err != nil {
		t.Fatal(err)
	}
	bad("after the interpreter changed")
}

// TestInstallNpm runs the real npm against a registry on loopback. The package has
// a script that would leave a trace, a dependency and a development dependency.
func TestInstallNpm(t *testing.T) {
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			if strings.Contains(os.Getenv("PVAULT_REQUIRE"), "npm") {
				t.Fatalf("PVAULT_REQUIRE wants npm: %v", err)
			}
			t.Skipf("SKIPPED, NOT TESTED: installing with the real npm: %v", err)
		}
	}
	trace := filepath.Join(t.TempDir(), "script-ran")
	reg := &fakeRegistry{packages: map[string]map[string]string{
		"@acme/srv": {
			"package.json": fmt.Sprintf(`{"name":"@acme/srv","version":"1.0.0","bin":{"srv":"bin/srv.js"},"dependencies":{"dep":"^1.0.0"},"devDependencies":{"devdep":"1.0.0"},"scripts":{"preinstall":"touch %[1]s","install":"touch %[1]s","postinstall":"touch %[1]s"}}`, trace),
			"bin/srv.js":   "#!/usr/bin/env node\nrequire('dep')",
		},
		"dep": {"package.json": `{"name":"dep","version":"1.0.0"}`, "index.js": "1"},
	}}
	srv := httptest.NewServer(reg)
	defer srv.Close()
	reg.url = srv.URL
	var hosts []string
	jail := jailFunc(func(ctx context.Context, spec InstallSpec) error {
		hosts = spec.Hosts
		cmd := exec.CommandContext(ctx, spec.Argv[0], spec.Argv[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = spec.Dir, spec.Env, spec.Log, spec.Log
		return cmd.Run()
	})
	var log bytes.Buffer
	dest := removable(t, filepath.Join(t.TempDir(), "srv"))
	src := Source{Scheme: "npm", Name: "@acme/srv", Version: "1.0.0"}
	tree, err := Install(t.Context(), InstallConfig{Jail: jail, Registry: srv.URL, Log: &log}, src, "", dest)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if tree.Entry != "node_modules/@acme/srv/bin/srv.js" || tree.Runtime != RuntimeNode {
		t.Errorf("tree %+v", tree)
	}
	if want := strings.TrimPrefix(srv.URL, "http://"); !slices.Equal(hosts, []string{want}) {
		t.Errorf("hosts %q, want %q", hosts, want)
	}
	for name, there := range map[string]bool{
		"node_modules/dep/index.js": true, "node_modules/devdep": false, "node_modules/.package-lock.json": false, "node_modules/.bin": false,
	} {
		if _, err := os.Stat(filepath.Join(dest, name)); (err == nil) != there {
			t.Errorf("%s is there: %v", name, err == nil)
		}
	}
	if _, err := os.Stat(trace); err == nil {
		t.Error("a script of the package ran")
	}
	var v Verifier
	if err := v.Verify(t.Context(), tree, true); err != nil {
		t.Error(err)
	}
}

// A fakeRegistry serves packages of one version as the npm registry does.
type fakeRegistry struct {
	url      string
	packages map[string]map[string]string
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := strings.TrimPrefix(req.URL.Path, "/")
	name, wantTar := strings.CutSuffix(name, "/-/p.tgz")
	files, ok := r.packages[name]
	if !ok {
		http.NotFound(w, req)
		return
	}
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	tw := tar.NewWriter(gz)
	for _, file := range []string{"package.json", "bin/srv.js", "index.js"} {
		if content, ok := files[file]; ok {
			_ = tw.WriteHeader(&tar.Header{Name: "package/" + file, Mode: 0o755, Size: int64(len(content))})
			_, _ = tw.Write([]byte(content))
		}
	}
	_, _ = tw.Close(), gz.Close()
	if wantTar {
		_, _ = w.Write(buf.Bytes())
		return
	}
	var version map[string]any
	_ = json.Unmarshal([]byte(files["package.json"]), &version)
	sum := sha512.Sum512(buf.Bytes())
	version["dist"] = map[string]string{
		"tarball": r.url + "/" + name + "/-/p.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"name": name, "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": version},
	})
}
