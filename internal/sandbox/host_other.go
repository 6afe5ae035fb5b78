//go:build !linux

package sandbox

import "runtime"

// ProbeHost says that this system has no isolation Vault can use.
func ProbeHost() []Fact {
	return []Fact{{Name: "linux", State: Absent, Detail: runtime.GOOS, Fix: "run Vault on Linux, or in a Linux virtual machine"}}
}

// LandlockABI returns 0: there is none.
func LandlockABI() int { return 0 }
