package payments_test

import data.payments

pay(amount, currency, to) := {"call": {"args": {"amount": amount, "currency": currency, "to": to}}}

test_small if payments.decision.effect == "allow" with input as pay(1, "EUR", "DE1")

test_large_asks if payments.decision.approval.group == "finance" with input as pay(1000000, "EUR", "DE1")

test_another_currency if payments.decision.effect == "deny" with input as pay(1, "USD", "DE1")

test_a_blocked_account if payments.decision.reasons[0].code == "blocked" with input as pay(1, "EUR", data.limits.blocked[0])

test_nothing if payments.decision.effect == "deny" with input as pay(0, "EUR", "DE1")
