package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// A gone stands where an element of an array was removed, so that the indices of the
// other masks still mean what their rule saw. OPA moves the elements up at once, and
// a second mask of the same array then hides another one.
type gone struct{}

// applyMasks returns event with masks applied, as OPA's package plugins/logs does it,
// and lists what it did in erased and masked.
func applyMasks(event []byte, masks []mask) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(event))
	dec.UseNumber()
	doc := map[string]any{}
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("read decision: %w", err)
	}
	lists := map[string][]any{}
	for _, name := range []string{"erased", "masked"} {
		list, _ := doc[name].([]any)
		lists[name] = list
	}
	for _, m := range masks {
		list, done := "erased", false
		if m.upsert {
			list = "masked"
			done = upsert(doc, m.parts, m.value)
		} else {
			done = remove(doc, m.parts)
		}
		if done {
			lists[list] = append(lists[list], m.String())
		}
	}
	for name, list := range lists {
		if len(list) > 0 {
			doc[name] = list
		}
	}
	return encode(compact(doc))
}

func (m mask) String() string {
	var b strings.Builder
	for _, p := range m.parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// spellings returns the names that a part of a path can stand for. OPA compares the
// part with its special characters escaped, so that a mask of a name that has one
// does nothing; here it hides each name that could be meant.
func spellings(part string) []string {
	out := []string{part}
	if s, err := url.PathUnescape(part); err == nil && s != part {
		out = append(out, s)
	}
	if s := url.PathEscape(part); s != part {
		out = append(out, s)
	}
	return out
}

// element returns the index that a part of a path names, -1 if there is none such.
func element(list []any, part string) int {
	i, err := strconv.Atoi(part)
	if err != nil || i < 0 || i >= len(list) {
		return -1
	}
	return i
}

// remove removes what is at a path and reports whether there was anything.
func remove(node any, parts []string) bool {
	switch v := node.(type) {
	case map[string]any:
		done := false
		for _, name := range spellings(parts[0]) {
			child, ok := v[name]
			switch {
			case !ok:
			case len(parts) == 1:
				delete(v, name)
				done = true
			default:
				done = remove(child, parts[1:]) || done
			}
		}
		return done
	case []any:
		i := element(v, parts[0])
		switch {
		case i < 0:
			return false
		case len(parts) > 1:
			return remove(v[i], parts[1:])
		}
		_, already := v[i].(gone)
		v[i] = gone{}
		return !already
	}
	return false
}

// upsert sets what is at a path, making the objects on the way, and reports whether
// it could. What is not in the event at all is not put there.
func upsert(doc map[string]any, parts []string, value any) bool {
	if _, ok := doc[parts[0]]; !ok {
		return false
	}
	if len(parts) == 1 {
		doc[parts[0]] = value
		return true
	}
	return set(doc, parts, value)
}

func set(node any, parts []string, value any) bool {
	switch v := node.(type) {
	case map[string]any:
		names := slices.DeleteFunc(spellings(parts[0]), func(n string) bool { _, ok := v[n]; return !ok })
		if len(names) == 0 {
			names = parts[:1]
		}
		done := false
		for _, name := range names {
			if len(parts) == 1 {
				v[name] = value
				done = true
				continue
			}
			child, ok := v[name]
			if !ok {
				child = map[string]any{}
				v[name] = child
			}
			done = set(child, parts[1:], value) || done
		}
		return done
	case []any:
		i := element(v, parts[0])
		switch {
		case i < 0:
			return false
		case len(parts) > 1:
			return set(v[i], parts[1:], value)
		}
		v[i] = value
		return true
	}
	return false
}

// compact takes out what is gone.
func compact(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = compact(e)
		}
	case []any:
		kept := v[:0]
		for _, e := range v {
			if _, ok := e.(gone); !ok {
				kept = append(kept, compact(e))
			}
		}
		return kept
	}
	return v
}
