package freeze_test

import data.freeze

at(time, reads) := {"time": time, "call": {"read_only": reads}}

test_before if freeze.decision.effect == "allow" with input as at("2026-12-19T23:59:59Z", false)

test_within if freeze.decision.effect == "deny" with input as at("2026-12-24T12:00:00Z", false)

test_reading_within if freeze.decision.effect == "allow" with input as at("2026-12-24T12:00:00Z", true)

test_the_end_is_outside if freeze.decision.effect == "allow" with input as at("2027-01-03T00:00:00Z", false)
