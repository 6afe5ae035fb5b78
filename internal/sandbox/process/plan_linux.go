package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// devices are the ones every guest has; a guest can write to the first.
var devices = [...]string{"/dev/null", "/dev/zero", "/dev/urandom"}

// plan derives the views and the Landlock grants of a guest. The paths in
// ungranted are visible and closed; only a self-test wants that.
func plan(s *Spec, ungranted ...string) (views []view, grants []grant, err error) {
	loader, interp, err := viewFor(s.Argv[0])
	if err != nil {
		return nil, nil, err
	}
	add := func(m Mount, writable bool) error {
		st, err := os.Stat(m.Host)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target(), err)
		}
		if !st.IsDir() && !st.Mode().IsRegular() {
			return fmt.Errorf("mount %s: neither a file nor a directory", m.Target())
		}
		if slices.ContainsFunc(views, func(v view) bool { return v.Guest == m.Target() }) {
			return fmt.Errorf("mount %s: shown twice", m.Target())
		}
		views = append(views, view{Host: m.Host, Guest: m.Target(), Writable: writable, IsDir: st.IsDir()})
		if !slices.Contains(ungranted, m.Target()) {
			grants = append(grants, grant{Path: m.Target(), Write: writable})
		}
		return nil
	}
	for _, m := range s.ReadOnly {
		if err := add(m, false); err != nil {
			return nil, nil, err
		}
	}
	for _, m := range s.ReadWrite {
		if err := add(m, true); err != nil {
			return nil, nil, err
		}
	}
	for _, m := range loader {
		if covered(m, views) {
			continue
		}
		if err := add(m, false); err != nil {
			return nil, nil, err
		}
	}
	for _, d := range devices {
		views = append(views, view{Host: d, Guest: d, Device: true})
		grants = append(grants, grant{Path: d, Write: d == devices[0]})
	}
	grants = append(grants, grant{Path: "/tmp", Write: true}, grant{Path: s.Argv[0], Exec: true})
	if interp != "" {
		grants = append(grants, grant{Path: interp, Exec: true})
	}
	for _, p := range s.Exec {
		grants = append(grants, grant{Path: p, Exec: true})
	}
	return views, grants, nil
}

// covered reports whether m's file already appears at its place through another
// view.
func covered(m Mount, views []view) bool {
	for _, v := range views {
		rel, ok := strings.CutPrefix(m.Target(), v.Guest)
		if !ok || rel != "" && rel[0] != '/' {
			continue
		}
		a, err := os.Stat(m.Host)
		if err != nil {
			return false
		}
		b, err := os.Lstat(filepath.Join(v.Host, rel))
		return err == nil && os.SameFile(a, b)
	}
	return false
}

// environ returns the environment of s as the kernel wants it, sorted.
func environ(s *Spec) []string {
	env := make([]string, 0, len(s.Env))
	for k, v := range s.Env {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}
