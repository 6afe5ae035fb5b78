package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// A Passphrase returns a passphrase when it is needed. The caller clears it.
type Passphrase func() ([]byte, error)

// TerminalPassphrase asks on the terminal tty without echo. With confirm it asks
// twice and the two must agree. If tty is no terminal, it fails: a passphrase
// that is piped in by accident would end up in a shell history.
func TerminalPassphrase(tty *os.File, prompt string, confirm bool) Passphrase {
	return func() ([]byte, error) {
		fd := int(tty.Fd())
		if !term.IsTerminal(fd) {
			return nil, fmt.Errorf("%w: not a terminal; give it by file descriptor instead", ErrPassphrase)
		}
		first, err := askTerminal(tty, fd, prompt+": ")
		if err != nil || !confirm {
			return first, err
		}
		second, err := askTerminal(tty, fd, "again: ")
		defer clear(second)
		if err != nil {
			clear(first)
			return nil, err
		}
		if !bytes.Equal(first, second) {
			clear(first)
			return nil, fmt.Errorf("%w: the two do not agree", ErrPassphrase)
		}
		return first, nil
	}
}

func askTerminal(tty *os.File, fd int, prompt string) ([]byte, error) {
	if _, err := io.WriteString(tty, prompt); err != nil {
		return nil, fmt.Errorf("ask for passphrase: %w", err)
	}
	b, err := term.ReadPassword(fd)
	_, werr := io.WriteString(tty, "\n")
	if err = errors.Join(err, werr); err != nil {
		clear(b)
		return nil, fmt.Errorf("ask for passphrase: %w", err)
	}
	return b, nil
}

// ReaderPassphrase reads the passphrase from r, such as an inherited file
// descriptor: everything up to the first newline or the end, at most 1,024 bytes.
func ReaderPassphrase(r io.Reader) Passphrase {
	return func() ([]byte, error) {
		b, err := io.ReadAll(io.LimitReader(r, maxPassphrase+2))
		if err != nil {
			clear(b)
			return nil, fmt.Errorf("read passphrase: %w", err)
		}
		line := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line = b[:i]
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) == 0 || len(line) > maxPassphrase {
			clear(b)
			return nil, fmt.Errorf("%w: empty, or longer than %d bytes", ErrPassphrase, maxPassphrase)
		}
		clear(b[len(line):])
		return line, nil
	}
}
