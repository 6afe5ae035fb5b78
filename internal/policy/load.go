package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/pilox/vault"
)

// A state is one loaded configuration. It never changes.
type state struct {
	hooks    []hook
	log      *logRules // nil without bundles
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
	if len(cfg.Bundles) == 0 && len(cfg.Hooks) == 0 {
		return &state{}, nil
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
	if r != nil {
		if !slices.ContainsFunc(cfg.Hooks, func(h Hook) bool { return h.Query != "" }) && !r.masksLogs(ctx) {
			return nil, errors.New("bundles are configured but no hook asks them: add policy.hooks with at: tool.call and a query, or remove the bundle")
		}
		if s.log, err = r.logRules(); err != nil {
			return nil, err
		}
	}
	for i, h := range cfg.Hooks {
		if s.hooks[i], err = h.compile(r, client); err != nil {
			return nil, fmt.Errorf("hook %d: %w", i+1, err)
		}
	}
	return s, nil
}

// compile parses and compiles strictly. OPA's errors carry file and line.
func compile(ctx context.Context, files []file) (*rules, error) {
	r := &rules{capabilities: capabilities()}
	modules := map[string]*ast.Module{}
	data := map[string]any{}
	for i := range files {
		f := &files[i]
		switch path.Base(f.path) {
		case manifestFile:
			continue
		case dataFile:
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
		if at, err := storage.NewPathForRef(m.Package.Path); err != nil || !f.permits(strings.Join(at, "/")) {
			return nil, fmt.Errorf("%s: %s is not under the roots of the bundle's manifest, %q", f, m.Package, f.roots)
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
	if at, ok := f.outside(obj, ""); !ok {
		return fmt.Errorf("data.%s is not under the roots of the bundle's manifest, %q", strings.ReplaceAll(at, "/", "."), f.roots)
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
