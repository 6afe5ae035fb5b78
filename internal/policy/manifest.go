package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/pilox/vault"
)

// A manifest is what .manifest says of a bundle (OPA, "Bundle File Format").
type manifest struct {
	Revision         string          `json:"revision"`
	Roots            *[]string       `json:"roots"`
	WASM             json.RawMessage `json:"wasm"`
	RegoVersion      *int            `json:"rego_version"`
	FileRegoVersions map[string]int  `json:"file_rego_versions"`
	Metadata         json.RawMessage `json:"metadata"`
}

var errRegoVersion = errors.New("it has rules in version 0 of Rego, which would mean something else here: build it with version 1")

// readManifest holds files against the manifest among them, if there is one. What it
// says and nobody here can keep is refused.
func readManifest(files []file) error {
	i := slices.IndexFunc(files, func(f file) bool { return f.path == manifestFile })
	if i < 0 {
		return nil
	}
	m, err := parseManifest(files[i].data)
	if err != nil {
		return fmt.Errorf("%s: %w", manifestFile, err)
	}
	if m.Roots != nil {
		for i := range files {
			files[i].roots = *m.Roots
		}
	}
	return nil
}

func parseManifest(raw []byte) (*manifest, error) {
	doc, err := vault.ParseValue(raw) // a member twice could be read in two ways
	if err != nil {
		return nil, err
	}
	for name := range doc.Root().All() {
		if !slices.Contains([]string{"revision", "roots", "wasm", "rego_version", "file_rego_versions", "metadata"}, name) {
			return nil, fmt.Errorf("unknown member %q", name)
		}
	}
	m := new(manifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if m.RegoVersion != nil && *m.RegoVersion != 1 {
		return nil, errRegoVersion
	}
	for _, v := range m.FileRegoVersions {
		if v != 1 {
			return nil, errRegoVersion
		}
	}
	if w := string(m.WASM); w != "" && w != "null" && w != "[]" {
		return nil, errors.New("compiled rules are not supported: use a bundle with its sources")
	}
	if m.Roots != nil {
		roots := *m.Roots
		if len(roots) > maxBundleFiles {
			return nil, fmt.Errorf("%d roots, at most %d", len(roots), maxBundleFiles)
		}
		for i, r := range roots {
			roots[i] = strings.Trim(r, "/")
			for _, earlier := range roots[:i] {
				if opabundle.RootPathsOverlap(earlier, roots[i]) {
					return nil, fmt.Errorf("roots %q and %q overlap", earlier, roots[i])
				}
			}
		}
	}
	return m, nil
}

// permits reports whether the bundle may define what is at a path of data.
func (f *file) permits(at string) bool {
	return f.roots == nil || opabundle.RootPathsContain(f.roots, at)
}

// outside finds a member of v that the bundle may not define. at is where v stands.
func (f *file) outside(v any, at string) (string, bool) {
	if f.permits(at) {
		return "", true
	}
	obj, ok := v.(map[string]any)
	if !ok || !slices.ContainsFunc(f.roots, func(root string) bool { return opabundle.RootPathsContain([]string{at}, root) }) {
		return at, false
	}
	for k, child := range obj {
		if where, ok := f.outside(child, strings.TrimPrefix(at+"/"+k, "/")); !ok {
			return where, false
		}
	}
	return "", true
}
