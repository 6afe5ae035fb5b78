package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

// maxStatusList bounds a status list that is read from a file.
const maxStatusList = 2 << 20

func (a *app) capStatusList() *cobra.Command {
	var uri, in, key string
	var index int
	c := &cobra.Command{
		Use:   "status-list",
		Short: "Print the signed list of which root links were revoked, or look into one",
		Long: `Print a Status List Token (draft-ietf-oauth-status-list, JWT form, one bit a root
link, signed with a key of its own) for those who verify capabilities elsewhere. The
daemon serves it on its admin socket only: publish the file at --uri. It counts for an
hour. The index of a task is in pvault cap ls --json, the key in pvault status --json.

With --in, verify a list offline and say whether the root link at --index was revoked;
exit code 3 if it was.`,
		Example: example("pvault cap status-list --uri https://status.example/vault.jwt", "pvault cap status-list --in vault.jwt --key ed25519:… --index 7"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in != "" {
				return a.lookUpStatus(in, key, index)
			}
			if uri == "" {
				return usage{errors.New("say where the list will be found: --uri URI")}
			}
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.StatusList(cmd.Context(), uri)
			if err != nil {
				return err
			}
			return a.print(map[string]string{"status_list": list}, func(w io.Writer) { fmt.Fprintln(w, list) })
		},
	}
	f := c.Flags()
	f.StringVar(&uri, "uri", "", "where the list will be found; it becomes the subject of the token")
	f.StringVar(&in, "in", "", "a file with a list to look into")
	f.StringVar(&key, "key", "", "public key that signed it, ed25519:…")
	f.IntVar(&index, "index", 0, "index of the root link")
	return c
}

// lookUpStatus verifies a list and says what it says of one root link.
func (a *app) lookUpStatus(in, key string, index int) error {
	b, err := a.readFile(in, maxStatusList)
	if err != nil {
		return fmt.Errorf("read status list: %w", err)
	}
	revoked, uri, err := daemon.CheckStatus(strings.TrimSpace(string(b)), key, index)
	if err != nil {
		return err
	}
	answer := struct {
		URI     string `json:"uri"`
		Index   int    `json:"index"`
		Revoked bool   `json:"revoked"`
	}{uri, index, revoked}
	if err := a.print(answer, func(w io.Writer) {
		fmt.Fprintf(w, "%d: %s\n", index, map[bool]string{true: "revoked", false: "valid"}[revoked])
	}); err != nil {
		return err
	}
	if revoked {
		return &exit{code: exitDenied, err: errors.New("revoked")}
	}
	return nil
}
