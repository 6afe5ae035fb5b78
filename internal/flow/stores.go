package flow

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pilox/vault"
)

// Limits on what is remembered of writes. At a limit the label goes to the next
// larger thing: to the whole server, or to all servers.
const (
	maxServers   = 4096
	maxResources = 1024 // per server
)

// A stores remembers under which scope something was written to a server, so
// that reading it back, by whatever agent in whatever session, brings the scope
// with it. The key is the declared resource (a path argument, a resource URI),
// else the whole server. The zero stores is ready for use.
type stores struct {
	mu      sync.Mutex // guards everything below
	servers map[string]*store
	rest    *vault.Label // what was written when there was no more room; joins every read
}

type store struct {
	all       vault.Label            // join of everything written
	whole     *vault.Label           // written without saying where
	resources map[string]vault.Label // written to a resource
}

// storeOf names the server of a call. Kinds without a server are their own.
func storeOf(f *vault.Facts) string {
	if !f.Call.Target.Server.IsZero() {
		return f.Call.Target.Server.String()
	}
	return string(f.Call.Kind) + ":" + cmp.Or(f.Call.Server, f.Call.Target.Name)
}

// resourcesOf returns the declared resources of a call. known is false if some
// path has no form that can be compared: then the call is about the whole server.
func resourcesOf(f *vault.Facts) (names []string, known bool) {
	if f.Call.Kind == vault.KindResource {
		return []string{f.Call.Target.Name}, true
	}
	if len(f.Tool.Roles) == 0 {
		return nil, false
	}
	for p, v := range f.Call.Args.Root().Walk() {
		if r, _ := roleOf(f.Tool, p); r != vault.RolePath {
			continue
		}
		s, _ := v.Str()
		name, ok := normalPath(s)
		if !ok {
			return nil, false
		}
		names = append(names, name)
	}
	return names, len(names) > 0
}

// write notes that a call which may run writes under the scope of its agent, and
// that what it copies or moves keeps its label. It is noted before the call
// runs: a reader must not come in between. A call that is refused later leaves a
// label that is too strict for one resource.
func (s *stores) write(f *vault.Facts) {
	if f.Tool.ReadOnly || f.Call.Kind == vault.KindPrompt || f.Call.Kind == vault.KindResource {
		return
	}
	clean := f.Scope.Integrity == vault.FromUser && f.Scope.Readers.IsPublic()
	if clean && s.empty() {
		return
	}
	names, known := resourcesOf(f)
	name := storeOf(f)
	l := f.Scope
	if known {
		l = l.Join(s.read(f))
	}
	if l.Integrity == vault.FromUser && l.Readers.IsPublic() {
		return
	}
	if !known {
		s.join(name, "", l)
		return
	}
	for _, n := range names {
		s.join(name, n, l)
	}
}

func (s *stores) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.servers) == 0 && s.rest == nil
}

// join worsens the label of a resource, or of a whole server.
func (s *stores) join(server, resource string, l vault.Label) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.servers[server]
	if st == nil {
		if len(s.servers) >= maxServers {
			worsen(&s.rest, l)
			return
		}
		if s.servers == nil {
			s.servers = map[string]*store{}
		}
		st = &store{all: vault.Clean(), resources: map[string]vault.Label{}}
		s.servers[server] = st
	}
	st.all = st.all.Join(l)
	old, ok := st.resources[resource]
	switch {
	case resource == "", !ok && len(st.resources) >= maxResources:
		worsen(&st.whole, l)
	case ok:
		st.resources[resource] = old.Join(l)
	default:
		st.resources[resource] = l
	}
}

func worsen(to **vault.Label, l vault.Label) {
	if *to != nil {
		l = (*to).Join(l)
	}
	*to = &l
}

// read returns the label of what was written to what the call reads.
func (s *stores) read(f *vault.Facts) vault.Label {
	l := vault.Clean()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest != nil {
		l = l.Join(*s.rest)
	}
	st := s.servers[storeOf(f)]
	if st == nil {
		return l
	}
	names, known := resourcesOf(f)
	if !known {
		return l.Join(st.all)
	}
	if st.whole != nil {
		l = l.Join(*st.whole)
	}
	for written, rl := range st.resources {
		if slices.ContainsFunc(names, func(n string) bool { return overlap(n, written) }) {
			l = l.Join(rl)
		}
	}
	return l
}

// overlap reports whether two paths are the same or one is inside the other.
// A relative path says nothing about where it starts, so it is compared from the
// end: a.txt may be the a.txt of any directory.
func overlap(a, b string) bool {
	if a == b || a == "." || b == "." {
		return true
	}
	if len(a) > len(b) {
		a, b = b, a
	}
	inside := strings.HasPrefix(b, strings.TrimSuffix(a, "/")+"/")
	if strings.HasPrefix(a, "/") && strings.HasPrefix(b, "/") {
		return inside
	}
	relative, other := a, b
	if strings.HasPrefix(a, "/") {
		relative, other = b, a
	}
	return inside || strings.Contains("/"+other+"/", "/"+lastElement(relative)+"/") || strings.Contains("/"+relative+"/", "/"+lastElement(other)+"/")
}

func lastElement(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

func (s *stores) export() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		st := s.servers[name]
		if st.whole != nil {
			out = append(out, Entry{Server: name, Label: *st.whole})
		}
		for _, r := range slices.Sorted(maps.Keys(st.resources)) {
			out = append(out, Entry{Server: name, Resource: r, Label: st.resources[r]})
		}
	}
	return out
}
