// Package taskfile reads task.yaml: the reviewed statement of what one task may
// do, from which the root capability of the task is minted.
//
// It owns the format: parsing, validation with line and column, the published
// JSON Schema and the digest that pins a file. It does not mint, resolve server
// names or decide anything; [File.Claims] only translates. Start with [Load], or
// with [Parse] where the bytes came by other means.
//
// The package promises that nothing in a file is ignored. An unknown key, a key
// twice, a YAML anchor, alias or tag, and anything that this version of Vault
// cannot enforce are errors. What a file leaves out is not granted: the zero File
// grants nothing.
package taskfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// Bounds on a task file. A person has to review it, so they are far above what a
// reviewer reads and low enough that a hostile file costs nothing.
const (
	MaxBytes      = 256 << 10 // of the YAML file
	MaxInputs     = 32 << 10  // of the inputs file: it travels in the capability, which has 64 KiB in all
	MaxLife       = 7 * 24 * time.Hour
	maxPurpose    = 1 << 10 // one or two sentences, shown in every question
	maxNodes      = 20_000  // YAML nodes in all
	maxDepth      = 24      // of YAML: room for eight levels of each and object
	maxRules      = 1_000   // per kind: targets, each a rule that is compiled
	maxArgs       = 256     // named arguments of one rule
	maxTarget     = 2048    // a resource URI or a JSON Pointer
	maxList       = 1_000   // values of one list
	maxConstraint = 4 << 10 // bytes of one constraint value
	maxGroups     = 16      // approval groups of one rule, as in capability
	maxSums       = 32      // sum budgets, as in capability
	maxCaveats    = 16      // of one file, as in capability
	maxErrors     = 20      // reported at once; more would not be read
)

// ErrUnsupported is in the chain of errors about things that the format knows and
// this version of Vault cannot enforce. They are refused: ignoring them would
// grant more, or promise more, than the file says.
var ErrUnsupported = errors.New("not supported by this version")

// A File is a parsed and validated task file. It is read-only.
type File struct {
	Version   int           // 1
	Purpose   string        // what the task is for, shown to approvers
	Principal string        // for whom: user:clerk@example.com
	Life      time.Duration // zero: what the autonomy level gives
	Inputs    Inputs
	Sandbox   Sandbox

	// What may be called, by kind. A server's rules stand together in the order
	// of the file.
	Tools          []Rule
	Resources      []Rule
	Prompts        []Rule
	ServerRequests []Rule
	Egress         []Egress // one per host

	Budgets  Budgets
	Labels   Labels
	Delegate Delegate
	Caveats  []string // CEL expressions over a call, all must hold
	Ask      []string // approval groups that every call asks
	SignAt   string   // least risk that demands a signature per call; "" is none

	// Autonomy is the level that gives what the file leaves out; "" is none. What
	// it gives is filled in by [File.Under].
	Autonomy string

	digest   vault.Digest
	autonomy place
}

// Inputs is the user's own words: the only task text that counts as trusted.
type Inputs struct {
	Path string // as written in the file, relative to it; "" if none
	Text string // valid UTF-8, at most [MaxInputs] bytes
}

// Sandbox says where the task's servers may run.
type Sandbox struct {
	// MinGrade is the least grade. Zero is vault.GradeNone: any.
	MinGrade vault.Grade

	stated bool // the file says a grade
}

// A Rule grants one target, or all targets of a server.
type Rule struct {
	Server string // registered name
	Name   string // of the tool or prompt, URI of the resource, method of the server request; "*" is every one
	capability.Rule

	at place
}

// Labels is the task's clearance.
type Labels struct {
	MayRead   []string // compartments; none: nothing that is not public
	MaySendTo []string // domains and hosts that private data may go to
}

// Budgets bound what the task may use up in all.
type Budgets struct {
	Calls      int64         // zero: what the autonomy level gives
	BytesOut   int64         // bytes of arguments; zero: no such budget
	Recipients int64         // different ones; zero: no such budget
	Hosts      int64         // different ones; zero: no such budget
	Time       time.Duration // that calls may run, added up; zero: no such budget
	Sums       []Sum
}

