package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/gateway"
	"github.com/pilox/vault/internal/store"
	"github.com/pilox/vault/internal/taskfile"
)

// Autonomy says what the autonomy levels of task files mean here. What it does not
// name is as built in.
type Autonomy struct {
	Strikes int              `yaml:"strikes"` // refusals that lower the level of a task by a step; zero means 3
	Levels  map[string]Level `yaml:"levels"`  // L0 to L5
}

// A Level redefines one level. What it leaves out is as built in.
type Level struct {
	AskAt    string        `yaml:"ask_at"`    // least risk from which on calls ask: low, medium, high, none
	Group    string        `yaml:"group"`     // approval group that is asked
	Calls    int64         `yaml:"calls"`     // most calls of a task
	Life     time.Duration `yaml:"life"`      // longest life of a task
	MinGrade string        `yaml:"min_grade"` // least sandbox grade: A, B, C, D or none
}

// levels returns the levels that are in force.
func (a *Autonomy) levels() (taskfile.Levels, error) {
	out := taskfile.DefaultLevels()
	for name, l := range a.Levels {
		level := out[name] // a name that is none is refused below
		if l.AskAt != "" {
			level.AskAt = l.AskAt
		}
		if l.Group != "" {
			level.Group = l.Group
		}
		if l.Calls != 0 {
			level.Calls = l.Calls
		}
		if l.Life != 0 {
			level.Life = l.Life
		}
		if l.MinGrade != "" {
			g, err := vault.ParseGrade(l.MinGrade)
			if err != nil {
				return nil, fmt.Errorf("autonomy.levels.%s.min_grade: %w", name, err)
			}
			level.MinGrade = g
		}
		out[name] = level
	}
	if a.Strikes < 0 || a.Strikes > 100 {
		return nil, fmt.Errorf("autonomy.strikes %d: want 1 to 100", a.Strikes)
	}
	return out, out.Check()
}

// gatewayLevels are the levels as the gateway enforces them.
func gatewayLevels(levels taskfile.Levels) []gateway.Level {
	var out []gateway.Level
	for _, name := range taskfile.LevelNames {
		l := gateway.Level{Name: name, Group: levels[name].Group}
		switch levels[name].AskAt {
		case "low":
			l.AskAt = vault.RiskLow
		case "medium":
			l.AskAt = vault.RiskMedium
		case "high":
			l.AskAt = vault.RiskHigh
		default:
			l.Silent = true
		}
		out = append(out, l)
	}
	return out
}

// restoreAutonomy gives an open task of a past daemon the level it began with, less
// what the violations on record cost it.
func (d *Daemon) restoreAutonomy(ctx context.Context, run vault.TaskID, violations int) error {
	row, err := d.rows.Task(ctx, run)
	if errors.Is(err, store.ErrNotFound) {
		return nil // the daemon's own run, or an opening that got no further
	}
	if err != nil {
		return err
	}
	doc, err := decodeTask(row)
	if err != nil || doc.Autonomy == "" {
		return err
	}
	return d.gateway.Autonomy.Set(run, doc.Autonomy, violations)
}
