package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) auditRecover() *cobra.Command {
	var why, archive, approver string
	var yes bool
	c := &cobra.Command{
		Use:   "recover [--why TEXT]",
		Short: "Say why the ledger cannot go on, and start one with a new origin",
		Long: `Where the store is older than the last signed checkpoint, or differs from it, or the
checkpoint is missing, the daemon does not start: nobody could tell what was cut off. If
what was lost can be put back, put it back. If not, this starts a ledger with a new origin
in its place. The daemon must be stopped.

Without --why it only says what the store holds, what was signed and what is lost. With
--why an approver signs for it, and the first record of the new ledger names the old one:
its last checkpoint, what the store held, why, and who says so.

The old records stay in the store, and the old checkpoint in the data directory under
recovered/. Nothing of the old ledger gives authority in the new: tasks are over, tokens
are void, servers are added and reviewed again. What was revoked stays revoked, as far as
the store knows. Pin the new key; witnesses must be told of the new origin.

The old ledger can be archived later too: --archive without --why, where the ledger is
sound, writes the bundle of the one before it.

Exit code 7 without --why where there is something to recover.`,
		Example: example("pvault audit recover", "pvault audit recover --why 'disk of 3 May replaced, dump of 2 May' --archive old.zip"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if a.json && why != "" && !yes {
				return usage{errors.New("--json asks nobody: add --yes")}
			}
			conf, err := a.load()
			if err != nil {
				return err
			}
			r, err := daemon.OpenRecovery(cmd.Context(), conf, a.logger(conf))
			if errors.Is(err, daemon.ErrSound) && why == "" && archive != "" {
				return a.archivePredecessor(cmd.Context(), conf, archive)
			}
			if err != nil {
				return fmt.Errorf("recover: %w", err)
			}
			defer func() { err = errors.Join(err, r.Close()) }()
			var out recovery
			out.Found = r.Found()
			if !a.json {
				printFound(a.out, &out.Found)
			}
			if archive != "" {
				err := writeArchive(archive, out.Found.Unfinished != nil, func(w io.Writer) error { return r.Archive(cmd.Context(), w) })
				if err != nil {
					return err
				}
				if out.Archive = archive; !a.json {
					fmt.Fprintf(a.out, "wrote %s: the first %d records; they verify with the old key\n", archive, out.Found.Proven)
				}
			}
			if why == "" {
				if !a.json {
					fmt.Fprintln(a.out, "nothing is changed; put back what is missing, or go on with: pvault audit recover --why TEXT")
				} else if err := a.print(out, nil); err != nil {
					return err
				}
				return &exit{code: exitDiffers}
			}
			if err := a.confirm(yes, "Start a new ledger in its place? The old tasks and servers end for good.", "recover"); err != nil {
				return err
			}
			key, err := a.signer(conf, approver)
			if err != nil {
				return err
			}
			defer key.Close()
			done, err := r.Run(cmd.Context(), why, key)
			if err != nil {
				return err
			}
			out.Recovered = &done
			return a.print(out, func(w io.Writer) {
				fmt.Fprintf(w, "a new ledger goes on: %s\n  key        %s\n  kept       %s\n", done.Origin, done.Key, done.Kept)
				fmt.Fprintln(w, "next: pin the key, pvault up, pvault server add and pvault cap mint as at the first time,")
				fmt.Fprintln(w, "      and revoke again what was revoked in the time that is lost")
			})
		},
	}
	f := c.Flags()
	f.StringVar(&why, "why", "", "what happened, for the record; start the new ledger")
	f.StringVar(&archive, "archive", "", "file for a bundle of the old ledger, as far as a checkpoint covers it")
	f.StringVar(&approver, "approver", "default", "approver key to sign with")
	f.BoolVar(&yes, "yes", false, "do not ask on the terminal")
	return c
}

// A recovery is what the command prints.
type recovery struct {
	Found     daemon.Found      `json:"found"`
	Archive   string            `json:"archive,omitempty"`
	Recovered *daemon.Recovered `json:"recovered,omitempty"`
}

