package outbound_test

import data.outbound

mail(to, integrity) := {"call": {"args": {"to": to}}, "data": {"labels": {"integrity": integrity}}}

test_inside if outbound.decision.effect == "allow" with input as mail("Anna@example.com", "web")

test_outside_asks if outbound.decision.effect == "ask" with input as mail("a@customer.example", "org")

test_outside_after_the_web if outbound.decision.effect == "deny" with input as mail("a@customer.example", "web")

test_nobody if outbound.decision.effect == "deny" with input as {"call": {"args": {}}, "data": {"labels": {"integrity": "org"}}}