// A Sum bounds the total of one argument over all calls of one tool. The tool's
// rule fixes UnitArg to Unit, so that a total never mixes units.
type Sum struct {
	Server, Tool string
	Arg, UnitArg string // JSON Pointers of the amount and of its unit
	Unit         string // EUR
	Limit        capability.Decimal
}

// Delegate says how far authority may be handed on. The zero Delegate: not at all.
type Delegate struct {
	Depth int             // links that may follow the root, at most capability.MaxLinks-1
	To    []vault.AgentID // agents that later links may name
}

// A place is where something stands in the file, for errors that are found later.
type place struct {
	line, column int
	path         string
}

// Digest returns vault.Hash("task-file", bytes of the file, bytes of the
// inputs): any change to either is another task file.
func (f *File) Digest() vault.Digest { return f.digest }

// Load reads the task file at path and the inputs file it names. Inputs are
// looked up below the directory of the task file; a path or symbolic link that
// leads out of it is refused. Problems in the file are [Errors].
func Load(path string) (*File, error) {
	data, err := readBounded(path, MaxBytes, os.OpenFile)
	if err != nil {
		return nil, fmt.Errorf("read task file: %w", err)
	}
	f, err := Parse(data, func(name string) ([]byte, error) {
		root, err := os.OpenRoot(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return readBounded(name, MaxInputs, root.OpenFile)
	})
	if err != nil {
		var problems Errors
		if errors.As(err, &problems) {
			for _, p := range problems {
				p.File = path
			}
		}
		return nil, err
	}
	return f, nil
}

// Parse parses and validates data. If the file names inputs, read is called once
// with the path as written; nil read refuses such files. read must bound what it
// returns and decide which paths are in reach. The error is [Errors], or of read.
func Parse(data []byte, read func(path string) ([]byte, error)) (*File, error) {
	if len(data) > MaxBytes {
		return nil, Errors{{Line: 1, Column: 1, Problem: fmt.Sprintf("the file has %d bytes, the limit is %d", len(data), MaxBytes)}}
	}
	f, err := decode(data)
	if err != nil {
		return nil, err
	}
	var inputs []byte
	if f.Inputs.Path != "" {
		if read == nil {
			return nil, fmt.Errorf("read inputs %q: the inputs were not handed over", f.Inputs.Path)
		}
		if inputs, err = read(f.Inputs.Path); err != nil {
			return nil, fmt.Errorf("read inputs %q: %w", f.Inputs.Path, err)
		}
		switch {
		case len(inputs) > MaxInputs:
			return nil, fmt.Errorf("read inputs %q: more than %d bytes", f.Inputs.Path, MaxInputs)
		case !utf8.Valid(inputs):
			return nil, fmt.Errorf("read inputs %q: not valid UTF-8", f.Inputs.Path)
		}
		f.Inputs.Text = string(inputs)
	}
	f.digest = vault.Hash("task-file", data, inputs)
	return f, nil
}

// readBounded reads a regular file of at most limit bytes. It does not wait for
// the other end of a FIFO, which an attacker could put in the file's place.
func readBounded(name string, limit int64, open func(string, int, fs.FileMode) (*os.File, error)) ([]byte, error) {
	f, err := open(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, nil
}

// An Error is one problem and where it stands.
type Error struct {
	File         string // path, if known
	Line, Column int    // from 1
	Path         string // keys that lead there: tools.mail.draft.args.to; "" is the file itself
	Problem      string
	Hint         string // what to do, if that is not plain
	Err          error  // [ErrUnsupported], or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	name := e.File
	if name == "" {
		name = "task file"
	}
	fmt.Fprintf(&b, "%s:%d:%d: ", name, e.Line, e.Column)
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Problem)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Errors are the problems of one file in the order they stand in it. Never empty.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, p := range e {
		out[i] = p
	}
	return out
}
