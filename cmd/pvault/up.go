package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) up() *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Start the daemon",
		Long: `Start the daemon in the foreground: ledger, gateway, sandboxes, admin socket and one
loopback listener. Without a configuration it runs on embedded defaults. Ctrl-C stops
it after the calls in flight; SIGHUP reads the policy bundles again, and keeps those in
force if the new ones do not load.`,
		Example: example("pvault up", "pvault up --config vault.yaml --json"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := a.load()
			if err != nil {
				return err
			}
			d, err := daemon.Open(cmd.Context(), conf, a.logger(conf))
			if err != nil {
				return fmt.Errorf("start: %w", err)
			}
			if err = d.Listen(cmd.Context()); err == nil {
				banner := d.Banner()
				err = a.print(banner, func(w io.Writer) { fmt.Fprint(w, banner.String()) })
			}
			if err == nil {
				a.serve(cmd.Context(), d)
			}
			stop := time.Now()
			if cerr := d.Close(); err == nil {
				err = cerr
			}
			a.progress(fmt.Sprintf("stopped in %v", time.Since(stop).Round(time.Millisecond)))
			return err
		},
	}
}

// serve waits until ctx ends and reloads the policy when asked.
func (a *app) serve(ctx context.Context, d *daemon.Daemon) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if err := d.Reload(ctx); err != nil {
				fmt.Fprintln(a.err, a.red("error: ")+err.Error())
				continue
			}
			a.progress("policy read again")
		}
	}
}

func (a *app) logger(c daemon.Config) *slog.Logger {
	level := slog.LevelInfo
	_ = level.UnmarshalText([]byte(c.Log.Level)) // checked when the configuration was read
	o := &slog.HandlerOptions{Level: level}
	if c.Log.JSON || a.json {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}
