package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The daemon as people run it cannot gain privileges and leaves no core dump, on
// any of its threads.
func TestDaemonGivesUpPrivileges(t *testing.T) {
	p := newProgram(t, pvaultBinary(t))
	p.start()
	dir := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	threads, err := filepath.Glob(dir + "/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(b), "NoNewPrivs:\t1") {
			t.Errorf("%s: it could gain privileges", file)
		}
	}
	limits, err := os.ReadFile(dir + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Errorf("core dumps: %s", line)
		}
	}
}
