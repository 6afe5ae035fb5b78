// Command pvault is Vault: the daemon, and everything people do with it.
//
// Every sub-command has a file of its own. It owns flags, output and exit codes;
// what is done is in package daemon and the public packages. Start with [run].
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// Exit codes. Those of pvault audit verify start at 10 and are in package evidence.
const (
	exitOK         = 0
	exitError      = 1 // something went wrong that no other code names
	exitUsage      = 2 // flags or arguments
	exitDenied     = 3 // the call was refused, or its result withheld
	exitPending    = 4 // a person has to answer first
	exitNotRunning = 5 // no daemon
	exitApprover   = 6 // an approver's signature is needed
	exitDiffers    = 7 // tour, bench, audit recover: something is not as told
)

func main() {
	daemon.MaybeChild() // a re-executed sandbox child never gets past this line
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	a := &app{in: stdin, out: stdout, err: stderr, getenv: getenv}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	return a.explain(err)
}

// An exit is an error that ends with a code of its own. A nil Err prints nothing:
// the command has said it all.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// A usage is a mistake in flags or arguments.
type usage struct{ error }

// explain prints err with what to do next and returns the exit code.
func (a *app) explain(err error) int {
	code := exitError
	if e, ok := errors.AsType[*exit](err); ok {
		if e.err == nil {
			return e.code
		}
		code = e.code
	}
	hint := ""
	if e, ok := errors.AsType[*admin.Error](err); ok {
		hint = e.Hint
		switch e.Code {
		case "not_running":
			code = exitNotRunning
		case "approver_required":
			code = exitApprover
		}
	}
	if d, ok := errors.AsType[*vault.Denial](err); ok {
		code = exitDenied
		if d.Verdict == "pending" {
			code = exitPending
		}
	}
	if _, ok := errors.AsType[usage](err); ok {
		code = exitUsage
		hint = "pvault --help shows the commands, pvault COMMAND --help its flags and examples"
	}
	fmt.Fprintln(a.err, a.red("error: ")+err.Error())
	if hint != "" {
		fmt.Fprintln(a.err, "  "+hint)
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "pvault",
		Short: "Least-agency runtime for autonomous software",
		Long: `Vault gives an agent exactly the authority of its task, runs it where it cannot
exceed that authority, checks every call, and leaves evidence that can be verified
without trusting anybody.

Start with: pvault tour`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "", "configuration file (default: vault.yaml in the configuration directory, if it exists)")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.BoolVar(&a.quiet, "quiet", false, "print no progress")
	root.AddCommand(
		a.up(), a.tour(), a.status(), a.metrics(), a.doctor(), a.initialise(),
		a.server(), a.mcp(), a.call(), a.runCommand(), a.capability(),
		a.policy(), a.approve(), a.audit(), a.bench(), a.benchStub(), a.schema(), a.store(), a.version(), a.probe(),
	)
	wrapArgs(root)
	return root
}

// wrapArgs makes mistakes in the number of arguments usage errors.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}
