package daemon

import "github.com/pilox/vault/internal/egress"

// SetEgress has requests leave through what stands in for the internet.
func SetEgress(c *Config, out egress.Config) { c.egress = out }

// RecoverySteps are the steps of a recovery.
var RecoverySteps = []string{"plan", "rows", "ledger", "successor", "aside", "checkpoint", "end"}

// StopRecovery has r end with err after a step, as if it were killed there.
func StopRecovery(r *Recovery, after string, err error) {
	r.step = func(step string) error {
		if step == after {
			return err
		}
		return nil
	}
}
