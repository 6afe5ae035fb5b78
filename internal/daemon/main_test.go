package daemon_test

import (
	"os"
	"testing"

	"github.com/pilox/vault/internal/daemon"
)

// TestMain lets copies of the test binary be sandbox children: the jail starts
// what it confines by starting its own program again.
func TestMain(m *testing.M) {
	if os.Getenv(hogVariable) != "" {
		hog()
	}
	daemon.MaybeChild()
	os.Exit(m.Run())
}
