package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/pilox/vault"
)

// Limits on a registration. People write it; the numbers are far above use.
const (
	maxRegistration = 256 << 10 // bytes of the JSON document
	maxServerArgs   = 64        // arguments of the command line
	maxArgBytes     = 4096      // of one argument, and of a path or URL
	maxPaths        = 64        // granted paths of each sort
	maxEntries      = maxTools  // operator's entries
	maxRoles        = 64        // roles in one entry
)

// A Registration is what an operator says about a server: where its code comes
// from, what it may reach, and what its answers are worth. The zero value of
// every field grants least.
type Registration struct {
	Install Source `json:"install,omitzero"` // where the code is; zero with URL
	Entry   string `json:"entry,omitempty"`  // which bin of the package, or a file of the tree; "" if there is only one bin
	URL     string `json:"url,omitempty"`    // endpoint of a remote server
	Auth    Auth   `json:"auth,omitzero"`    // identity used at URL
	// AllowHTTP accepts an http URL whose host is a loopback address.
	AllowHTTP bool `json:"allow_http,omitempty"`

	Args  []string `json:"args,omitempty"`  // after the entry
	Read  []string `json:"read,omitempty"`  // absolute paths it may read
	Write []string `json:"write,omitempty"` // absolute paths it may write; they can be read too

	Source Integrity `json:"source,omitzero"` // of its answers; zero is web
	Holds  Holds     `json:"holds,omitzero"`  // who may read its answers; zero is private, for nobody

	Tools   map[string]Entry `json:"tools,omitempty"`   // by name of the tool
	Profile string           `json:"profile,omitempty"` // sandbox profile; "" is the default one
	// Shared lets tasks share one process, whose answers then carry the label of
	// all that entered it. False starts one for each task.
	Shared bool `json:"shared,omitempty"`
	// TrustAnnotations believes readOnlyHint. Hints are the server's own words,
	// so this is the operator vouching for the server.
	TrustAnnotations bool `json:"trust_annotations,omitempty"`
}

// Auth names the identity used at a URL server.
type Auth struct {
	Secret string `json:"secret,omitempty"` // name of the sealed credential; "" is anonymous
}

// An Entry is the operator's word about one tool.
type Entry struct {
	ReadOnly bool `json:"read_only,omitempty"` // changes nothing
	Risk     Risk `json:"risk,omitzero"`       // zero is high
	// Local says that the tool cannot reach beyond its sandbox. Nil is true for
	// installed servers, which run without network, and false for URL servers.
	Local *bool                 `json:"local,omitempty"`
	Roles map[string]vault.Role `json:"roles,omitempty"` // by JSON Pointer of the argument
	// OpenSchema lets arguments through that the input schema does not name.
	OpenSchema bool `json:"open_schema,omitempty"`
	// IgnorePatterns drops patterns that RE2 cannot express (look-around,
	// back-references) instead of refusing the tool.
	IgnorePatterns bool `json:"ignore_patterns,omitempty"`
}

// Integrity is a [vault.Integrity] in a registration: web, tool or org.
type Integrity struct{ vault.Integrity }

// UnmarshalText parses web, tool or org. Nobody's answers are the user's words.
func (i *Integrity) UnmarshalText(b []byte) error {
	v, err := vault.ParseIntegrity(string(b))
	if err == nil && v > vault.FromOrganisation {
		err = fmt.Errorf("source %q: want web, tool or org", b)
	}
	if err != nil {
		return err
	}
	i.Integrity = v
	return nil
}

// MarshalText returns the word.
func (i Integrity) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// Risk is a [vault.Risk] in a registration: low, medium or high.
type Risk struct{ vault.Risk }

// UnmarshalText parses low, medium or high.
func (r *Risk) UnmarshalText(b []byte) error {
	for _, v := range []vault.Risk{vault.RiskHigh, vault.RiskMedium, vault.RiskLow} {
		if v.String() == string(b) {
			r.Risk = v
			return nil
		}
	}
	return fmt.Errorf("risk %q: want low, medium or high", b)
}

