package daemon

import (
	"strings"
	"testing"
)

func TestRegistrationEncode(t *testing.T) {
	base := Registration{Integrity: "web", Holds: "private"}
	for _, tt := range []struct{ name, source, args, want, err string }{
		{"a package", "npm:@scope/pkg@1.2.3", "/srv", `"install":"npm:@scope/pkg@1.2.3"`, ""},
		{"a line of a client is what to install", "npx", "-y @scope/pkg@1.2.3 /srv", `"install":"npm:@scope/pkg@1.2.3"`, ""},
		{"its arguments go to the server", "npx", "-y @scope/pkg@1.2.3 /srv", `"args":["/srv"]`, ""},
		{"a version that is not exact", "npx", "-y @scope/pkg", "", "version"},
		{"a shell", "sh", "-c id", "", "names no install source"},
		{"a package of PyPI", "uvx", "mcp-server-git", "", "not in this version"},
		{"a remote server", "https://crm.example/mcp", "", `"url":"https://crm.example/mcp"`, ""},
		{"plain http", "http://crm.example/mcp", "", "", "http"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := base
			r.Source, r.Args = tt.source, strings.Fields(tt.args)
			doc, err := r.Encode()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("err = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || !strings.Contains(string(doc), tt.want) {
				t.Errorf("%s, %v; want %s", doc, err, tt.want)
			}
		})
	}
}
