package process

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// controllers are the ones a jail uses, with a file that version 1 has for each.
var controllers = [...]struct{ name, file string }{
	{"memory", "memory.limit_in_bytes"},
	{"pids", "pids.max"},
	{"cpu", "cpu.cfs_quota_us"},
	{"cpuacct", "cpuacct.usage"},
}

// cgroups knows where this process may make groups.
type cgroups struct {
	version int               // 1, 2, or 0 for none
	dirs    map[string]string // controller → directory to make groups in; in v2 all the same
	detail  string            // what is there, or why nothing is
	fix     string
}

// A cgroup is the groups of one jail, one directory for each hierarchy.
type cgroup struct {
	version int
	dirs    map[string]string
}

// findCgroups looks for a place to make groups by making one.
func findCgroups() cgroups {
	own, err := ownCgroups("/proc/self/cgroup")
	if err != nil {
		return cgroups{detail: err.Error(), fix: "mount /proc and /sys/fs/cgroup"}
	}
	if c, ok := findV2(own[""]); ok {
		return c
	}
	c := cgroups{version: 1, dirs: map[string]string{}}
	var missing []string
	for _, ctl := range controllers {
		p, ok := own[ctl.name]
		dir := filepath.Join("/sys/fs/cgroup", ctl.name, p)
		if !ok || !canMake(dir, ctl.file) {
			missing = append(missing, ctl.name)
			continue
		}
		c.dirs[ctl.name] = dir
	}
	if len(c.dirs) == 0 {
		return cgroups{
			detail: "no writable hierarchy: limits hold per process only",
			fix:    "run under systemd with Delegate=yes and DelegateSubgroup=daemon, or as root",
		}
	}
	c.detail = "v1"
	if missing != nil {
		c.detail += ", without " + strings.Join(missing, ", ")
	}
	return c
}

func findV2(own string) (cgroups, bool) {
	const root = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if own == "" || unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return cgroups{}, false
	}
	// A group with processes in it cannot hand controllers down (except the
	// root), so the parent is the usual place: the service's own group, with the
	// daemon in a leaf of it.
	for _, p := range []string{own, filepath.Dir(own)} {
		dir := filepath.Join(root, p)
		// It may be handed down already, or not be ours to hand down; the file
		// that canMake looks for tells.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
		if canMake(dir, "memory.max") && canMake(dir, "pids.max") {
			c := cgroups{version: 2, dirs: map[string]string{}, detail: "v2"}
			for _, ctl := range controllers {
				c.dirs[ctl.name] = dir
			}
			return c, true
		}
	}
	return cgroups{}, false
}

