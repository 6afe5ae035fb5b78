package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// Units of measured values.
const (
	unitTime = "ns"
	unitRate = "1/s"
	unitSize = "B"
)

// A measured is one line of pvault bench. Names are stable.
type measured struct {
	Name          string  `json:"name"`
	Value         float64 `json:"value"`
	Unit          string  `json:"unit"`           // ns, 1/s, B
	Baseline      string  `json:"baseline"`       // what BaselineValue is, measured in the same run; "" for none
	BaselineValue float64 `json:"baseline_value"` // same unit
	Goal          float64 `json:"goal"`           // most for ns and B, least for 1/s; 0 for none
}

// missed reports whether m has a goal and is not there.
func (m *measured) missed() bool {
	switch {
	case m.Goal == 0:
		return false
	case m.Unit == unitRate:
		return m.Value < m.Goal
	}
	return m.Value > m.Goal
}

// A bench is one run of pvault bench.
type bench struct {
	*app
	dir      string // for ledgers
	postgres string // URL of one to measure; "" starts one
	list     []measured
	cpu      float64 // nanoseconds of CPU time of one step, as each measured last
	failed   error   // of a measurement inside an area
}

func (b *bench) add(name string, value float64, unit, baseline string, baselineValue, goal float64) {
	b.list = append(b.list, measured{name, value, unit, baseline, baselineValue, goal})
}

// areas are what can be measured, in order.
func (b *bench) areas() []struct {
	name string
	run  func(context.Context) error
} {
	return []struct {
		name string
		run  func(context.Context) error
	}{
		{"gateway", b.gatewayArea},
		{"capability", b.capabilityArea},
		{"policy", b.policyArea},
		{"flow", b.flowArea},
		{"ledger", b.ledgerArea},
		{"kill", b.killArea},
	}
}

func (a *app) bench() *cobra.Command {
	b := &bench{app: a}
	var names []string
	for _, area := range b.areas() {
		names = append(names, area.name)
	}
	var check bool
	c := &cobra.Command{
		Use:   "bench [AREA]",
		Short: "Measure this machine against the goals",
		Long: `Measure on this machine, each value beside a baseline from the same run. The areas
are ` + strings.Join(names, ", ") + `; without one, all of them.

The gateway area starts this program twice more: as a daemon with a ledger in a
temporary directory, and as an MCP server that answers at once. What else runs on the
machine is in the numbers, so its load is printed too. The goals of what is mostly
signatures are in verifications, as one costs here.`,
		Example: example("pvault bench", "pvault bench gateway --json", "pvault bench gateway --dir /var/tmp --check"),
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !slices.Contains(names, args[0]) {
				return usage{fmt.Errorf("area %q: want %s", args[0], strings.Join(names, ", "))}
			}
			err := b.measure(cmd.Context(), args)
			if err != nil {
				return err
			}
			if err := b.print(b.list, b.table); err != nil {
				return err
			}
			if check && slices.ContainsFunc(b.list, func(m measured) bool { return m.missed() }) {
				return &exit{code: exitDiffers, err: errors.New("a goal was missed")}
			}
			return nil
		},
	}
	c.Flags().StringVar(&b.dir, "dir", "", "where ledgers are written; its disk is measured too (default: the temporary directory)")
	c.Flags().StringVar(&b.postgres, "postgres", "", "URL of an empty database to measure the ledger on (default: a server started from /usr/lib/postgresql)")
	c.Flags().BoolVar(&check, "check", false, "exit with 7 if a goal was missed")
	return c
}

// measure runs the areas and says how quiet the machine was meanwhile.
func (b *bench) measure(ctx context.Context, only []string) error {
	before, at := load(), time.Now()
	used, all := cpuOfHost()
	mine := ownCPU()
	for _, area := range b.areas() {
		if len(only) > 0 && only[0] != area.name {
			continue
		}
		if err := errors.Join(area.run(ctx), b.failed); err != nil {
			return fmt.Errorf("%s: %w", area.name, err)
		}
	}
	usedNow, allNow := cpuOfHost()
	others := 0.0
	if allNow > all {
		others = 100 * float64(usedNow-used-(ownCPU()-mine)) / float64(allNow-all)
	}
	b.progress(fmt.Sprintf("%d cores, load %s before and %s after, %v", runtime.NumCPU(), before, load(), time.Since(at).Round(time.Second)))
	if others > noisy {
		fmt.Fprintf(b.err, "not quiet: other processes used %.0f %% of the machine meanwhile; the numbers are worse for it\n", others)
	}
	return nil
}

// noisy is how much of the machine, in per cent, others may use before that is
// worth saying. The kernel's own work for our processes is a few.
const noisy = 10

// table prints the list for people.
func (b *bench) table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tVALUE\tGOAL\t\tBASELINE")
	for _, m := range b.list {
		goal, verdict := "", ""
		if m.Goal != 0 {
			goal, verdict = human(m.Goal, m.Unit), b.green("met")
			if m.missed() {
				verdict = b.red("missed")
			}
		}
		base := ""
		if m.Baseline != "" {
			base = human(m.BaselineValue, m.Unit) + "  " + m.Baseline
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", m.Name, human(m.Value, m.Unit), goal, verdict, base)
	}
	_ = t.Flush()
}

// human writes a value with three or four digits.
func human(v float64, unit string) string {
	switch unit {
	case unitRate:
		return fmt.Sprintf("%.0f/s", v)
	case unitSize:
		return fmt.Sprintf("%.1f MB", v/1e6)
	}
	switch {
	case v >= 1e6 || v <= -1e6:
		return fmt.Sprintf("%.2f ms", v/1e6)
	case v >= 1e3 || v <= -1e3:
		return fmt.Sprintf("%.1f µs", v/1e3)
	}
	return fmt.Sprintf("%.0f ns", v)
}
