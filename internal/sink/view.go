package sink

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// A View is what may leave of an event.
type View struct {
	Leaf   *evidence.Leaf
	Raw    []byte // the exact leaf
	Hash   vault.Digest
	Fields []Field
}

// A Field is a sensitive field of a view.
type Field struct {
	Name      string
	Value     string
	Pseudonym bool // Value stands for somebody and does not say whom
}

func (v *View) size() int {
	n := len(v.Raw)
	for _, f := range v.Fields {
		n += len(f.Value)
	}
	return n
}

// field returns the first of names that v has.
func (v *View) field(names ...string) (Field, bool) {
	for _, name := range names {
		for _, f := range v.Fields {
			if f.Name == name {
				return f, true
			}
		}
	}
	return Field{}, false
}

// persons are the fields that name somebody.
var persons = []string{"agent", "approver", "by", "caller", "principal"}

// fields says which sensitive fields leave, and how. The zero fields is none.
type fields struct {
	open []string
	key  *evidence.Salt // nil: no pseudonyms
}

func newFields(names []string, f Format, key *evidence.Salt) fields {
	switch {
	case f == Leaf, slices.Contains(names, NoFields):
		return fields{}
	default:
		return fields{open: names, key: key}
	}
}

func checkFields(names []string) error {
	for _, name := range names {
		if name == NoFields {
			if len(names) > 1 {
				return errors.New("fields: none stands alone")
			}
			continue
		}
		if !slices.ContainsFunc(classes, func(c vault.Class) bool { return slices.Contains(vault.FieldsOf(c), name) }) {
			return fmt.Errorf("fields: no event has a field %q", name)
		}
	}
	return nil
}

var classes = []vault.Class{
	vault.ClassCall, vault.ClassTask, vault.ClassApproval, vault.ClassRevocation,
	vault.ClassServer, vault.ClassDaemon, vault.ClassAccess, vault.ClassErasure,
	vault.ClassRecovery,
}

func (s *fields) any() bool { return s.key != nil }

// view takes out of an event what may leave.
func (s *fields) view(e *Event) View {
	v := View{Leaf: e.Leaf, Raw: e.Raw, Hash: e.Hash}
	if s.key == nil {
		return v
	}
	for i := range e.Fields {
		f := &e.Fields[i]
		if f.Erased || f.NotKept || f.Value == nil {
			continue
		}
		switch {
		case slices.Contains(s.open, f.Name):
			v.Fields = append(v.Fields, Field{Name: f.Name, Value: plain(f.Value)})
		case slices.Contains(persons, f.Name):
			v.Fields = append(v.Fields, Field{Name: f.Name, Value: pseudonym(s.key, f.Value), Pseudonym: true})
		}
	}
	return v
}

// plain is a value as text. Signed answers and questions are bytes.
func plain(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return "base64:" + base64.StdEncoding.EncodeToString(b)
}

// pseudonym stands for a value: the same for the same one, and without the key
// neither computed nor guessed. It is 128 bits of a commitment whose salt is the key.
func pseudonym(key *evidence.Salt, value []byte) string {
	return "p-" + evidence.Commit(key, "pseudonym", value).String()[:32]
}
