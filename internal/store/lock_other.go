//go:build !unix

package store

import (
	"errors"
	"os"
)

// lockFile refuses: without a lock two daemons could write the same ledger.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("no file lock on this system")
}
