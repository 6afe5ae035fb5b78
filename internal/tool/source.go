package tool

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// A Source says where the code of a server is installed from. The zero Source is
// none. Text form: npm:NAME@VERSION with an exact version, or path:DIR.
type Source struct {
	Scheme  string // npm or path
	Name    string // npm: package name, with scope
	Version string // npm: exact version
	Dir     string // path: absolute directory
}

// IsZero reports whether s names no source.
func (s Source) IsZero() bool { return s == Source{} }

func (s Source) String() string {
	switch s.Scheme {
	case "npm":
		return "npm:" + s.Name + "@" + s.Version
	case "path":
		return "path:" + s.Dir
	}
	return ""
}

// ErrUnsupportedSource says that a source is known and not in this version.
var ErrUnsupportedSource = errors.New("not in this version")

var (
	// npm's own rules for new names: lower case, no leading dot or underscore.
	npmName = regexp.MustCompile(`^(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*$`)
	// semver.org, 2.0.0, without ranges.
	exactVersion = regexp.MustCompile(`^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)
)

// maxNpmName is npm's own limit on the length of a package name.
const maxNpmName = 214

// ParseSource parses the text form. pypi: and oci: fail with
// [ErrUnsupportedSource].
func ParseSource(text string) (Source, error) {
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok {
		return Source{}, fmt.Errorf("install source %q: want npm:NAME@VERSION or path:DIR", text)
	}
	var s Source
	switch scheme {
	case "npm":
		at := strings.LastIndexByte(rest, '@')
		if at <= 0 {
			return Source{}, fmt.Errorf("install source %q: want an exact version: npm:NAME@1.2.3", text)
		}
		s = Source{Scheme: "npm", Name: rest[:at], Version: rest[at+1:]}
	case "path":
		s = Source{Scheme: "path", Dir: rest}
	case "pypi", "oci":
		return Source{}, fmt.Errorf("install source %q: %s: %w", text, scheme, ErrUnsupportedSource)
	default:
		return Source{}, fmt.Errorf("install source %q: unknown scheme: want npm or path", text)
	}
	if err := s.Check(); err != nil {
		return Source{}, err
	}
	return s, nil
}

// Check reports what is wrong with s.
func (s Source) Check() error {
	switch s.Scheme {
	case "npm":
		if len(s.Name) > maxNpmName || !npmName.MatchString(s.Name) {
			return fmt.Errorf("install source: %q is no npm package name", s.Name)
		}
		if len(s.Version) > maxNpmName || !exactVersion.MatchString(s.Version) {
			return fmt.Errorf("install source: version %q of %s: want an exact version like 1.2.3", s.Version, s.Name)
		}
		if s.Dir != "" {
			return errors.New("install source: npm has no directory")
		}
	case "path":
		if !path.IsAbs(s.Dir) || filepath.Clean(s.Dir) != s.Dir || s.Dir == "/" ||
			len(s.Dir) > maxArgBytes || strings.IndexByte(s.Dir, 0) >= 0 {
			return fmt.Errorf("install source: %q: want a clean absolute directory", s.Dir)
		}
		if s.Name != "" || s.Version != "" {
			return errors.New("install source: path has no name or version")
		}
	default:
		return fmt.Errorf("install source: unknown scheme %q", s.Scheme)
	}
	return nil
}

// UnmarshalText parses the text form.
func (s *Source) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSource(string(b))
	return err
}

// MarshalText returns the text form.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Command is a client's configuration line, read as an install source.
type Command struct {
	Source Source
	Entry  string // bin to start; "" if the package decides
	Args   []string
}

// ParseCommand maps the command of a client's configuration to what it would
// install: npx -y @scope/pkg@1.2.3 ARGS. The command itself is never executed.
// Everything else is refused with what to write instead: a shell, a bare program
// and a version that is not exact name no code that could be pinned.
func ParseCommand(argv []string) (Command, error) {
	if len(argv) == 0 {
		return Command{}, errors.New("command: empty")
	}
	if err := checkWords("command", argv, maxServerArgs); err != nil {
		return Command{}, err
	}
	switch name := path.Base(argv[0]); name {
	case "npx":
		return parseNpx(argv[1:])
	case "uvx", "uv", "pipx":
		return Command{}, fmt.Errorf("command %s: pypi: %w", name, ErrUnsupportedSource)
	case "docker", "podman", "nerdctl":
		return Command{}, fmt.Errorf("command %s: oci: %w", name, ErrUnsupportedSource)
	default:
		return Command{}, fmt.Errorf("command %q names no install source: use npm:NAME@VERSION or path:DIR", name)
	}
}

func parseNpx(argv []string) (Command, error) {
	var pkg string
	i := 0
	for ; i < len(argv) && strings.HasPrefix(argv[i], "-"); i++ {
		switch a := argv[i]; {
		case a == "-y" || a == "--yes" || a == "-q" || a == "--quiet":
		case a == "-p" || a == "--package":
			if i++; i == len(argv) || pkg != "" {
				return Command{}, errors.New("command npx: want one package")
			}
			pkg = argv[i] //nolint:gosec // the line above looked whether there is one
		case strings.HasPrefix(a, "--package=") && pkg == "":
			pkg = strings.TrimPrefix(a, "--package=")
		default:
			return Command{}, fmt.Errorf("command npx: option %q is not understood", a)
		}
	}
	if i == len(argv) {
		return Command{}, errors.New("command npx: no package")
	}
	var cmd Command
	if pkg == "" {
		pkg = argv[i]
	} else {
		cmd.Entry = argv[i]
	}
	s, err := ParseSource("npm:" + pkg)
	if err != nil {
		return Command{}, fmt.Errorf("command npx: %w", err)
	}
	cmd.Source, cmd.Args = s, append([]string(nil), argv[i+1:]...)
	return cmd, nil
}
