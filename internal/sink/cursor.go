package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pilox/vault/evidence"
)

// maxCursor bounds the file: a log's name and a number.
const maxCursor = 4096

// A cursor is how far a sink is, in a file.
type cursor struct {
	path, log string
	next      uint64 // index of the first event that is not delivered
	saved     uint64 // what the file says
}

// A cursorFile is what stands in the file.
type cursorFile struct {
	Version int    `json:"v"`
	Log     string `json:"log"`
	Next    uint64 `json:"next"`
}

// openCursor reads a cursor; one that does not exist is at the first event. What
// cannot be read refuses: to begin again is for the operator to say.
func openCursor(path, log string) (cursor, error) {
	c := cursor{path: path, log: log}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	defer f.Close()
	b := make([]byte, maxCursor)
	n, err := f.Read(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w: remove it to send every event again", path, err)
	}
	kept, err := parseCursor(b[:n])
	if err != nil {
		return c, fmt.Errorf("%s: %w: remove it to send every event again", path, err)
	}
	if kept.Log != log {
		return c, fmt.Errorf("%s is of the ledger %q, and this one is %q: remove it to send every event of this one", path, kept.Log, log)
	}
	c.next, c.saved = kept.Next, kept.Next
	return c, nil
}

func parseCursor(b []byte) (cursorFile, error) {
	var f cursorFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return cursorFile{}, err
	}
	if dec.More() || f.Version != 1 || f.Next > evidence.MaxInt {
		return cursorFile{}, errors.New("not a cursor of version 1")
	}
	return f, nil
}

// behind says how many events the file lags.
func (c *cursor) behind() uint64 { return c.next - c.saved }

// save replaces the file, durably, so that a crash leaves the old or the new one.
func (c *cursor) save() error {
	if c.next == c.saved {
		return nil
	}
	b, err := json.Marshal(cursorFile{Version: 1, Log: c.log, Next: c.next})
	if err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if err := writeSync(c.path+".new", b); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if err := os.Rename(c.path+".new", c.path); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if err := syncDir(filepath.Dir(c.path)); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	c.saved = c.next
	return nil
}

func writeSync(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