// canMake reports whether a group can be made in dir and has the file.
func canMake(dir, file string) bool {
	probe := filepath.Join(dir, fmt.Sprintf("pvault-%d-", os.Getpid())+rand.Text()[:8])
	if err := os.Mkdir(probe, 0o755); err != nil {
		return false
	}
	defer func() { _ = os.Remove(probe) }() // an empty group costs nothing and says nothing
	f, err := os.OpenFile(filepath.Join(probe, file), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// ownCgroups parses /proc/PID/cgroup: "ID:CONTROLLERS:PATH" a line, the
// controllers separated by commas and empty for version 2. See cgroups(7).
func ownCgroups(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read own cgroups: %w", err)
	}
	defer f.Close()
	own := map[string]string{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		_, rest, ok := strings.Cut(sc.Text(), ":")
		names, p, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || !filepath.IsAbs(p) {
			continue
		}
		for name := range strings.SplitSeq(names, ",") {
			own[name] = filepath.Clean(p)
		}
	}
	return own, sc.Err()
}

// The period over which a CPU quota is spread, as the kernel's default.
const cpuPeriod = 100 * time.Millisecond

// initTasks is what an init may need beside the guest: the threads of a Go
// runtime that mostly sleeps.
const initTasks = 16

// sweep removes groups that runners which were killed have left. The name says
// whose it was; the kernel refuses to remove one that is in use.
func (c cgroups) sweep() {
	for _, dir := range c.dirs {
		// The only error is a malformed pattern.
		old, _ := filepath.Glob(filepath.Join(dir, "pvault-*-*"))
		for _, d := range old {
			var pid int
			if _, err := fmt.Sscanf(filepath.Base(d), "pvault-%d-", &pid); err != nil || pid <= 1 {
				continue
			}
			if unix.Kill(pid, 0) == unix.ESRCH {
				_ = unix.Rmdir(d)
			}
		}
	}
}

// create makes the groups of one jail with its limits set. A nil cgroup stands
// for a host without.
func (c cgroups) create(l Limits) (*cgroup, error) {
	if c.version == 0 {
		return nil, nil
	}
	g := &cgroup{version: c.version, dirs: map[string]string{}}
	name := fmt.Sprintf("pvault-%d-%s", os.Getpid(), rand.Text()[:12])
	for ctl, dir := range c.dirs {
		d := filepath.Join(dir, name)
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(fmt.Errorf("make cgroup: %w", err), g.remove())
		}
		g.dirs[ctl] = d
	}
	if err := g.limit(l); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func (g *cgroup) limit(l Limits) error {
	mem := strconv.FormatInt(l.Memory, 10)
	pids := strconv.Itoa(l.Pids + initTasks)
	quota := strconv.FormatInt(max(1000, int64(l.CPURate*float64(cpuPeriod.Microseconds()))), 10)
	period := strconv.FormatInt(cpuPeriod.Microseconds(), 10)
	type set struct {
		ctl, file, value string
		optional         bool
	}
	sets := []set{
		{"memory", "memory.limit_in_bytes", mem, false},
		{"memory", "memory.memsw.limit_in_bytes", mem, true}, // needs swap accounting
		{"pids", "pids.max", pids, false},
		{"cpu", "cpu.cfs_period_us", period, false},
		{"cpu", "cpu.cfs_quota_us", quota, false},
	}
	if g.version == 2 {
		sets = []set{
			{"memory", "memory.max", mem, false},
			{"memory", "memory.swap.max", "0", true},
			{"memory", "memory.oom.group", "1", true},
			{"pids", "pids.max", pids, false},
			{"cpu", "cpu.max", quota + " " + period, true},
		}
	}
	for _, s := range sets {
		dir, ok := g.dirs[s.ctl]
		if !ok {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0); err != nil && !s.optional {
			return fmt.Errorf("limit %s: %w", s.ctl, err)
		}
	}
	return nil
}

// add moves a process in.
func (g *cgroup) add(pid int) error {
	for _, dir := range g.distinct() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

func (g *cgroup) distinct() []string {
	if g.version == 2 {
		return []string{g.dirs["memory"]}
	}
	var dirs []string
	for _, d := range g.dirs {
		dirs = append(dirs, d)
	}
	return dirs
}

// remove deletes the groups. The last tasks may still be on their way out when
// their init has been waited for, so it tries for up to a second.
func (g *cgroup) remove() error {
	var errs []error
	for _, dir := range g.distinct() {
		var err error
		for i := range 100 {
			if err = unix.Rmdir(dir); err != unix.EBUSY {
				break
			}
			time.Sleep(time.Duration(min(i, 10)) * time.Millisecond) //nolint:forbidigo // version 1 tells nobody when the last process has left
		}
		if err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// read returns a file of the group, "" for one that cannot be read.
func (g *cgroup) read(ctl, file string) string {
	dir, ok := g.dirs[ctl]
	if !ok {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number returns the value in a file, 0 for one that cannot be read.
func (g *cgroup) number(ctl, file string) int64 { return atoi(g.read(ctl, file)) }

// field returns a value of a "name value" list, 0 for one that cannot be read.
func (g *cgroup) field(ctl, file, name string) int64 {
	for line := range strings.Lines(g.read(ctl, file)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == name {
			return atoi(v)
		}
	}
	return 0
}

func atoi(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0 // also for "max" and what is out of range
	}
	return n
}

// oomKills returns how many tasks of the group the kernel killed for memory.
func (g *cgroup) oomKills() int64 {
	if g.version == 2 {
		return g.field("memory", "memory.events", "oom_kill")
	}
	return g.field("memory", "memory.oom_control", "oom_kill")
}

func (g *cgroup) stats() Stats {
	if g.version == 2 {
		return Stats{
			Known: true, Memory: g.number("memory", "memory.current"), MemoryPeak: g.number("memory", "memory.peak"),
			CPU:  time.Duration(g.field("cpu", "cpu.stat", "usage_usec")) * time.Microsecond,
			Pids: int(g.number("pids", "pids.current")),
		}
	}
	return Stats{
		Known: true, Memory: g.number("memory", "memory.usage_in_bytes"), MemoryPeak: g.number("memory", "memory.max_usage_in_bytes"),
		CPU:  time.Duration(g.number("cpuacct", "cpuacct.usage")),
		Pids: int(g.number("pids", "pids.current")),
	}
}
