package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pilox/vault/internal/daemon"
)

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "What this host can really enforce",
		Long: `Try to break out of a sandbox and say what stopped it, layer by layer, and what to
change on this host for a better grade. Needs no daemon.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, derr := daemon.Doctor(cmd.Context())
			if raw == nil {
				return derr
			}
			if err := a.print(raw, func(w io.Writer) { printDoctor(w, raw) }); err != nil {
				return err
			}
			return derr
		},
	}
}

func printDoctor(w io.Writer, raw json.RawMessage) {
	var d struct {
		Backends []struct {
			Backend string
			Grade   string
			Layers  []struct {
				Layer       string
				On          bool
				Detail, Fix string
			}
			Checks []struct {
				Name, Layer, Want, Got string
				Pass                   bool
			}
		}
		Host []struct{ Name, State, Detail, Fix string }
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		fmt.Fprintln(w, string(raw))
		return
	}
	for _, b := range d.Backends {
		fmt.Fprintf(w, "%-10s grade %s\n", b.Backend, b.Grade)
		for _, l := range b.Layers {
			state := "on "
			if !l.On {
				state = "OFF"
			}
			fmt.Fprintf(w, "  %s  %-12s %s\n", state, l.Layer, l.Detail)
			if l.Fix != "" {
				fmt.Fprintf(w, "       fix: %s\n", l.Fix)
			}
		}
		for _, c := range b.Checks {
			mark := "ok  "
			if !c.Pass {
				mark = "FAIL"
			}
			fmt.Fprintf(w, "  %s %-28s %-12s wanted %s, got %s\n", mark, c.Name, c.Layer, c.Want, c.Got)
		}
	}
	fmt.Fprintln(w, "host")
	for _, f := range d.Host {
		fmt.Fprintf(w, "  %-8s %-20s %s\n", f.State, f.Name, f.Detail)
		if f.Fix != "" {
			fmt.Fprintf(w, "           fix: %s\n", f.Fix)
		}
	}
}
