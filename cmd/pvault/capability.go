package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/admin"
)

func (a *app) capability() *cobra.Command {
	c := &cobra.Command{
		Use: "cap", Short: "Mint, attenuate, inspect, verify and revoke capabilities", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.capMint(), a.capAttenuate(), a.capInspect(), a.capLearn(), a.capExplain(), a.capLint(), a.capVerify(), a.capRevoke(), a.capClose(), a.capList(), a.capStatusList(), a.capExport(), a.capImport())
	return c
}

func (a *app) capMint() *cobra.Command {
	var task taskFlags
	var bind, keyOut string
	c := &cobra.Command{
		Use:   "mint --task FILE",
		Short: "Mint the capability of a task file, with an approver's signature",
		Long: `Open an instance of a task file and print its capability. By default it is bound to
this user on this machine. --bind key makes a key pair for the holder: the token is
then worth nothing without the private key, which is written to --key-out.`,
		Example: example(
			"pvault cap mint --task task.yaml",
			"pvault cap mint --task task.yaml --bind key --key-out agent.key",
			"pvault cap mint --task task.yaml --bind bearer   # loopback only, every record says so"),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := task.request()
			if err != nil {
				return err
			}
			if r.Bind, err = binding(bind, keyOut); err != nil {
				return err
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if task.approver == "" {
				task.approver = "default"
			}
			t, err := a.mint(cmd.Context(), client, task.approver, r)
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) {
				fmt.Fprintln(w, t.Token)
				fmt.Fprintln(a.err, a.dim(fmt.Sprintf("task %s, agent %s, until %s", t.ID, t.Agent, t.Expires.Format(time.RFC3339))))
			})
		},
	}
	task.add(c)
	c.Flags().StringVar(&bind, "bind", "peer", "what the capability is bound to: peer, key or bearer")
	c.Flags().StringVar(&keyOut, "key-out", "", "file for the holder's new private key (with --bind key)")
	return c
}

// binding makes the holder's key if one is wanted and returns the bind request.
func binding(bind, keyOut string) (string, error) {
	switch bind {
	case "peer", "bearer":
		if keyOut != "" {
			return "", usage{errors.New("--key-out goes with --bind key")}
		}
		return bind, nil
	case "key":
		if keyOut == "" {
			return "", usage{errors.New("say where the private key goes: --key-out FILE")}
		}
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return "", fmt.Errorf("make key: %w", err)
		}
		f, err := os.OpenFile(keyOut, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", fmt.Errorf("write key: %w", err)
		}
		_, err = fmt.Fprintln(f, base64.RawURLEncoding.EncodeToString(priv.Seed()))
		if err = errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("write key: %w", err)
		}
		return "key:" + base64.RawURLEncoding.EncodeToString(pub), nil
	}
	return "", usage{fmt.Errorf("--bind %q: want peer, key or bearer", bind)}
}

func (a *app) capInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect TOKEN", Short: "Show what a capability says, link by link, without verifying it", Args: cobra.ExactArgs(1),
		Long: "Show what a capability says, link by link. Nothing is verified. TOKEN can be - for standard input.",
		RunE: func(_ *cobra.Command, args []string) error {
			chain, err := a.chain(args[0])
			if err != nil {
				return err
			}
			return a.showView(capability.Inspect(chain))
		},
	}
}

// chain parses a token from an argument or, for "-", from standard input.
func (a *app) chain(s string) (capability.Chain, error) {
	if s == "-" {
		b, err := a.readFile("-", 256<<10)
		if err != nil {
			return capability.Chain{}, err
		}
		s = strings.TrimSpace(string(b))
	}
	return capability.ParseText(s)
}

func (a *app) capRevoke() *cobra.Command {
	var r admin.RevokeRequest
	c := &cobra.Command{
		Use:   "revoke task|agent|link|issuer|all [ID]",
		Short: "Stop a task, an agent, a link with all it delegated, an issuer's key, or everything",
		Long:  "Revoke authority. It counts from the next call on, and calls in flight are cancelled. Stopping needs no\napprover, because it only takes authority away. A revocation cannot be undone: mint again.",
		Example: example(
			"pvault cap revoke task t-0123456789abcdefghjkmnpqrs --why 'wrong recipient'",
			"pvault cap revoke all --why incident"),
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.What = args[0]
			if len(args) == 2 {
				r.ID = args[1]
			}
			switch {
			case r.What == "all" && r.ID != "", r.What != "all" && r.ID == "":
				return usage{errors.New("want task ID, agent ID, link ID, issuer KID, or all")}
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			event, err := client.Revoke(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.print(map[string]uint64{"event": event}, func(w io.Writer) { fmt.Fprintf(w, "revoked, recorded as event %d\n", event) })
		},
	}
	c.Flags().StringVar(&r.Why, "why", "", "a note for the record")
	return c
}

func (a *app) capList() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the task instances", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Tasks(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "TASK\tSTATE\tEXPIRES\tPRINCIPAL\tPURPOSE")
				for _, k := range list {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.State, k.Expires.Format(time.RFC3339), k.Principal, k.Purpose)
				}
				_ = t.Flush()
			})
		},
	}
}

// showView prints what a chain says. It is JSON either way: links are trees.
func (a *app) showView(v capability.View) error {
	return a.print(v, func(w io.Writer) {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		_ = enc.Encode(v) // the view is made of plain values
	})
}

