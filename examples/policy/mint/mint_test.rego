package mint_test

import data.mint

link(life, grant) := {"event": {"life_s": life, "grants": [grant]}}

reading := {"server": "files", "name": "read", "any": false, "ask": null}

test_an_hour if mint.decision.effect == "allow" with input as link(3600, reading)

test_a_day if mint.decision.effect == "deny" with input as link(86400, reading)

test_open_arguments if mint.decision.effect == "deny" with input as link(3600, object.union(reading, {"any": true}))

test_a_payment_that_asks if mint.decision.effect == "allow" with input as link(3600, {"server": "pay", "name": "transfer", "any": false, "ask": ["finance"]})

test_a_payment_that_does_not if mint.decision.effect == "deny" with input as link(3600, {"server": "pay", "name": "transfer", "any": false, "ask": null})
