package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
)

// probe is the guest of the tour: it tries what a program in a sandbox must not
// be able to do and prints a line for each attempt, OPEN for what succeeded.
func (a *app) probe() *cobra.Command {
	var file, connect string
	c := &cobra.Command{
		Use: "probe", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			try := func(what string, err error) {
				word := "closed"
				if err == nil {
					word = "OPEN"
				}
				fmt.Fprintf(a.out, "%s %s: %v\n", word, what, err)
			}
			_, err := os.ReadFile(file)
			try("read "+file, err)
			_, err = os.ReadFile("/etc/passwd")
			try("read /etc/passwd", err)
			_, err = os.ReadDir("/proc")
			try("list /proc", err)
			dial := net.Dialer{Timeout: 2 * time.Second}
			conn, err := dial.DialContext(cmd.Context(), "tcp", connect)
			if err == nil {
				_ = conn.Close()
			}
			try("connect to the host's "+connect, err)
			try("execute /bin/sh", exec.CommandContext(cmd.Context(), "/bin/sh", "-c", "true").Run())
			try("write to the root", os.WriteFile("/x", nil, 0o600))
			if n := len(os.Environ()); n > 1 { // PVAULT_URL, the channel
				try(fmt.Sprintf("see %d environment variables", n), nil)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", "", "file that was not granted")
	c.Flags().StringVar(&connect, "connect", "", "address that was not granted")
	return c
}