func (a *app) capVerify() *cobra.Command {
	var issuer, kid, tenant, audience string
	c := &cobra.Command{
		Use:   "verify TOKEN --issuer KEY --audience CLUSTER",
		Short: "Verify a capability offline: signatures, issuer, audience and time",
		Long: `Verify a chain without a daemon. Revocation and possession are not looked at: only
the gateway knows them. Exit code 3 if it does not verify.`,
		Example: example("pvault cap verify vc1.… --issuer ed25519:… --tenant default --audience cluster-…"),
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			chain, err := a.chain(args[0])
			if err != nil {
				return &exit{code: exitDenied, err: fmt.Errorf("capability: %w", err)}
			}
			var key capability.Key
			if err := key.UnmarshalText([]byte(issuer)); err != nil {
				return usage{fmt.Errorf("--issuer: %w", err)}
			}
			v, err := capability.Verify(chain.Bytes(), []capability.RootIssuer{{KID: kid, Key: key, Tenant: vault.Tenant(tenant), Own: true}}, audience, time.Now())
			if err != nil {
				return err
			}
			return a.showView(v)
		},
	}
	f := c.Flags()
	f.StringVar(&issuer, "issuer", "", "public key of the issuer, ed25519:… (pvault status shows it)")
	f.StringVar(&kid, "kid", "local-1", "key id of the issuer")
	f.StringVar(&tenant, "tenant", "default", "tenant the issuer mints for")
	f.StringVar(&audience, "audience", "", "cluster the capability is for")
	return c
}

func (a *app) capAttenuate() *cobra.Command {
	var keyFile, holder string
	var only []string
	var life time.Duration
	var calls int64
	c := &cobra.Command{
		Use:   "attenuate TOKEN --key FILE",
		Short: "Narrow a capability you hold by one more link",
		Long: `Sign one more link with the holder's key. A link only restricts; what no flag names
is inherited. The narrower capability can be handed to another key with --holder.`,
		Example: example(
			"pvault cap attenuate vc1.… --key agent.key --life 5m --calls 3",
			"pvault cap attenuate vc1.… --key agent.key --only read_file --holder ed25519:…"),
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			chain, err := a.chain(args[0])
			if err != nil {
				return err
			}
			key, err := a.privateKey(keyFile)
			if err != nil {
				return err
			}
			child, err := narrower(chain, holder, only, life, calls)
			if err != nil {
				return usage{err}
			}
			longer, err := capability.Attenuate(chain, child, capability.Signer{Key: key})
			if err != nil {
				return err
			}
			return a.print(map[string]string{"token": longer.Text()}, func(w io.Writer) { fmt.Fprintln(w, longer.Text()) })
		},
	}
	f := c.Flags()
	f.StringVar(&keyFile, "key", "", "file with the holder's private key, as cap mint --key-out wrote it, or PKCS #8 in PEM")
	f.StringVar(&holder, "holder", "", "public key of the next holder, ed25519:…")
	f.StringSliceVar(&only, "only", nil, "keep only the grants for these names")
	f.DurationVar(&life, "life", 0, "end that long from now")
	f.Int64Var(&calls, "calls", 0, "at most so many calls")
	return c
}

// narrower makes the link that the flags of cap attenuate describe.
func narrower(chain capability.Chain, holder string, only []string, life time.Duration, calls int64) (capability.Link, error) {
	var child capability.Link
	if holder != "" {
		var key capability.Key
		if err := key.UnmarshalText([]byte(holder)); err != nil {
			return child, fmt.Errorf("--holder: %w", err)
		}
		child.Holder = capability.HeldBy(key)
	}
	if life < 0 || calls < 0 {
		return child, errors.New("--life and --calls are positive")
	}
	if life > 0 {
		child.Expires = capability.InstantOf(time.Now().Add(life))
	}
	if calls > 0 {
		child.Budgets = &capability.Budgets{Calls: capability.Limit(calls)}
	}
	if only == nil {
		return child, nil
	}
	child.Grants = capability.Grants{}
	for _, name := range only {
		found := false
		for _, l := range chain.Links() {
			for kind, targets := range l.Grants {
				for target := range targets {
					if target.Name != name {
						continue
					}
					if child.Grants[kind] == nil {
						child.Grants[kind] = map[vault.Target]capability.Rule{}
					}
					child.Grants[kind][target] = capability.Rule{}
					found = true
				}
			}
		}
		if !found {
			return child, fmt.Errorf("--only %s: the capability names no such target", name)
		}
	}
	return child, nil
}

// privateKey reads a private key: as cap mint --key-out wrote it, or PKCS #8 in PEM, of
// Ed25519 or P-256.
func (a *app) privateKey(path string) (crypto.Signer, error) {
	if path == "" {
		return nil, usage{errors.New("say which key: --key FILE")}
	}
	b, err := a.readFile(path, 4096)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if block, _ := pem.Decode(b); block != nil {
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		signer, ok := key.(crypto.Signer)
		if err == nil && ok {
			_, err = capability.KeyOf(signer.Public())
		}
		if err != nil || !ok {
			return nil, fmt.Errorf("%s: want an unencrypted Ed25519 or P-256 key in PKCS #8", path)
		}
		return signer, nil
	}
	seed, err := base64.RawURLEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s is neither a key that pvault cap mint wrote nor PKCS #8 in PEM", path)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func (a *app) capClose() *cobra.Command {
	return &cobra.Command{
		Use: "close TASK", Short: "End a task: its capability is void and its record complete", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			return client.CloseTask(cmd.Context(), vault.TaskID(args[0]))
		},
	}
}
