package policy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/pilox/vault"
)

// Limits on one bundle. A policy is read by people; these are far above what
// anyone reviews and keep a wrong directory (a home, a checkout) from being read.
const (
	maxBundleFiles = 1000
	maxBundleBytes = 16 << 20
)

// A state is one loaded configuration. It never changes.
type state struct {
	hooks    []hook
	revision vault.Digest
}

// rules are the compiled modules of all bundles together.
type rules struct {
	compiler     *ast.Compiler
	store        storage.Store
	txn          storage.Transaction // reads the store, which nobody writes to
	capabilities *ast.Capabilities
	needs        needs
	parsed       map[string]*ast.Module
}

func load(ctx context.Context, cfg *Config, client *http.Client) (*state, error) {
	switch {
	case len(cfg.Bundles) == 0 && len(cfg.Hooks) == 0:
		return &state{}, nil
	case !slices.ContainsFunc(cfg.Hooks, func(h Hook) bool { return h.Query != "" }) && len(cfg.Bundles) > 0:
		return nil, errors.New("bundles are configured but no hook asks them: add policy.hooks with at: tool.call and a query")
	}
	var files []file
	for _, b := range cfg.Bundles {
		fs, err := b.read()
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %w", b.name(), err)
		}
		files = append(files, fs...)
	}
	var r *rules // nil without bundles: CEL and HTTP hooks need none
	var err error
	if len(files) > 0 {
		if r, err = compile(ctx, files); err != nil {
			return nil, err
		}
	}
	s := &state{hooks: make([]hook, len(cfg.Hooks)), revision: revision(cfg, files)}
	for i, h := range cfg.Hooks {
		if s.hooks[i], err = h.compile(r, client); err != nil {
			return nil, fmt.Errorf("hook %d: %w", i+1, err)
		}
	}
	return s, nil
}

// A file is one file of a bundle.
type file struct {
	bundle string
	path   string // inside the bundle, slash separated
	data   []byte
}

func (f *file) String() string { return path.Join(f.bundle, f.path) }

func (b Bundle) name() string { return cmp.Or(b.Name, b.Dir) }

// read returns the files of the bundle that count. Hidden files are left out, and
// test files (*_test.rego) unless they are asked for; anything else with a meaning in
// other bundle formats is refused, because leaving it out would leave out rules.
func (b Bundle) read() ([]file, error) { return b.files(false) }

func (b Bundle) files(tests bool) ([]file, error) {
	switch {
	case b.Dir == "":
		return nil, errors.New("dir is missing")
	case b.Key != nil && b.Unsigned:
		return nil, errors.New("signing and unsigned: true contradict each other: keep one")
	case b.Key == nil && !b.Unsigned:
		return nil, errors.New("nobody vouches for the directory: name the key that signs it (signing: {keyid: …}), or say unsigned: true to accept it as it stands")
	}
	root, err := os.OpenRoot(b.Dir) // a link that leads out of the bundle does not open
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files []file
	size := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if name == signaturesFile && b.Unsigned && !b.ignoreSignature {
			return errors.New(".signatures.json: the bundle is signed: name the key that signs it (signing: {keyid: …}) instead of unsigned: true")
		}
		if name != "." && strings.HasPrefix(base, ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 {
			// A link to a file counts as the file. One to a directory is not walked, and
			// what cannot be looked at could be one.
			to, err := root.Stat(name)
			if err != nil {
				return err
			}
			if to.IsDir() {
				return fmt.Errorf("%s: a link to a directory would leave out what is in it: put the directory here", name)
			}
		}
		switch {
		case d.IsDir(), strings.HasSuffix(base, "_test.rego") && !tests:
			return nil
		case strings.HasSuffix(base, ".rego"), base == "data.json":
		case base == "patch.json":
			return fmt.Errorf("%s: delta bundles are not supported: use a whole one", name)
		case base == "policy.wasm":
			return fmt.Errorf("%s: compiled rules are not supported: use a bundle with its sources", name)
		case base == "data.yaml", base == "data.yml":
			return fmt.Errorf("%s: data is read from data.json only: convert it", name)
		default:
			return nil
		}
		if len(files) == maxBundleFiles {
			return fmt.Errorf("more than %d files: is %s really a policy directory?", maxBundleFiles, b.Dir)
		}
		data, err := readFile(root, name, maxBundleBytes-size)
		if err != nil {
			return err
		}
		size += len(data)
		files = append(files, file{b.name(), name, data})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(files, func(f file) bool { return strings.HasSuffix(f.path, ".rego") }) {
		return nil, fmt.Errorf("no *.rego file in %s", b.Dir)
	}
	if b.Key != nil {
		if err := verify(root, files, b.Key); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func readFile(root *os.Root, name string, most int) ([]byte, error) {
	// Looked at before it is opened: opening a pipe would wait for a writer.
	if fi, err := root.Stat(name); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > most {
		return nil, fmt.Errorf("%s: the bundle is larger than %d bytes", name, maxBundleBytes)
	}
	return data, nil
}

// compile parses and compiles strictly. OPA's errors carry file and line.
func compile(ctx context.Context, files []file) (*rules, error) {
	r := &rules{capabilities: capabilities()}
	modules := map[string]*ast.Module{}
	data := map[string]any{}
	for i := range files {
		f := &files[i]
		if path.Base(f.path) == "data.json" {
			if err := addData(data, f); err != nil {
				return nil, fmt.Errorf("%s: %w", f, err)
			}
			continue
		}
		m, err := ast.ParseModuleWithOpts(f.String(), string(f.data), ast.ParserOptions{
			RegoVersion:  ast.RegoV1,
			Capabilities: r.capabilities,
		})
		if err != nil {
			return nil, regoError(err)
		}
		if m == nil {
			return nil, fmt.Errorf("%s: empty file: give it a package or remove it", f)
		}
		if _, twice := modules[f.String()]; twice {
			return nil, fmt.Errorf("%s: two bundles have the same name: give them different ones", f)
		}
		modules[f.String()] = m
	}
	r.parsed = make(map[string]*ast.Module, len(modules))
	for name, m := range modules {
		r.parsed[name] = m.Copy()
	}
	r.needs = needsOf(modules) // before the compiler rewrites the modules
	// Data is turned into OPA's terms once, here, and not at every evaluation.
	r.store = inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true))
	var err error
	if r.txn, err = r.store.NewTransaction(ctx); err != nil {
		return nil, err
	}
	return r, storage.Txn(ctx, r.store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		r.compiler = ast.NewCompiler().
			WithCapabilities(r.capabilities).
			WithStrict(true).
			WithPathConflictsCheck(storage.NonEmpty(ctx, r.store, txn))
		if r.compiler.Compile(modules); r.compiler.Failed() {
			return regoError(r.compiler.Errors)
		}
		return nil
	})
}

