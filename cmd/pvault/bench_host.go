package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What the host says about processes, in /proc. Elsewhere everything is 0, which
// is printed as not known.

// clockTick is the unit of times in /proc: 100 a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuOf returns the CPU time that processes have used so far.
func cpuOf(pids ...int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything; user and system time are the
		// 12th and 13th field after it.
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			continue
		}
		for _, s := range f[11:13] {
			n, err := strconv.ParseInt(s, 10, 64)
			if err == nil {
				sum += time.Duration(n) * clockTick
			}
		}
	}
	return sum
}

// cpuOfHost returns the CPU time that everything on this host has used, and the
// time that there was.
func cpuOfHost() (used, all time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	// user nice system idle iowait irq softirq steal; guest time is in user.
	for i, s := range strings.Fields(line) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || i > 8 {
			continue
		}
		all += time.Duration(n) * clockTick
		if i != 4 && i != 5 {
			used += time.Duration(n) * clockTick
		}
	}
	return used, all
}

// resident returns the resident memory of a process in bytes.
func resident(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		return 0
	}
	return pages * float64(os.Getpagesize())
}

// watchMemory looks at the memory of a process ten times a second and returns a
// function that stops that and returns the most it saw.
func watchMemory(ctx context.Context, pid int) func() float64 {
	ctx, stop := context.WithCancel(ctx)
	most := resident(pid)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				most = max(most, resident(pid))
			case <-ctx.Done():
				return
			}
		}
	})
	return func() float64 {
		stop()
		wg.Wait()
		return most
	}
}

// load returns the load averages as the kernel prints them.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "not known"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

// ownCPU returns the CPU time of this process and of its children that have ended.
func ownCPU() time.Duration {
	var sum time.Duration
	for _, who := range [...]int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
