package daemon

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pilox/vault/internal/tool"
)

// A Registration is what pvault server add says about a server, in the words of
// its flags.
type Registration struct {
	Source           string   // npm:PACKAGE@VERSION, path:DIR, a URL, or npx with its arguments in Args
	Args             []string // handed to the server
	Read             []string
	Write            []string
	Integrity        string // web, tool, org
	Holds            string // public, private, private[NAME,…]
	Entry            string
	Shared           bool
	TrustAnnotations bool
	Loopback         bool
	Tools            []byte // JSON object, tool name → operator's entry; nil for none
}

// Encode returns the registration document, checked.
func (r Registration) Encode() ([]byte, error) {
	reg := tool.Registration{Args: r.Args, Entry: r.Entry, Shared: r.Shared, TrustAnnotations: r.TrustAnnotations, AllowHTTP: r.Loopback}
	switch {
	case strings.HasPrefix(r.Source, "https://") || strings.HasPrefix(r.Source, "http://"):
		reg.URL = r.Source
	case !strings.Contains(r.Source, ":"):
		// A line of a client's configuration, such as npx -y PACKAGE@VERSION ARGS. It
		// says what to install and is never executed.
		c, err := tool.ParseCommand(append([]string{r.Source}, r.Args...))
		if err != nil {
			return nil, err
		}
		reg.Install, reg.Args = c.Source, c.Args
		if reg.Entry == "" {
			reg.Entry = c.Entry
		}
	default:
		src := r.Source
		if dir, ok := strings.CutPrefix(src, "path:"); ok {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return nil, err
			}
			src = "path:" + abs
		}
		var err error
		if reg.Install, err = tool.ParseSource(src); err != nil {
			return nil, err
		}
	}
	for _, list := range []struct {
		in  []string
		out *[]string
	}{{r.Read, &reg.Read}, {r.Write, &reg.Write}} {
		for _, p := range list.in {
			abs, err := filepath.Abs(p)
			if err != nil {
				return nil, err
			}
			*list.out = append(*list.out, abs)
		}
	}
	if err := reg.Source.UnmarshalText([]byte(r.Integrity)); err != nil {
		return nil, err
	}
	if err := reg.Holds.UnmarshalText([]byte(r.Holds)); err != nil {
		return nil, err
	}
	if r.Tools != nil {
		if err := json.Unmarshal(r.Tools, &reg.Tools); err != nil {
			return nil, fmt.Errorf("tools: %w", err)
		}
	}
	if err := reg.Check(); err != nil {
		return nil, err
	}
	return json.Marshal(reg)
}