// MarshalText returns the word.
func (r Risk) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Holds says who may read what a server returns: public, or private with the
// compartments that may: private[finance,crm]. The zero Holds is private without
// compartments, for nobody.
type Holds struct {
	public       bool
	compartments string // canonical list
}

var compartment = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// ParseHolds parses the text form.
func ParseHolds(s string) (Holds, error) {
	switch s {
	case "public":
		return Holds{public: true}, nil
	case "private":
		return Holds{}, nil
	}
	list, ok := strings.CutPrefix(s, "private[")
	list, ok2 := strings.CutSuffix(list, "]")
	if !ok || !ok2 || len(list) > maxArgBytes {
		return Holds{}, fmt.Errorf("holds %q: want public, private or private[compartment,...]", s)
	}
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if !compartment.MatchString(name) {
			return Holds{}, fmt.Errorf("holds: compartment %q: want [a-z][a-z0-9-]{0,31}", name)
		}
		names = append(names, name)
	}
	return Holds{compartments: strings.Join(vault.Only(names...).Names(), ",")}, nil
}

// Readers returns the set.
func (h Holds) Readers() vault.Readers {
	switch {
	case h.public:
		return vault.Public()
	case h.compartments == "":
		return vault.Only()
	}
	return vault.Only(strings.Split(h.compartments, ",")...)
}

func (h Holds) String() string {
	switch {
	case h.public:
		return "public"
	case h.compartments == "":
		return "private"
	}
	return "private[" + h.compartments + "]"
}

// UnmarshalText parses the text form.
func (h *Holds) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHolds(string(b))
	return err
}

// MarshalText returns the text form.
func (h Holds) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

var serverName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// CheckName reports whether a server may be registered under name.
func CheckName(name string) error {
	if !serverName.MatchString(name) {
		return fmt.Errorf("server name %q: want [a-z][a-z0-9-]{0,31}", name)
	}
	return nil
}

// ParseRegistration decodes and checks the JSON form. Unknown keys and keys given
// twice are refused: a misspelt restriction must not be no restriction.
func ParseRegistration(doc []byte) (Registration, error) {
	var reg Registration
	if len(doc) > maxRegistration {
		return reg, fmt.Errorf("registration: larger than %d bytes", maxRegistration)
	}
	args, err := vault.ParseArgs(doc)
	if err != nil {
		return reg, fmt.Errorf("registration: %w", err)
	}
	if args.Root().Get("env").Kind() != vault.Absent {
		return reg, errors.New("registration: env: a server gets no environment; use a secret binding or args")
	}
	if err := decodeStrict(args.Bytes(), &reg); err != nil {
		return Registration{}, fmt.Errorf("registration: %w", err)
	}
	if err := reg.Check(); err != nil {
		return Registration{}, err
	}
	return reg, nil
}

// Check reports the first thing that is wrong with r.
func (r *Registration) Check() error {
	switch {
	case r.Install.IsZero() == (r.URL == ""):
		return errors.New("registration: want install or url, and not both")
	case r.URL != "":
		if err := r.checkURL(); err != nil {
			return err
		}
	case r.Auth != Auth{}:
		return errors.New("registration: auth is for url servers")
	case r.AllowHTTP:
		return errors.New("registration: allow_http is for url servers")
	default:
		if err := r.Install.Check(); err != nil {
			return err
		}
	}
	if err := checkWords("args", r.Args, maxServerArgs); err != nil {
		return err
	}
	if r.Entry != "" {
		if err := checkWords("entry", []string{r.Entry}, 1); err != nil {
			return err
		}
	}
	if err := checkPaths("read", r.Read); err != nil {
		return err
	}
	if err := checkPaths("write", r.Write); err != nil {
		return err
	}
	if r.Source.Integrity > vault.FromOrganisation {
		return errors.New("registration: source: want web, tool or org")
	}
	if r.Profile != "" && !serverName.MatchString(r.Profile) {
		return fmt.Errorf("registration: profile %q: want [a-z][a-z0-9-]{0,31}", r.Profile)
	}
	if len(r.Tools) > maxEntries {
		return fmt.Errorf("registration: %d tools, at most %d", len(r.Tools), maxEntries)
	}
	for name, e := range r.Tools {
		if err := e.check(); err != nil {
			return fmt.Errorf("registration: tool %q: %w", name, err)
		}
	}
	return nil
}