// printFound says for people what a recovery found. What stands in the store may be
// anybody's, so it is made visible.
func printFound(w io.Writer, f *daemon.Found) {
	fmt.Fprintf(w, "the ledger cannot go on: %s\n", visible(f.Problem))
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %-10s %s\n", what, fmt.Sprintf(format, args...))
	}
	line("ledger", "%s", visible(f.Origin))
	held := fmt.Sprintf("%d records in order", f.Store.Records)
	if f.Store.Origin != f.Origin {
		held += " of " + visible(f.Store.Origin)
	}
	if f.Store.Last != nil {
		held += ", the last of " + f.Store.Last.Format(time.RFC3339)
	}
	if f.Store.Claimed != 0 {
		held += fmt.Sprintf("; it says %d", f.Store.Claimed)
	}
	line("store", "%s", held)
	switch s := f.Signed; {
	case s == nil:
		line("signed", "nobody can tell: there is no last checkpoint that can be read")
	case !s.Own:
		line("signed", "%d records of %s, by another key, at %s", s.Records, visible(s.Origin), s.Written.Format(time.RFC3339))
	default:
		line("signed", "%d records, at %s", s.Records, s.Written.Format(time.RFC3339))
	}
	switch {
	case f.Lost > 0 && f.Store.Last != nil && f.Signed != nil:
		line("lost", "at least %d records, between %s and %s", f.Lost, f.Store.Last.Format(time.RFC3339), f.Signed.Written.Format(time.RFC3339))
	case f.Lost > 0:
		line("lost", "at least %d records", f.Lost)
	}
	if f.Differs {
		line("differs", "the store is not what was signed, or nobody can tell")
	}
	line("proven", "the first %d records, by a checkpoint that was kept", f.Proven)
	line("ends", "%d open tasks, %d servers%s", f.Doubtful.Tasks, len(f.Doubtful.Servers), names(f.Doubtful.Servers))
	line("stays", "%d revocations%s", f.Carried, unreadable(f.Unreadable))
	if b := f.Unfinished; b != nil {
		line("begun", "a recovery by %s at %s, for %q, was not finished and is now", visible(b.By), b.At.Format(time.RFC3339), visible(b.Why))
	}
}

func names(list []string) string {
	const most = 20
	if len(list) == 0 {
		return ""
	}
	more := ""
	if len(list) > most {
		list, more = list[:most], ", …"
	}
	return " (" + visible(strings.Join(list, ", ")) + more + ")"
}

func unreadable(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %d others cannot be read: tokens are void all the same, revoke agents and issuers again", n)
}

// writeArchive writes a bundle of the old ledger. A file that is there is evidence,
// unless the same recovery wrote it before it was cut off.
func writeArchive(path string, again bool, write func(io.Writer) error) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if again {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	err = write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write archive: %w", err), os.Remove(path))
	}
	return nil
}

// archivePredecessor writes the bundle that a recovery did not write.
func (a *app) archivePredecessor(ctx context.Context, conf daemon.Config, path string) error {
	var n uint64
	if err := writeArchive(path, false, func(w io.Writer) (err error) {
		n, err = daemon.ArchivePredecessor(ctx, conf, a.logger(conf), w)
		return err
	}); err != nil {
		return err
	}
	return a.print(map[string]any{"archive": path, "records": n}, func(w io.Writer) {
		fmt.Fprintf(w, "the ledger is sound; wrote %s: the first %d records of the one before it, which verify with the old key\n", path, n)
	})
}

// confirm asks a person to type a word, on the terminal.
func (a *app) confirm(yes bool, question, word string) error {
	if yes {
		return nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return errors.New("no terminal to confirm on: add --yes if you mean it")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s\nType %s to go on: ", question, word)
	answer, err := bufio.NewReader(io.LimitReader(tty, 256)).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != word {
		return errors.New("not confirmed: nothing is changed")
	}
	return nil
}
