package process

import (
	"fmt"
	"strings"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// allowed lists the system calls a guest may make, for all architectures; names
// an architecture lacks are skipped. Everything else gives EPERM. What is left
// out on purpose:
//
//   - memfd_create and execveat: a file without a path escapes Landlock's EXECUTE
//   - ptrace, process_vm_*, pidfd_getfd, kcmp: other processes' memory and files
//   - mount, fsopen, open_tree, pivot_root, unshare, setns, chroot: the view
//   - bpf, perf_event_open, userfaultfd, keyctl, io_uring: kernel attack surface
//   - open_by_handle_at, mknod, quotactl, System V IPC, message queues
const allowed = `
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
open openat openat2 creat access faccessat faccessat2 stat fstat lstat newfstatat statx readlink readlinkat
getcwd chdir fchdir getdents getdents64 statfs fstatfs umask fcntl flock fsync fdatasync sync_file_range
ftruncate truncate fallocate fadvise64 readahead copy_file_range sendfile
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat
getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
pipe pipe2 dup dup2 dup3 eventfd eventfd2 signalfd signalfd4 select pselect6 poll ppoll
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
mmap munmap mprotect mremap madvise msync mincore mlock mlock2 munlock brk membarrier
pkey_alloc pkey_free pkey_mprotect
fork vfork clone execve exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid setsid setpgid
capget prctl arch_prctl ioctl prlimit64 getrlimit setrlimit getrusage times getpriority
sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
set_tid_address set_robust_list get_robust_list rseq futex futex_waitv restart_syscall getcpu
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack pause
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time
alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime
getrandom uname sysinfo
socketpair sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockname getpeername getsockopt setsockopt`

// absent lists system calls that look unimplemented, so that a runtime falls
// back instead of giving up: glibc to clone, libuv to its thread pool.
const absent = `clone3 io_uring_setup io_uring_enter io_uring_register memfd_create memfd_secret landlock_create_ruleset`

// proxied is what a guest with a proxy may do beside.
const proxied = `socket connect`

// newNamespaces are the clone flags that would make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// A refusal denies one allowed system call when, in any of its alternatives,
// every condition holds.
type refusal struct {
	name string
	when []seccomp.ArgumentConditions
}

func cond(arg uint32, op seccomp.Operation, v uint64) seccomp.Condition {
	return seccomp.Condition{Argument: arg, Operation: op, Value: v}
}

// noneOf holds if arg is none of vs.
func noneOf(arg uint32, vs ...uint64) seccomp.ArgumentConditions {
	c := make(seccomp.ArgumentConditions, len(vs))
	for i, v := range vs {
		c[i] = cond(arg, seccomp.NotEqual, v)
	}
	return c
}

func refusals() []refusal {
	return []refusal{
		{"clone", []seccomp.ArgumentConditions{{cond(0, seccomp.BitsSet, newNamespaces)}}},
		// Another process's limits are not a guest's business.
		{"prlimit64", []seccomp.ArgumentConditions{noneOf(0, 0)}},
		{"socketpair", []seccomp.ArgumentConditions{noneOf(0, unix.AF_UNIX)}},
		// TCP over IPv4 to the proxy. 0xe leaves SOCK_STREAM of all types; the
		// flags above the low byte are free.
		{"socket", []seccomp.ArgumentConditions{noneOf(0, unix.AF_INET), {cond(1, seccomp.BitsSet, 0xe)}}},
		// Terminals have ioctls that type into them (TIOCSTI); devices have worse.
		{"ioctl", []seccomp.ArgumentConditions{noneOf(1, fionread, unix.TCGETS, unix.TIOCGWINSZ, fionbio, fioclex, fionclex)}},
		{"prctl", []seccomp.ArgumentConditions{noneOf(0, unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_SET_PDEATHSIG,
			unix.PR_GET_DUMPABLE, unix.PR_SET_DUMPABLE, unix.PR_CAPBSET_READ, unix.PR_GET_NO_NEW_PRIVS,
			unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP, unix.PR_SET_TIMERSLACK, unix.PR_GET_TIMERSLACK,
			unix.PR_SET_THP_DISABLE, unix.PR_SET_VMA)}},
	}
}

// The ioctls that x/sys/unix does not name on Linux.
const (
	fionread = 0x541b
	fionclex = 0x5450
	fioclex  = 0x5451
	fionbio  = 0x5421
)

// filters builds the seccomp filters of a guest. The kernel runs all and takes
// the strictest answer. There is one filter for the names and one for each
// system call whose arguments matter, because the assembler does not reload the
// system call number after it looked at an argument: in one filter, a refused
// argument would be compared with the numbers that follow, and socket(2, …) would
// pass as system call 2.
func filters(proxy bool) ([]seccomp.Filter, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp architecture: %w", err)
	}
	known := func(list string) []string {
		var names []string
		for name := range strings.FieldsSeq(list) {
			if _, ok := info.SyscallNames[name]; ok {
				names = append(names, name)
			}
		}
		return names
	}
	names := known(allowed)
	if proxy {
		names = append(names, known(proxied)...)
	}
	fs := []seccomp.Filter{{Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{
			{Names: names, Action: seccomp.ActionAllow},
			{Names: known(absent), Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)},
		},
	}}}
	for _, r := range refusals() {
		g := seccomp.SyscallGroup{Action: seccomp.ActionErrno}
		for _, c := range r.when {
			g.NamesWithCondtions = append(g.NamesWithCondtions, seccomp.NameWithConditions{Name: r.name, Conditions: c})
		}
		fs = append(fs, seccomp.Filter{Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{g},
		}})
	}
	return fs, nil
}

// loadSeccomp restricts the calling thread. no_new_privs is set already. The
// filters about arguments go first: each load is itself checked by those before.
func loadSeccomp(proxy bool) error {
	fs, err := filters(proxy)
	if err != nil {
		return err
	}
	for i := len(fs) - 1; i >= 0; i-- {
		if err := seccomp.LoadFilter(fs[i]); err != nil {
			return fmt.Errorf("load seccomp filter: %w", err)
		}
	}
	return nil
}
