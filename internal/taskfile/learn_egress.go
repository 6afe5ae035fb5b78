package taskfile

import (
	"path"
	"slices"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// egress makes the entry of one host: the methods and paths that were asked for.
func (g *learner) egress(host string, calls []*Seen) (Egress, bool) {
	k := lessonKey{vault.KindEgress, "", host}
	e := Egress{Host: host}
	secret := false
	for _, s := range calls {
		method, _ := s.Args.At("/method").Str()
		p, _ := s.Args.At("/path").Str()
		if !slices.Contains(e.Methods, method) {
			e.Methods = append(e.Methods, method)
		}
		if !slices.Contains(e.Paths, p) {
			e.Paths = append(e.Paths, p)
		}
		secret = secret || looksSecret(p)
	}
	slices.Sort(e.Methods)
	slices.Sort(e.Paths)
	if secret {
		g.notes[k] = append(g.notes[k], "a value that looks like a secret is not written here")
	}
	listed := len(e.Paths) <= g.List && !secret && !slices.ContainsFunc(calls, (*Seen).suspect) && !slices.ContainsFunc(e.Paths, func(p string) bool { return strings.Contains(p, "*") })
	var base *Egress
	if g.Base != nil {
		for i := range g.Base.Egress {
			if g.Base.Egress[i].Host == host {
				base = &g.Base.Egress[i]
			}
		}
		if base == nil || !passAll(base.rule().Args, g.Engines, calls) {
			base = nil
			g.out.Wider = append(g.out.Wider, host)
			g.notes[k] = append(g.notes[k], "wider than the task file")
		}
	}
	switch {
	case listed:
	case base != nil:
		e.Paths = slices.DeleteFunc(slices.Clone(base.Paths), func(pattern string) bool {
			return !slices.ContainsFunc(e.Paths, func(p string) bool { return matches(pattern, p) })
		})
	default:
		e.Paths = generalPaths(e.Paths)
	}
	for _, p := range e.Paths {
		if pathPattern(p) != nil {
			return e, false
		}
	}
	for _, m := range e.Methods {
		if !slices.Contains(methods, m) {
			return e, false
		}
	}
	if c := pathsConstraint(e.Paths); len(e.Paths) == 0 || c.Regex != nil && len(*c.Regex) > maxConstraint {
		return e, false
	}
	return e, passAll(e.rule().Args, g.Engines, calls)
}

func matches(pattern, p string) bool {
	c := pathsConstraint([]string{pattern})
	a := capability.One(c)
	test, err := a.Compile(nil)
	doc, perr := vault.ParseValue(vault.AppendQuoted(nil, p))
	return err == nil && perr == nil && test(doc.Root())
}

// generalPaths returns patterns for everything in the directory that all paths share,
// or below it if one of them is, with a query if one of them has one.
func generalPaths(paths []string) []string {
	var plain []string
	query, bare := false, false
	for _, p := range paths {
		before, _, asks := strings.Cut(p, "?")
		query, bare = query || asks, bare || !asks
		plain = append(plain, before)
	}
	dir, ok := commonPath(slices.Compact(plain))
	if !ok || strings.Contains(dir, "*") {
		dir = "/"
	}
	for looksSecret(dir) {
		dir = path.Dir(dir)
	}
	below := strings.TrimSuffix(dir, "/") + "/"
	all := below + "*"
	if slices.ContainsFunc(plain, func(p string) bool { return strings.Contains(strings.TrimPrefix(p, below), "/") && p != dir }) {
		all = below + "**"
	}
	patterns := []string{all}
	if slices.Contains(plain, dir) && dir != "/" {
		patterns = append(patterns, dir)
	}
	var out []string
	for _, p := range patterns {
		if bare {
			out = append(out, p)
		}
		if query {
			out = append(out, p+"?**")
		}
	}
	return out
}
