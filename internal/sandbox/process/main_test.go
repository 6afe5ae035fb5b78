//go:build linux

package process

import (
	"os"
	"testing"
)

// The test binary is runner, init and guest in one. A guest is told by its first
// argument what to do; see guest_test.go.
func TestMain(m *testing.M) {
	MaybeChild()
	if os.Getenv("PVAULT_TEST_HOLLOW") != "" {
		os.Exit(hollowExit)
	}
	if len(os.Args) > 2 && os.Args[1] == "guest" {
		os.Exit(guestMain(os.Args[2], os.Args[3:]))
	}
	os.Exit(m.Run())
}

// hollowExit is what a test binary exits with when MaybeChild let it go on.
const hollowExit = 42
