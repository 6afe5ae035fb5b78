package business_hours_test

import data.business_hours

effect(time, reads) := d.effect if {
	d := business_hours.decision with input as {"time": time, "call": {"read_only": reads}}
}

test_tuesday_noon if effect("2026-11-24T12:00:00Z", false) == "allow"

test_tuesday_night if effect("2026-11-24T22:00:00Z", false) == "deny"

test_saturday if effect("2026-11-28T12:00:00Z", false) == "deny"

test_reading_at_night if effect("2026-11-24T22:00:00Z", true) == "allow"

test_the_last_hour_is_over if effect("2026-11-24T18:00:00Z", false) == "deny"
