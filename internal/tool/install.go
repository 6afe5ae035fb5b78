package tool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Jail runs an installer. The network it gives is the way to Hosts and nothing
// else, and what runs in it sees no file beyond those listed and the system's
// libraries.
type Jail interface {
	// Run runs spec to its end. An exit code other than 0 is an error. Nothing of
	// it runs any more when Run returns, also when ctx was cancelled.
	Run(ctx context.Context, spec InstallSpec) error
}

// An InstallSpec is one command in an install sandbox.
type InstallSpec struct {
	Argv      []string  // absolute program first
	Dir       string    // working directory, one of ReadWrite
	ReadOnly  []string  // absolute paths
	ReadWrite []string  // absolute paths
	Env       []string  // complete; the jail adds the address of its proxy (https_proxy, http_proxy)
	Hosts     []string  // host:port of the registry
	Log       io.Writer // standard output and error
}

// InstallConfig says how to install.
type InstallConfig struct {
	Jail  Jail                              // for npm; nil refuses npm sources
	Look  func(file string) (string, error) // finds node and npm; nil means exec.LookPath
	Log   io.Writer                         // what the installer prints; nil discards
	Limit time.Duration                     // for one installation; 0 means 10 minutes
	// Registry is the URL of the npm registry; "" asks npm for its configuration.
	Registry string
}

// maxInstallTime is generous for a slow registry and ends one that hangs.
const maxInstallTime = 10 * time.Minute

// Install puts the code of a source into dest, which must not exist, and returns
// the tree: read-only, with its digest and what starts it. entry chooses between
// several programs, see [Registration].
//
// An npm source is installed by npm in cfg.Jail, without running any script of
// any package. A path source is copied. Nothing of what is installed is executed.
// dest is absent after an error.
func Install(ctx context.Context, cfg InstallConfig, src Source, entry, dest string) (t Tree, err error) {
	if err := src.Check(); err != nil {
		return Tree{}, err
	}
	if !filepath.IsAbs(dest) {
		return Tree{}, fmt.Errorf("install %s: destination %q is not absolute", src, dest)
	}
	if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
		return Tree{}, fmt.Errorf("install %s: %s: %w", src, dest, fs.ErrExist)
	}
	if cfg.Look == nil {
		cfg.Look = exec.LookPath
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.Limit == 0 {
		cfg.Limit = maxInstallTime
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Limit)
	defer cancel()
	work, err := os.MkdirTemp(filepath.Dir(dest), ".install-*")
	if err != nil {
		return Tree{}, fmt.Errorf("install %s: %w", src, err)
	}
	defer func() { err = errors.Join(err, RemoveTree(work)) }()
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return Tree{}, fmt.Errorf("install %s: %w", src, err)
	}
	pkg := "."
	if src.Scheme == "npm" {
		pkg = path.Join("node_modules", src.Name)
		err = cfg.npm(ctx, src, work, tree)
	} else {
		err = copyTree(ctx, src.Dir, tree)
	}
	if err != nil {
		return Tree{}, fmt.Errorf("install %s: %w", src, err)
	}
	if t, err = cfg.finish(ctx, src, pkg, entry, tree); err != nil {
		return Tree{}, fmt.Errorf("install %s: %w", src, err)
	}
	t.Dir = dest
	// A directory that moves to another parent must be writable, for everyone but root.
	if err := errors.Join(os.Chmod(tree, 0o700), os.Rename(tree, dest)); err != nil {
		return Tree{}, fmt.Errorf("install %s: %w", src, err)
	}
	if err := os.Chmod(dest, 0o555); err != nil {
		return Tree{}, errors.Join(fmt.Errorf("install %s: %w", src, err), RemoveTree(dest))
	}
	return t, nil
}

