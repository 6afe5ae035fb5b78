package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

// maxPresentation bounds a file with a chain of tokens, far above what is accepted.
const maxPresentation = 64 << 10

func (a *app) capExport() *cobra.Command {
	var x daemon.AATExporter
	var keyFile, keysOut string
	var format bool
	c := &cobra.Command{
		Use:   "export TOKEN --aat --key FILE --issuer URI",
		Short: "Write a capability as an attenuating authorization token",
		Long: `Write what a capability allows as one root token of the format of
draft-niyikiza-oauth-attenuating-agent-tokens-02, in a presentation object ({"aat_chain":
[...]}), signed with --key and bound to the key that holds the capability. A tool is
called SERVER.TOOL; names of servers come from the daemon. openssl genpkey -algorithm
ed25519 makes a key; --keys-out is what others need to trust it.

What the token cannot say is listed, and nothing is written. Budgets, labels, sandbox and
pins can be left behind by name, with --without: whoever takes the token does not count,
label, sandbox or pin for you. Approvals, caveats, signatures and constraints on
arguments cannot. --only leaves out the tools that it does not name.

The capability is not verified: your key vouches for it. A token cannot be revoked, so it
lives 15 minutes unless --life says otherwise, and never longer than the capability.
TOKEN can be - for standard input.`,
		Example: example(
			"pvault cap export vc1.… --aat --key issuer.key --issuer https://vault.example --keys-out issuer.jwks",
			"pvault cap export vc1.… --aat --key issuer.key --issuer https://vault.example --only desk.say --without budgets,labels"),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !format {
				return usage{errors.New("say what to write: --aat")}
			}
			if x.Life < 0 {
				return usage{errors.New("--life is positive")}
			}
			if !cmd.Flags().Changed("only") {
				x.Only = nil
			}
			chain, err := a.chain(args[0])
			if err != nil {
				return err
			}
			if x.Key, err = a.privateKey(keyFile); err != nil {
				return err
			}
			x.Server, x.Now = a.serverNames(cmd.Context()), time.Now()
			presentation, keys, err := daemon.ExportAAT(chain, x)
			if missing, ok := errors.AsType[*daemon.AATMissingError](err); ok {
				return a.cannotSay(missing)
			}
			if err != nil {
				return err
			}
			if keysOut != "" {
				if err := os.WriteFile(keysOut, append(keys, '\n'), 0o644); err != nil {
					return fmt.Errorf("write keys: %w", err)
				}
			}
			return a.print(json.RawMessage(presentation), func(w io.Writer) { fmt.Fprintln(w, string(presentation)) })
		},
	}
	f := c.Flags()
	f.BoolVar(&format, "aat", false, "write an attenuating authorization token")
	f.StringVar(&keyFile, "key", "", "file with the issuer's private key, as cap mint --key-out wrote it, or PKCS #8 in PEM")
	f.StringVar(&x.Issuer, "issuer", "", "URI that names the issuer")
	f.StringVar(&x.Audience, "audience", "", "who may take the token (default: the gateway that the capability is for)")
	f.StringSliceVar(&x.Only, "only", nil, "only these tools, SERVER.TOOL")
	f.StringSliceVar(&x.Lose, "without", nil, "leave behind: budgets, labels, sandbox, pins")
	f.DurationVar(&x.Life, "life", 0, "end that long from now (default 15m)")
	f.StringVar(&keysOut, "keys-out", "", "write the issuer's public key there, as a JWK set")
	return c
}

// cannotSay ends an export that would have allowed more.
func (a *app) cannotSay(e *daemon.AATMissingError) error {
	if a.json {
		if err := a.print(e, nil); err != nil {
			return err
		}
		return &exit{code: exitError}
	}
	var b strings.Builder
	b.WriteString("an attenuating authorization token cannot say all of it:")
	for _, m := range e.Missing {
		b.WriteString("\n  " + visible(m))
	}
	b.WriteString("\n--only leaves tools out; --without leaves budgets, labels, sandbox and pins behind")
	return errors.New(b.String())
}

func (a *app) capImport() *cobra.Command {
	var x daemon.AATImport
	var file, keyFile string
	c := &cobra.Command{
		Use:   "import --aat FILE --key FILE --grant NAME",
		Short: "Exchange a chain of attenuating authorization tokens for a capability",
		Long: `Exchange a chain of tokens of draft-niyikiza-oauth-attenuating-agent-tokens-02 for a
capability, at the gateway's token endpoint (RFC 8693, POST /token). FILE is a
presentation object, {"aat_chain": [...]}. --key is the key that the last token is bound
to: it is proven, and holds the capability.

The operator decides beforehand: the issuer of the root token stands in exchange.aat, and
the grant in exchange.grants names a reviewed task file and aat:ISSUER among its
subjects. What comes back is what both the tokens and the task file allow, under the
task file's budgets. The exit code is 3 if the gateway refuses; why, its log says.`,
		Example: example(
			"pvault cap import --aat chain.json --key agent.key --grant invoices",
			"pvault cap import --aat chain.json --key agent.key --grant invoices --url https://vault.example:7443"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage{errors.New("say which chain: --aat FILE")}
			}
			if x.Grant == "" {
				return usage{errors.New("say what to ask for: --grant NAME, of exchange.grants")}
			}
			var err error
			if x.Chain, err = a.readFile(file, maxPresentation); err != nil {
				return fmt.Errorf("read chain: %w", err)
			}
			if x.Key, err = a.privateKey(keyFile); err != nil {
				return err
			}
			if x.URL == "" {
				client, _, err := a.client()
				if err != nil {
					return err
				}
				defer client.Close()
				s, err := client.Status(cmd.Context())
				if err != nil {
					return err
				}
				if s.HTTP == "" {
					return errors.New("the daemon has no HTTP listener: name one with --url")
				}
				x.URL = "http://" + s.HTTP
			}
			t, err := daemon.ImportAAT(cmd.Context(), x)
			if errors.Is(err, daemon.ErrExchangeRefused) {
				return &exit{code: exitDenied, err: err}
			}
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) {
				fmt.Fprintln(w, t.Token)
				fmt.Fprintln(a.err, a.dim("until "+t.Expires.Format(time.RFC3339)))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&file, "aat", "", "file with a presentation object, - for standard input")
	f.StringVar(&keyFile, "key", "", "file with the private key of the last token's holder, as cap mint --key-out wrote it, or PKCS #8 in PEM")
	f.StringVar(&x.Grant, "grant", "", "name of the grant that is asked for")
	f.StringVar(&x.URL, "url", "", "URL of the gateway (default: the daemon of this configuration)")
	return c
}
