package main

import (
	"fmt"
	"io"
	"log/slog"
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
it after the calls in flight.`,
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
				<-cmd.Context().Done()
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

func (a *app) logger(c daemon.Config) *slog.Logger {
	level := slog.LevelInfo
	_ = level.UnmarshalText([]byte(c.Log.Level)) // checked when the configuration was read
	o := &slog.HandlerOptions{Level: level}
	if c.Log.JSON || a.json {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}