// regoError adds to OPA's message what to do about the ones people meet first.
func regoError(err error) error {
	s := err.Error()
	if slices.ContainsFunc(unbounded, func(name string) bool { return strings.Contains(s, "undefined function "+name) }) {
		return fmt.Errorf("%w: no budget can stop it, so it does not exist here: write the rule without it", err)
	}
	if strings.Contains(s, "undefined function") {
		return fmt.Errorf("%w: rules are pure here: http.send, net.*, rand.*, opa.runtime and time.now_ns do not exist; the time of the call is input.time", err)
	}
	return fmt.Errorf("%w: fix the file and start again", err)
}

// addData puts the object of a data.json where its directory says.
func addData(data map[string]any, f *file) error {
	dec := json.NewDecoder(bytes.NewReader(f.data))
	dec.UseNumber()
	var obj map[string]any
	if err := dec.Decode(&obj); err != nil {
		at := dec.InputOffset()
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = e.Offset
		}
		line := 1 + bytes.Count(f.data[:min(int(at), len(f.data))], []byte{'\n'})
		return fmt.Errorf("line %d: %w: data.json must hold one object", line, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("data after the object: data.json must hold one object")
	}
	if dir := path.Dir(f.path); dir != "." {
		parts := strings.Split(dir, "/")
		for _, p := range slices.Backward(parts) {
			obj = map[string]any{p: obj}
		}
	}
	return merge(data, obj, "data")
}

func merge(into, from map[string]any, at string) error {
	for k, v := range from {
		old, ok := into[k]
		if !ok {
			into[k] = v
			continue
		}
		a, ok1 := old.(map[string]any)
		b, ok2 := v.(map[string]any)
		if !ok1 || !ok2 {
			return fmt.Errorf("%s.%s is set twice: remove one", at, k)
		}
		if err := merge(a, b, at+"."+k); err != nil {
			return err
		}
	}
	return nil
}

// unbounded are the built-ins that never ask their budget and whose work or memory
// grows faster than what they are given: a number of bits to shift by, all paths of a
// graph, a product without rounding, a patch that copies a document into itself.
var unbounded = []string{"bits.lsh", "graph.reachable_paths", "product", "json.patch"}

// capabilities are OPA's without everything that makes a rule depend on
// something other than its input and data, or reach out of the process, and without
// what neither steps nor a deadline can stop.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		if b.Nondeterministic || slices.Contains(unbounded, b.Name) {
			return true
		}
		for _, prefix := range []string{
			"http.", "net.", "rand.", "opa.runtime", "time.now_ns", "uuid.rfc4122",
			"io.jwt.decode_verify", "io.jwt.encode_", // read the clock, use randomness
			"crypto.x509.",          // parse_and_verify reads the clock and the host's roots
			"json.match_schema",     // a $ref can name a remote schema
			"json.verify_schema",    //
			"providers.",            // cloud credentials have no place in a rule
			"strings.render_templa", // text/template loops without asking the budget
			"rego.parse_module",     //
			"trace", "opa.",         //
		} {
			if strings.HasPrefix(b.Name, prefix) {
				return true
			}
		}
		return false
	})
	c.AllowNet = []string{} // empty, not nil: no schema may be fetched
	return c
}

// rule returns the reference of a query after checking that some rule has it.
func (r *rules) rule(query string) (ast.Ref, error) {
	ref, err := ast.ParseRef(query)
	if err != nil || !ref.IsGround() || len(ref) < 3 || !ref[0].Equal(ast.DefaultRootDocument) {
		return nil, fmt.Errorf("query: %q: want a rule by its whole name, as in data.vault.toolcall.decision", query)
	}
	if len(r.compiler.GetRulesExact(ref)) == 0 {
		return nil, fmt.Errorf("query: no bundle defines %s: name a rule of a loaded package", query)
	}
	return ref, nil
}

// revision digests the files and the wiring.
func revision(cfg *Config, files []file) vault.Digest {
	var parts [][]byte
	for _, f := range files {
		parts = append(parts, []byte(f.bundle), []byte(f.path), f.data)
	}
	for _, h := range cfg.Hooks {
		parts = append(parts, []byte("hook"), []byte(strconv.Quote(h.Query)+" "+string(h.Mode)+" "+h.Match.Risk),
			fmt.Append(nil, h.Match.Kinds, h.Deadline, h.Steps), []byte(h.At), []byte(h.Engine), []byte(h.Expr), []byte(h.URL))
		for _, g := range h.Match.Tool {
			parts = append(parts, []byte(g))
		}
	}
	parts = append(parts, []byte(cfg.Gateway))
	return vault.Hash("policy", parts...)
}
