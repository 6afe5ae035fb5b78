package daemon

import (
	"fmt"
	"strings"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/sandbox"
)

// A Banner is what pvault up prints when it is ready: where it can be reached and
// what it really enforces on this host.
type Banner struct {
	admin.Status

	Socket  string               `json:"socket"`
	Console string               `json:"console,omitempty"` // one-time link
	Layers  []sandbox.LayerState `json:"sandbox_layers"`
	Servers int                  `json:"servers"`
}

// Banner describes the running daemon. The console link in it opens one session.
func (d *Daemon) Banner() Banner {
	report := d.jail.Report()
	b := Banner{Status: d.status(), Socket: d.conf.Socket(), Layers: report.Layers, Servers: len(d.catalogue.Servers())}
	if d.listeners.console != nil {
		b.Console = "http://" + d.listeners.http + d.listeners.console.Link()
	}
	return b
}

// String is the banner for people.
func (b Banner) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "pvault %s is up\n", b.Version)
	fmt.Fprintf(&s, "  data      %s\n  socket    %s\n", b.Data, b.Socket)
	if b.HTTP != "" {
		fmt.Fprintf(&s, "  mcp       http://%s/mcp\n  console   %s\n", b.HTTP, b.Console)
	}
	fmt.Fprintf(&s, "  ledger    %d events, key %s\n", b.Ledger, b.LedgerKey)
	fmt.Fprintf(&s, "  servers   %d registered\n", b.Servers)
	fmt.Fprintf(&s, "  sandbox   grade %s:", b.Grade)
	for _, l := range b.Layers {
		state := "on"
		if !l.On {
			state = "OFF"
		}
		fmt.Fprintf(&s, " %s %s", l.Layer, state)
	}
	s.WriteString("\n")
	for _, l := range b.Layers {
		if !l.On {
			fmt.Fprintf(&s, "            %s: %s; %s\n", l.Layer, l.Detail, l.Fix)
		}
	}
	for _, w := range b.Warnings {
		fmt.Fprintf(&s, "  note      %s\n", w)
	}
	return s.String()
}
