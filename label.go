package vault

import (
	"fmt"
	"slices"
)

// Integrity says how far data may be trusted to choose what happens, least
// first. The zero Integrity is the open web.
type Integrity uint8

// The levels of integrity.
const (
	FromWeb          Integrity = iota // anybody may have written it
	FromTool                          // a tool computed it from inputs of unknown origin
	FromOrganisation                  // written inside the organisation
	FromUser                          // the principal's own words
)

func (i Integrity) String() string {
	switch i {
	case FromTool:
		return "tool"
	case FromOrganisation:
		return "org"
	case FromUser:
		return "user"
	case FromWeb:
	}
	return "web"
}

// ParseIntegrity parses web, tool, org or user.
func ParseIntegrity(s string) (Integrity, error) {
	for i := FromWeb; i <= FromUser; i++ {
		if i.String() == s {
			return i, nil
		}
	}
	return FromWeb, fmt.Errorf("unknown integrity %q: want web, tool, org or user", s)
}

// Readers is the set of those who may read some data. The zero Readers is
// nobody. Names are compartments: finance, crm.
type Readers struct {
	public bool
	names  []string // sorted, unique; empty if public
	held   []string // compartments of everything that was joined; sorted, unique
}

// maxHeld bounds the compartments that are told apart. With one more, nobody is
// cleared for the data any more.
const (
	maxHeld  = 256
	moreHeld = "\x00more" // no compartment's name
)

// Public lets everybody read.
func Public() Readers { return Readers{public: true} }

// Only lets the named compartments read.
func Only(names ...string) Readers {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	return Readers{names: names, held: names}
}

// With returns r as data that also came from the named compartments.
func (r Readers) With(held ...string) Readers {
	if len(held) == 0 {
		return r
	}
	all := slices.Concat(r.held, held)
	slices.Sort(all)
	if all = slices.Compact(all); len(all) > maxHeld {
		all = []string{moreHeld}
	}
	r.held = all
	return r
}

// Held returns the sorted compartments that the data came from. Where they have no
// reader in common, Names is nil, and this is not.
func (r Readers) Held() []string { return slices.Clone(r.held) }

// ClearedFor reports whether somebody who may read the named compartments may see the
// data. Data of no compartment is private to its principal, for whom all tasks work.
// Of several compartments without a common reader it wants all.
func (r Readers) ClearedFor(mayRead []string) bool {
	may := func(n string) bool { return slices.Contains(mayRead, n) }
	if len(r.names) > 0 {
		return slices.ContainsFunc(r.names, may)
	}
	return !slices.ContainsFunc(r.held, func(n string) bool { return !may(n) })
}

// IsPublic reports whether everybody may read.
func (r Readers) IsPublic() bool { return r.public }

// Names returns the sorted compartments that may read; nil if public or nobody.
func (r Readers) Names() []string { return slices.Clone(r.names) }

// Join returns those who may read both: the intersection.
func (r Readers) Join(s Readers) Readers {
	switch {
	case r.public:
		return s
	case s.public:
		return r
	}
	var both []string
	for _, n := range r.names {
		if _, ok := slices.BinarySearch(s.names, n); ok {
			both = append(both, n)
		}
	}
	return Readers{names: both, held: r.held}.With(s.held...)
}

// Covers reports whether everyone in readers is in r: data that readers may read
// may be shown to an audience r only if r ⊆ readers.
func (r Readers) Covers(readers Readers) bool {
	if r.public {
		return true
	}
	if readers.public {
		return false
	}
	for _, n := range readers.names {
		if _, ok := slices.BinarySearch(r.names, n); !ok {
			return false
		}
	}
	return true
}

func (r Readers) String() string {
	switch {
	case r.public:
		return "public"
	case len(r.names) == 0:
		return "nobody"
	}
	return fmt.Sprint(r.names)
}

// A Source says where data came from: a server's tool, a resource, a host, a peer.
type Source struct {
	Kind   Kind
	Server string
	Name   string
}

func (s Source) String() string {
	if s.Server == "" { // a host, a peer
		return string(s.Kind) + ":" + s.Name
	}
	return string(s.Kind) + ":" + s.Server + "/" + s.Name
}

// maxSources bounds the sources a label keeps; more than these add nothing a
// person would read, and a label must not grow with the length of a task.
const maxSources = 32

// A Label says what data is worth: who can have influenced it, who may read it,
// where it came from. The zero Label is the worst: from the web, for nobody.
type Label struct {
	Integrity Integrity
	Readers   Readers
	Sources   []Source
	Truncated bool // there were more sources than a label keeps
}

// Clean is the label of nothing at all, the identity of [Label.Join].
func Clean() Label { return Label{Integrity: FromUser, Readers: Public()} }

// Join returns the label of data made from data labelled l and m.
func (l Label) Join(m Label) Label {
	out := Label{
		Integrity: min(l.Integrity, m.Integrity),
		Readers:   l.Readers.Join(m.Readers),
		Sources:   slices.Clip(l.Sources),
		Truncated: l.Truncated || m.Truncated,
	}
	for _, s := range m.Sources {
		if slices.Contains(out.Sources, s) {
			continue
		}
		if len(out.Sources) == maxSources {
			out.Truncated = true
			break
		}
		out.Sources = append(out.Sources, s)
	}
	return out
}
