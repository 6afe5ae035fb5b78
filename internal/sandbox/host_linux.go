package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ProbeHost looks at the host. It changes nothing and proves little: what holds
// inside a jail is the business of a runner's self-test.
func ProbeHost() []Fact {
	return []Fact{probeLandlock(), probeSeccomp(), probeUserNS(), probeCgroup(), probeKVM(), probeTPM()}
}

// LandlockABI returns the version of Landlock the kernel speaks, 0 for none. It
// asks the kernel: the list of security modules is often not mounted.
func LandlockABI() int {
	v, err := llsys.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return v
}

func probeLandlock() Fact {
	f := Fact{Name: "landlock", State: Absent, Fix: "boot a kernel of 6.2 or later with lsm=landlock,... in its command line"}
	if v := LandlockABI(); v > 0 {
		f.State, f.Detail = Present, fmt.Sprintf("ABI %d", v)
		if v >= 3 {
			f.Fix = ""
		}
	}
	return f
}

func probeSeccomp() Fact {
	// PR_GET_SECCOMP fails with EINVAL on a kernel without it.
	if _, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		return Fact{Name: "seccomp", State: Absent, Detail: err.Error(), Fix: "boot a kernel with CONFIG_SECCOMP_FILTER"}
	}
	return Fact{Name: "seccomp", State: Present}
}

func probeUserNS() Fact {
	f := Fact{Name: "user namespaces", State: Unknown}
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.State, f.Fix = Absent, "boot a kernel with CONFIG_USER_NS"
	case err != nil:
		f.Detail = err.Error()
	case strings.TrimSpace(string(b)) == "0":
		f.State, f.Detail, f.Fix = Absent, "max_user_namespaces is 0", "sysctl user.max_user_namespaces=10000"
	default:
		f.State = Present
	}
	if v, err := os.ReadFile("/proc/sys/kernel/unprivileged_userns_clone"); err == nil && strings.TrimSpace(string(v)) == "0" {
		f.State, f.Detail, f.Fix = Absent, "off for plain users", "sysctl kernel.unprivileged_userns_clone=1, or run pvault as root"
	}
	if v, err := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); err == nil && strings.TrimSpace(string(v)) == "1" {
		f.Detail, f.Fix = "AppArmor confines those of plain users", "install an AppArmor profile for pvault that allows userns, or run it as root"
	}
	return f
}

func probeCgroup() Fact {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return Fact{Name: "cgroup", State: Absent, Fix: "mount cgroup2 on /sys/fs/cgroup; without it limits hold per process only"}
	}
	f := Fact{Name: "cgroup", State: Present, Detail: "v1"}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		f.Detail = "v2"
	}
	return f
}

func probeKVM() Fact {
	f := Fact{Name: "kvm", State: Absent, Fix: "use a host with hardware virtualisation and load kvm_intel or kvm_amd"}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		// The device opens on hosts that run guests a thousand times too slowly.
		// Only a timed guest would tell, and this version has none.
		return Fact{Name: "kvm", State: Present, Detail: "/dev/kvm opens; whether a guest boots is unknown without a probe guest"}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		f.State, f.Detail, f.Fix = Present, "/dev/kvm: "+err.Error(), "add this user to the group kvm"
	case !errors.Is(err, unix.ENOENT):
		f.State, f.Detail = Unknown, "/dev/kvm: "+err.Error()
	}
	return f
}

func probeTPM() Fact {
	for _, p := range []string{"/dev/tpmrm0", "/dev/tpm0"} {
		if _, err := os.Stat(p); err == nil {
			return Fact{Name: "tpm", State: Present, Detail: p}
		}
	}
	return Fact{Name: "tpm", State: Absent, Detail: "keys live in files", Fix: "enable the TPM in the firmware"}
}
