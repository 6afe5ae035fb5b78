package process

import (
	"errors"
	"fmt"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// dropCapabilities empties every capability set of the calling thread. After
// exec the guest has none either: its uid is not 0 and the ambient set is empty.
func dropCapabilities() error {
	for c := uintptr(0); c < 64; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			break // past the last one this kernel knows
		} else if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Capget(&hdr, &none[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if none != [2]unix.CapUserData{} {
		return errors.New("capabilities are still there after dropping them")
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// The Landlock rights, by what a grant means.
const (
	llReadFile = llsys.AccessFSReadFile
	llRead     = llReadFile | llsys.AccessFSReadDir
	// No device files, no sockets: neither is something a grant of files means.
	llWriteFile = llsys.AccessFSWriteFile | llsys.AccessFSTruncate
	llWrite     = llWriteFile | llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile | llsys.AccessFSMakeDir |
		llsys.AccessFSMakeReg | llsys.AccessFSMakeFifo | llsys.AccessFSMakeSym | llsys.AccessFSRefer
	llExec = llReadFile | llsys.AccessFSExecute
)

// handled returns the rights that ABI version abi knows. All are handled, so that
// what no rule grants is refused.
func handled(abi int) llsys.RulesetAttr {
	a := llsys.RulesetAttr{HandledAccessFS: llsys.AccessFSRefer - 1} // 13 rights of version 1
	if abi >= 2 {
		a.HandledAccessFS |= llsys.AccessFSRefer
	}
	if abi >= 3 {
		a.HandledAccessFS |= llsys.AccessFSTruncate
	}
	if abi >= 4 {
		a.HandledAccessNet = llsys.AccessNetBindTCP | llsys.AccessNetConnectTCP
	}
	if abi >= 5 {
		a.HandledAccessFS |= llsys.AccessFSIoctlDev
	}
	if abi >= 6 {
		a.Scoped = llsys.ScopeAbstractUnixSocket | llsys.ScopeSignal
	}
	return a
}

// restrictLandlock restricts the calling thread to the grants. The go-landlock
// package proper visits /proc/self/task to reach all threads; there is no /proc
// here, and one thread is all that is needed.
func restrictLandlock(abi int, grants []grant, proxyPort uint64) error {
	attr := handled(abi)
	rs, err := llsys.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return fmt.Errorf("create landlock ruleset: %w", err)
	}
	defer unix.Close(rs)
	for _, g := range grants {
		if err := addGrant(rs, attr.HandledAccessFS, g); err != nil {
			return fmt.Errorf("grant %s: %w", g.Path, err)
		}
	}
	if proxyPort != 0 && abi >= 4 {
		rule := llsys.NetPortAttr{AllowedAccess: llsys.AccessNetConnectTCP, Port: proxyPort}
		if err := llsys.LandlockAddNetPortRule(rs, &rule, 0); err != nil {
			return fmt.Errorf("grant the proxy port: %w", err)
		}
	}
	if err := llsys.LandlockRestrictSelf(rs, 0); err != nil {
		return fmt.Errorf("restrict with landlock: %w", err)
	}
	return nil
}

func addGrant(rs int, handled uint64, g grant) error {
	fd, err := openBeneath(unix.AT_FDCWD, g.Path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	var access uint64
	switch {
	case g.Exec:
		access = llExec
	case g.Write && dir:
		access = llRead | llWrite
	case g.Write:
		access = llReadFile | llWriteFile
	case dir:
		access = llRead
	default:
		access = llReadFile
	}
	rule := llsys.PathBeneathAttr{AllowedAccess: access & handled, ParentFd: fd}
	return llsys.LandlockAddPathBeneathRule(rs, &rule, 0)
}

// setRlimits bounds this process, which is init, and what it forks. Hard equals
// soft: a guest cannot raise its own.
func setRlimits(l rlimits) error {
	for _, r := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"cpu", unix.RLIMIT_CPU, l.CPU},
		{"file size", unix.RLIMIT_FSIZE, l.FileSize},
		{"open files", unix.RLIMIT_NOFILE, l.OpenFiles},
		{"data", unix.RLIMIT_DATA, l.Data},
		{"tasks", unix.RLIMIT_NPROC, l.Tasks},
	} {
		if r.value == 0 {
			continue
		}
		var cur unix.Rlimit
		if err := unix.Getrlimit(r.resource, &cur); err != nil {
			return fmt.Errorf("read limit of %s: %w", r.name, err)
		}
		v := min(r.value, cur.Max)
		if err := unix.Setrlimit(r.resource, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("limit %s: %w", r.name, err)
		}
	}
	// A core file would hold whatever secrets were in memory.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit core files: %w", err)
	}
	return nil
}
