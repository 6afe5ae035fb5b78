package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) policy() *cobra.Command {
	c := &cobra.Command{
		Use: "policy", Short: "Test, try, sign and explain the operator's rules", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.policyTest(), a.policyEval(), a.policyLint(), a.policyExplain(), a.policyLog(), a.policyReplay(), a.policySign(), a.policyVerify())
	return c
}

func (a *app) policyTest() *cobra.Command {
	var least float64
	c := &cobra.Command{
		Use: "test BUNDLE", Short: "Run the test_… rules of a bundle", Args: cobra.ExactArgs(1),
		Long: `Run the rules named test_… in the *_test.rego files of a bundle, with the built-ins that
rules have in the daemon, and say which lines of the others no test reached. The bundle is
a directory, or an archive of opa build. The exit code is 7 if a test fails or the
coverage is below --coverage.`,
		Example: example("pvault policy test ./policy", "pvault policy test ./policy --coverage 90 --json"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := daemon.TestPolicy(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			err = a.print(s, func(w io.Writer) {
				for _, t := range s.Tests {
					switch {
					case t.Skip:
						fmt.Fprintln(w, "skip ", t.Name)
					case t.Pass:
						fmt.Fprintln(w, "ok   ", t.Name)
					default:
						fmt.Fprintln(w, a.red("FAIL "), t.Name, t.Where, t.Error)
					}
				}
				fmt.Fprintf(w, "%d tests, %d failed, coverage %.0f %%\n", len(s.Tests), s.Failed, s.Coverage)
				for _, m := range s.Missed {
					fmt.Fprintln(w, "  not reached:", m)
				}
			})
			if err == nil && (s.Failed > 0 || s.Coverage < least) {
				return &exit{code: exitDiffers}
			}
			return err
		},
	}
	c.Flags().Float64Var(&least, "coverage", 0, "least coverage in percent")
	return c
}

func (a *app) policyEval() *cobra.Command {
	var bundle, query, input string
	c := &cobra.Command{
		Use: "eval", Short: "Evaluate a rule over an input document", Args: cobra.NoArgs,
		Long: `Evaluate one rule over an input document, as a hook would. Without --bundle the bundles
of the configuration are asked. The answer is printed as JSON; where the rule is
undefined the exit code is 7.`,
		Example: example("pvault policy eval --bundle ./policy --query data.payments.decision --input call.json", "pvault policy eval --query data.payments.decision < call.json"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var in io.Reader = a.in
			if input != "" && input != "-" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			const most = 1 << 20
			doc, err := io.ReadAll(io.LimitReader(in, most+1))
			if err != nil {
				return err
			}
			if len(doc) > most {
				return fmt.Errorf("the input is larger than %d bytes", most)
			}
			var conf daemon.Policy
			if bundle == "" {
				c, err := a.load()
				if err != nil {
					return err
				}
				if conf = c.Policy; len(conf.Bundles) == 0 {
					return errors.New("the configuration has no bundle: name one with --bundle")
				}
			}
			answer, err := daemon.EvalPolicy(cmd.Context(), conf, bundle, query, doc)
			if err != nil {
				return err
			}
			if answer == nil {
				return &exit{exitDiffers, fmt.Errorf("%s is undefined for this input, and a hook would deny with policy_undefined", query)}
			}
			_, err = fmt.Fprintf(a.out, "%s\n", answer)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&bundle, "bundle", "", "directory or archive of rules")
	f.StringVar(&query, "query", "", "a rule by its whole name: data.payments.decision")
	f.StringVar(&input, "input", "", "file with the input document (default: standard input)")
	must(c.MarkFlagRequired("query"))
	return c
}

func (a *app) policyLint() *cobra.Command {
	var bundle string
	c := &cobra.Command{
		Use: "lint", Short: "Load the configured rules and say what deserves a second look", Args: cobra.NoArgs,
		Long: `Load the bundles and hooks of the configuration as the daemon would, and report what may
not mean what it was meant to: a member of the input that does not exist, a rule that
allows everything, a query without default, rules that no hook reaches. --bundle looks at
other rules with the hooks of the configuration. The exit code is 7 if anything is found.`,
		Example: example("pvault policy lint --config vault.yaml", "pvault policy lint --bundle bundle.tar.gz", "pvault policy lint --json"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			found, err := daemon.LintPolicy(cmd.Context(), c.Policy, bundle)
			if err != nil {
				return err
			}
			if err := a.print(found, func(w io.Writer) {
				for _, f := range found {
					fmt.Fprintf(w, "%-14s %s: %s\n", f.Code, f.Where, f.Detail)
				}
				if len(found) == 0 {
					fmt.Fprintln(w, "nothing found")
				}
			}); err != nil {
				return err
			}
			if len(found) > 0 {
				return &exit{code: exitDiffers}
			}
			return nil
		},
	}
	c.Flags().StringVar(&bundle, "bundle", "", "directory or archive of rules, in the place of those configured")
	return c
}

func (a *app) policySign() *cobra.Command {
	var key, id, algorithm string
	c := &cobra.Command{
		Use: "sign BUNDLE", Short: "Sign a bundle", Args: cobra.ExactArgs(1),
		Long: `Write .signatures.json into a bundle, over every file that counts, in the format of opa
sign. The bundle is a directory, or an archive of opa build, which is written again.`,
		Example: example("openssl ecparam -name prime256v1 -genkey -noout -out policy.key", "pvault policy sign ./policy --key policy.key --keyid k1", "pvault policy sign bundle.tar.gz --key policy.key --keyid k1"),
		RunE: func(_ *cobra.Command, args []string) error {
			names, err := daemon.SignPolicy(args[0], id, algorithm, key)
			if err != nil {
				return err
			}
			return a.print(names, func(w io.Writer) { fmt.Fprintf(w, "signed %d files of %s as %s\n", len(names), args[0], id) })
		},
	}
	signingFlags(c, &key, &id, &algorithm, "private key in PEM")
	return c
}

func (a *app) policyVerify() *cobra.Command {
	var key, id, algorithm string
	c := &cobra.Command{
		Use: "verify BUNDLE", Short: "Verify the signature of a bundle", Args: cobra.ExactArgs(1),
		Long:    `Hold every file of a bundle, a directory or an archive, against its .signatures.json. The exit code is 3 if it is not what was signed.`,
		Example: example("pvault policy verify ./policy --key policy.pub --keyid k1", "pvault policy verify bundle.tar.gz --key policy.pub --keyid k1"),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := daemon.VerifyPolicy(args[0], id, algorithm, key)
			if err != nil {
				return &exit{exitDenied, err}
			}
			return a.print(map[string]any{"verified": n, "keyid": id}, func(w io.Writer) { fmt.Fprintf(w, "%d files of %s are as %s signed them\n", n, args[0], id) })
		},
	}
	signingFlags(c, &key, &id, &algorithm, "public key or certificate in PEM")
	return c
}

func signingFlags(c *cobra.Command, key, id, algorithm *string, what string) {
	f := c.Flags()
	f.StringVar(key, "key", "", what)
	f.StringVar(id, "keyid", "", "name of the key, as policy.keys of vault.yaml has it")
	f.StringVar(algorithm, "alg", "ES256", "ES256, RS256, PS256 or EdDSA")
	must(c.MarkFlagRequired("key"))
	must(c.MarkFlagRequired("keyid"))
}

// must is for mistakes in our own flags.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// decodeEvent reads what a command needs of an event.
func decodeEvent(raw json.RawMessage, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	return nil
}
