package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// An app is what all sub-commands share: streams, environment and global flags.
type app struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	getenv func(string) string

	config string
	json   bool
	quiet  bool
}

// load reads the configuration that the flags and the environment name.
func (a *app) load() (daemon.Config, error) {
	path := a.config
	if path == "" {
		path = filepath.Join(a.configDir(), "vault.yaml")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			path = ""
		}
	}
	c, err := daemon.LoadConfig(path, a.getenv)
	if err != nil {
		return daemon.Config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

func (a *app) configDir() string {
	if d := a.getenv("XDG_CONFIG_HOME"); d != "" {
		return filepath.Join(d, "pvault")
	}
	return filepath.Join(a.getenv("HOME"), ".config", "pvault")
}

// client returns a client for the daemon of the configuration.
func (a *app) client() (*admin.Client, daemon.Config, error) {
	c, err := a.load()
	if err != nil {
		return nil, c, err
	}
	return admin.NewClient(c.Socket()), c, nil
}

// print writes v as JSON, or what plain writes if --json was not given.
func (a *app) print(v any, plain func(w io.Writer)) error {
	if !a.json {
		plain(a.out)
		return nil
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// progress writes one line about long work to the error stream.
func (a *app) progress(line string) {
	if !a.quiet {
		fmt.Fprintln(a.err, a.dim("… "+line))
	}
}

// colour reports whether the error stream is a terminal that wants colour.
func (a *app) colour() bool {
	f, ok := a.err.(*os.File)
	return ok && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

func (a *app) paint(code, s string) string {
	if !a.colour() {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (a *app) red(s string) string   { return a.paint("31", s) }
func (a *app) green(s string) string { return a.paint("32", s) }
func (a *app) dim(s string) string   { return a.paint("2", s) }

// signer unwraps the approver key called name.
func (a *app) signer(c daemon.Config, name string) (*daemon.Approver, error) {
	key, err := daemon.OpenApprover(a.approverDir(c), name, a.passphrase("Passphrase of approver "+name, false))
	if err != nil {
		return nil, fmt.Errorf("approver key %q: %w", name, err)
	}
	return key, nil
}

// approverDir is where approver keys lie: the data directory holds the public
// halves that the daemon trusts, and the private halves beside them.
func (a *app) approverDir(c daemon.Config) string { return filepath.Join(c.Data, "approvers") }

// passphrase says where a passphrase comes from: the file descriptor that
// PVAULT_PASSPHRASE_FD names, else the terminal. It is never an argument or an
// environment variable, which other processes can read.
func (a *app) passphrase(prompt string, confirm bool) daemon.Passphrase {
	return func() ([]byte, error) {
		if v := a.getenv("PVAULT_PASSPHRASE_FD"); v != "" {
			fd, err := strconv.Atoi(v)
			if err != nil || fd < 0 {
				return nil, fmt.Errorf("PVAULT_PASSPHRASE_FD is %q: want a file descriptor", v)
			}
			return daemon.ReaderPassphrase(os.NewFile(uintptr(fd), "passphrase"))()
		}
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return nil, errors.New("no terminal to ask for the passphrase on: give it by PVAULT_PASSPHRASE_FD")
		}
		defer tty.Close()
		return daemon.TerminalPassphrase(tty, prompt, confirm)()
	}
}

// readFile reads a file that a person names, "-" being standard input.
func (a *app) readFile(path string, limit int64) ([]byte, error) {
	var r io.Reader = a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, nil
}

// example joins the lines of a help text.
func example(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }
