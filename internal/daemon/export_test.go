package daemon

import "github.com/pilox/vault/internal/egress"

// SetEgress has requests leave through what stands in for the internet.
func SetEgress(c *Config, out egress.Config) { c.egress = out }