func (r *Registration) checkURL() error {
	if r.Entry != "" || len(r.Args)+len(r.Read)+len(r.Write) > 0 || r.Profile != "" || r.Shared {
		return errors.New("registration: entry, args, read, write, profile and shared are for installed servers")
	}
	if len(r.URL) > maxArgBytes {
		return fmt.Errorf("registration: url: longer than %d bytes", maxArgBytes)
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return fmt.Errorf("registration: url: %w", err)
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("registration: url: scheme %q: want https", u.Scheme)
	case u.User != nil:
		return errors.New("registration: url: credentials do not belong in a URL; use auth")
	case u.Fragment != "" || strings.Contains(r.URL, "#"):
		return errors.New("registration: url: no fragment")
	case u.Hostname() == "" || u.Hostname() != strings.ToLower(u.Hostname()):
		return errors.New("registration: url: want a lower-case host")
	case u.String() != r.URL:
		return fmt.Errorf("registration: url: write it as %s", u)
	}
	if u.Scheme == "http" && !(r.AllowHTTP && isLoopback(u.Hostname())) {
		return errors.New("registration: url: http is accepted only for a loopback address, and with allow_http")
	}
	if s := r.Auth.Secret; s != "" && !compartment.MatchString(s) {
		return fmt.Errorf("registration: auth: secret %q: want [a-z][a-z0-9-]{0,31}", s)
	}
	return nil
}

// isLoopback takes addresses only: a name means what the resolver says today.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (e *Entry) check() error {
	if len(e.Roles) > maxRoles {
		return fmt.Errorf("%d roles, at most %d", len(e.Roles), maxRoles)
	}
	for pointer, role := range e.Roles {
		if pointer == "" || pointer[0] != '/' || len(pointer) > maxArgBytes {
			return fmt.Errorf("role at %q: want a JSON Pointer", pointer)
		}
		switch role {
		case vault.RoleRecipient, vault.RoleHost, vault.RolePath, vault.RoleCommand,
			vault.RoleAmount, vault.RoleContent, vault.RoleSelector:
		default:
			return fmt.Errorf("role at %s: unknown role %q", pointer, role)
		}
	}
	return nil
}

func checkWords(what string, words []string, most int) error {
	if len(words) > most {
		return fmt.Errorf("registration: %s: %d values, at most %d", what, len(words), most)
	}
	for _, w := range words {
		if len(w) > maxArgBytes || strings.IndexByte(w, 0) >= 0 {
			return fmt.Errorf("registration: %s: a value is longer than %d bytes or holds a zero byte", what, maxArgBytes)
		}
	}
	return nil
}

func checkPaths(what string, paths []string) error {
	if err := checkWords(what, paths, maxPaths); err != nil {
		return err
	}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fmt.Errorf("registration: %s: %q: want a clean absolute path below the root", what, p)
		}
	}
	return nil
}

// serverID returns the identity of a registration. Beyond content, interpreter
// and entry it covers the command line and the granted paths: the same program
// pointed at another directory is another target, or a capability for one
// directory would open the other.
func serverID(r *Registration, t *Tree) vault.ServerID {
	if r.URL != "" {
		return vault.ServerID(vault.Hash("server", []byte("url"), []byte(r.URL), []byte(r.Auth.Secret)))
	}
	list := func(words []string) []byte {
		parts := make([][]byte, len(words))
		for i, w := range words {
			parts[i] = []byte(w)
		}
		d := vault.Hash("server/list", parts...)
		return d[:]
	}
	return vault.ServerID(vault.Hash("server", []byte("tree"), t.Digest[:], []byte(t.Runtime),
		t.InterpreterDigest[:], []byte(t.Entry), list(r.Args), list(r.Read), list(r.Write)))
}

// decodeStrict decodes canonical JSON into v and refuses keys that v lacks.
func decodeStrict(doc []byte, v any) error {
	dec := json.NewDecoder(strings.NewReader(string(doc)))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}
