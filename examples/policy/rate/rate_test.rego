package rate_test

import data.rate

after(calls, denies) := {"history": {"calls": calls, "denies": denies}}

test_a_few if rate.decision.effect == "allow" with input as after(10, 1)

test_many_ask if rate.decision.effect == "ask" with input as after(500, 0)

test_refused_too_often if rate.decision.effect == "deny" with input as after(3, 20)

test_refused_is_stricter if rate.decision.effect == "deny" with input as after(900, 20)