// npm lets npm fill tree.
func (cfg *InstallConfig) npm(ctx context.Context, src Source, work, tree string) error {
	if cfg.Jail == nil {
		return errors.New("no install sandbox on this host")
	}
	node, err := cfg.program("node")
	if err != nil {
		return err
	}
	npm, err := cfg.program("npm")
	if err != nil {
		return err
	}
	home := filepath.Join(work, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	registry, err := cfg.registry(ctx, node, npm, home)
	if err != nil {
		return err
	}
	// Without a package.json here npm would look for a project further up.
	if err := os.WriteFile(filepath.Join(tree, "package.json"), []byte("{\"private\":true}\n"), 0o600); err != nil {
		return err
	}
	spec := InstallSpec{
		Argv: []string{
			node, npm, "install", "--prefix", tree, "--registry", registry.String(),
			"--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", "--install-links",
			"--no-bin-links", "--no-package-lock", "--no-update-notifier", "--no-progress",
			"--", src.Name + "@" + src.Version,
		},
		Dir:       tree,
		ReadOnly:  []string{node, packageRoot(npm)},
		ReadWrite: []string{work},
		Env: []string{
			"HOME=" + home, "TMPDIR=" + home, "PATH=/usr/bin:/bin",
			"npm_config_cache=" + filepath.Join(home, "cache"),
			"npm_config_userconfig=" + filepath.Join(home, "npmrc"),
			"npm_config_globalconfig=" + filepath.Join(home, "globalrc"),
		},
		Hosts: []string{hostPort(registry)},
		Log:   cfg.Log,
	}
	if ca := os.Getenv("NODE_EXTRA_CA_CERTS"); filepath.IsAbs(ca) {
		// A host behind an inspecting proxy has its authority here.
		spec.Env = append(spec.Env, "NODE_EXTRA_CA_CERTS="+ca)
		spec.ReadOnly = append(spec.ReadOnly, ca)
	}
	if err := cfg.Jail.Run(ctx, spec); err != nil {
		return fmt.Errorf("npm install: %w", err)
	}
	// It names the URL each package came from, so the digest would depend on the
	// mirror and not on the code.
	err = os.Remove(filepath.Join(tree, "node_modules", ".package-lock.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkVersion(filepath.Join(tree, "node_modules", filepath.FromSlash(src.Name)), src)
}

// program returns the real path of a program: what is pinned and shown to the jail
// is the file and not a link to it.
func (cfg *InstallConfig) program(name string) (string, error) {
	file, err := cfg.Look(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return filepath.Abs(file)
}

// packageRoot returns the directory of npm itself from the path of its program,
// .../npm/bin/npm-cli.js.
func packageRoot(npm string) string { return filepath.Dir(filepath.Dir(npm)) }

// registry asks npm which registry it is configured for. It runs in an empty
// directory, so that no project's configuration counts, and reads files only.
func (cfg *InstallConfig) registry(ctx context.Context, node, npm, empty string) (*url.URL, error) {
	text := cfg.Registry
	if text == "" {
		cmd := exec.CommandContext(ctx, node, npm, "config", "get", "registry")
		cmd.Dir = empty
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("npm config get registry: %w", err)
		}
		text = strings.TrimSpace(string(out))
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("npm registry: want an http or https URL")
	}
	if u.User != nil {
		return nil, errors.New("npm registry: credentials do not belong in a URL")
	}
	return u, nil
}

func hostPort(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Host
	case u.Scheme == "http":
		return u.Host + ":80"
	}
	return u.Host + ":443"
}

// A manifest is what is read of a package.json.
type manifest struct {
	Name    string
	Version string
	Bin     json.RawMessage
	Main    string
}

// maxManifest bounds a package.json; the largest published have some 100 KiB.
const maxManifest = 1 << 20

func readManifest(root *os.Root, pkg string) (manifest, error) {
	var m manifest
	r, err := root.Open(path.Join(pkg, "package.json"))
	if err != nil {
		return m, fmt.Errorf("package.json: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return m, fmt.Errorf("package.json: %w", err)
	}
	if len(b) > maxManifest {
		return m, fmt.Errorf("package.json: larger than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("package.json: %w", err)
	}
	return m, nil
}

// checkVersion holds what arrived against what was asked for.
func checkVersion(dir string, src Source) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	m, err := readManifest(root, ".")
	if err != nil {
		return err
	}
	want, _, _ := strings.Cut(src.Version, "+") // registries drop build metadata
	got, _, _ := strings.Cut(m.Version, "+")
	if m.Name != src.Name || got != want {
		return errors.New("the package that arrived has another name or version")
	}
	return nil
}

// finish finds the entry of a filled tree, seals it and takes its digest.
func (cfg *InstallConfig) finish(ctx context.Context, src Source, pkg, entry, dir string) (Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Tree{}, err
	}
	defer root.Close()
	files, err := readTree(ctx, root)
	if err != nil {
		return Tree{}, err
	}
	if err := seal(root, files); err != nil {
		return Tree{}, err
	}
	t := Tree{Files: len(files)}
	for _, f := range files {
		t.Bytes += f.stat.Size
	}
	if t.Entry, err = findEntry(root, src, pkg, entry); err != nil {
		return Tree{}, err
	}
	if t.Runtime, err = runtimeOf(root, t.Entry); err != nil {
		return Tree{}, err
	}
	if t.Runtime == RuntimeNode {
		if t.Interpreter, err = cfg.program("node"); err != nil {
			return Tree{}, err
		}
		if t.InterpreterDigest, err = digestProgram(t.Interpreter); err != nil {
			return Tree{}, err
		}
	}
	if files, err = readTree(ctx, root); err != nil { // sizes and modes as sealed
		return Tree{}, err
	}
	if t.Digest, err = digestFiles(ctx, root, files); err != nil {
		return Tree{}, err
	}
	return t, nil
}

// findEntry returns the file to start. The choice is a name of package.json's bin,
// or a file of a path source; without one there must be a single bin.
func findEntry(root *os.Root, src Source, pkg, choice string) (string, error) {
	if src.Scheme == "path" && choice != "" && filepath.IsLocal(choice) {
		if info, err := root.Stat(choice); err == nil && info.Mode().IsRegular() {
			return path.Clean(choice), nil
		}
	}
	m, err := readManifest(root, pkg)
	if err != nil {
		return "", err
	}
	bins := map[string]string{}
	var single string
	if err := json.Unmarshal(m.Bin, &single); err == nil && single != "" {
		bins[path.Base(m.Name)] = single
	} else if err := json.Unmarshal(m.Bin, &bins); err != nil || len(bins) == 0 {
		return "", errors.New("package.json names no program (bin): say which file to start with entry")
	}
	names := slices.Sorted(maps.Keys(bins))
	if choice == "" {
		if len(names) > 1 {
			return "", fmt.Errorf("the package has several programs, choose one with entry: %q", names)
		}
		choice = names[0]
	}
	file, ok := bins[choice]
	if !ok {
		return "", fmt.Errorf("the package has no program %q; it has %q", choice, names)
	}
	file = strings.TrimPrefix(file, "./")
	if !filepath.IsLocal(file) {
		return "", &TreeError{file, "entry lies outside the package"}
	}
	return path.Join(pkg, file), nil
}

// copyTree copies a directory of the host into dst, an empty directory. Links are
// copied as links, and the copy is checked like any tree.
func copyTree(ctx context.Context, from, dst string) error {
	in, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer in.Close()
	files, err := readTree(ctx, in)
	if err != nil {
		return err
	}
	out, err := os.OpenRoot(dst)
	if err != nil {
		return err
	}
	defer out.Close()
	for _, f := range files { // sorted: a directory comes before what is in it
		if err := ctx.Err(); err != nil {
			return err
		}
		switch f.kind {
		case "dir":
			err = out.Mkdir(f.path, 0o700)
		case "link":
			err = out.Symlink(f.target, f.path)
		default:
			err = copyFile(in, out, f)
		}
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
	}
	return nil
}

func copyFile(in, out *os.Root, f treeFile) (err error) {
	r, err := in.Open(f.path)
	if err != nil {
		return err
	}
	defer r.Close()
	mode := fs.FileMode(0o600)
	if f.exec {
		mode = 0o700
	}
	w, err := out.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	n, err := io.Copy(w, io.LimitReader(r, f.stat.Size+1))
	if err != nil {
		return err
	}
	if n != f.stat.Size {
		return &TreeError{f.path, "changed while it was read"}
	}
	return nil
}
