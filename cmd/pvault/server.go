package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

func (a *app) server() *cobra.Command {
	c := &cobra.Command{
		Use: "server", Short: "Register, review and remove the servers behind the gateway", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.serverAdd(), a.serverList(), a.serverShow(), a.serverReview(), a.serverRemove())
	return c
}

func (a *app) serverAdd() *cobra.Command {
	var r daemon.Registration
	var approver, file string
	c := &cobra.Command{
		Use:   "add NAME SOURCE [ARGS...]",
		Short: "Install a server into a pinned read-only tree and register it",
		Long: `Install a server and pin its code and its tool definitions. SOURCE is one of

  npm:PACKAGE@VERSION   installed without scripts, with no network but the registry
  path:DIRECTORY        copied
  https://…             a remote server; its code cannot be pinned
  -- npx -y PACKAGE@VERSION   a line of a client's configuration, read as what to install; never executed

ARGS are handed to the server. A server runs in a sandbox without environment, home
or network, and sees only the files that --read and --write grant.`,
		Example: example(
			"pvault server add files npm:@modelcontextprotocol/server-filesystem@2026.8.31 /srv/invoices --read /srv/invoices --source org",
			"pvault server add memory -- npx -y @modelcontextprotocol/server-memory@2026.8.31",
			"pvault server add crm https://crm.example/mcp --holds private[crm]"),
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Source, r.Args = args[1], args[2:]
			if file != "" {
				b, err := a.readFile(file, 1<<20)
				if err != nil {
					return err
				}
				r.Tools = b
			}
			doc, err := r.Encode()
			if err != nil {
				return usage{err}
			}
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			key, err := a.signer(conf, approver)
			if err != nil {
				return err
			}
			defer key.Close()
			s, err := client.AddServer(cmd.Context(), admin.ServerRequest{Name: args[0], Registration: doc}, approver, key, a.progress)
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { showServer(w, s) })
		},
	}
	f := c.Flags()
	f.StringSliceVar(&r.Read, "read", nil, "files and directories the server may read")
	f.StringSliceVar(&r.Write, "write", nil, "files and directories the server may change")
	f.StringVar(&r.Integrity, "source", "web", "who can have written what it returns: web, tool, org")
	f.StringVar(&r.Holds, "holds", "private", "who may read what it returns: public, private, private[NAME,…]")
	f.StringVar(&r.Entry, "entry", "", "the package's program, if it has more than one")
	f.BoolVar(&r.Shared, "shared", false, "one process for all tasks, whose answers then carry the label of all that entered it")
	f.BoolVar(&r.TrustAnnotations, "trust-annotations", false, "believe the server's own hints about which tools only read")
	f.BoolVar(&r.Loopback, "loopback", false, "allow an http:// URL on this machine")
	f.StringVar(&file, "tools", "", "JSON file with the operator's word on single tools")
	f.StringVar(&approver, "approver", "default", "approver key to sign with")
	return c
}

func (a *app) serverList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the registered servers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.servers(cmd)
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tSTATE\tTOOLS\tQUARANTINED\tSOURCE")
				for _, s := range list {
					fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", s.Name, s.State, len(s.Tools), len(s.Quarantined), s.Source)
				}
				_ = t.Flush()
			})
		},
	}
}

func (a *app) servers(cmd *cobra.Command) ([]admin.Server, error) {
	client, _, err := a.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Servers(cmd.Context())
}

func (a *app) serverShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one server: pins, quarantine, findings", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := a.servers(cmd)
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.Name == args[0] {
					return a.print(s, func(w io.Writer) { showServer(w, s) })
				}
			}
			return fmt.Errorf("no server %q is registered; pvault server ls lists them", args[0])
		},
	}
}

func showServer(w io.Writer, s admin.Server) {
	fmt.Fprintf(w, "%s  %s\n  id         %s\n  from       %s\n  integrity  %s\n  holds      %s\n  tools      %s\n",
		s.Name, s.State, s.ID, s.Source, s.Integrity, s.Holds, strings.Join(s.Tools, " "))
	for tool, why := range s.Quarantined {
		fmt.Fprintf(w, "  quarantined  %s: %s\n", tool, why)
	}
	for _, n := range s.New {
		fmt.Fprintf(w, "  not reviewed  %s\n", n)
	}
	for _, f := range s.Findings {
		fmt.Fprintf(w, "  finding  %s\n", f)
	}
}

// shownNow is the value of --accept without one.
const shownNow = "now"

func (a *app) serverReview() *cobra.Command {
	var approver, accept string
	c := &cobra.Command{
		Use: "review NAME", Short: "Look at what changed in a server, and accept it", Args: cobra.ExactArgs(1),
		Long: `Ask the server for its tools again and show what differs from the pinned definitions.

With --accept=REVIEW exactly the definitions of that review are pinned; if the server
offers something else by now, nothing is. With --accept alone those that are shown
this time are pinned.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			s, err := client.ReviewServer(cmd.Context(), args[0], "", nil)
			if err != nil {
				return err
			}
			if accept != "" {
				if accept != shownNow && accept != s.Review {
					return fmt.Errorf("%s offers something else than in review %s; look again: pvault server review %s", args[0], accept, args[0])
				}
				key, err := a.signer(conf, approver)
				if err != nil {
					return err
				}
				defer key.Close()
				if !a.json {
					showOffers(a.out, s)
				}
				if s, err = client.AcceptServer(cmd.Context(), args[0], s.Offers, approver, key); err != nil {
					return err
				}
			}
			return a.print(s, func(w io.Writer) {
				showServer(w, s)
				showOffers(w, s)
				if s.Review != "" {
					fmt.Fprintf(w, "pin these definitions: pvault server review %s --accept=%s\n", s.Name, s.Review)
				}
			})
		},
	}
	c.Flags().StringVar(&accept, "accept", "", "pin the definitions of this review; without a value, those shown this time")
	c.Flags().Lookup("accept").NoOptDefVal = shownNow
	c.Flags().StringVar(&approver, "approver", "default", "approver key to sign with")
	return c
}

// showOffers prints the definitions that can be accepted. They are the server's
// words, so they are quoted.
func showOffers(w io.Writer, s admin.Server) {
	for _, o := range s.Offers {
		fmt.Fprintf(w, "  offers  %s %s: %s\n", o.Kind, strconv.Quote(o.Name), strconv.QuoteToGraphic(o.Text))
	}
}

func (a *app) serverRemove() *cobra.Command {
	var approver string
	c := &cobra.Command{
		Use: "rm NAME", Short: "Unregister a server", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conf, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			key, err := a.signer(conf, approver)
			if err != nil {
				return err
			}
			defer key.Close()
			return client.RemoveServer(cmd.Context(), args[0], approver, key)
		},
	}
	c.Flags().StringVar(&approver, "approver", "default", "approver key to sign with")
	return c
}
