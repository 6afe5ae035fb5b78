package four_eyes_test

import data.four_eyes

answer(approver, principal, risk) := {"event": {"approver": approver, "risk": risk}, "principal": {"user": principal}}

test_another_person if four_eyes.decision.effect == "allow" with input as answer("key:bob", "user:anna@example.com", "high")

test_oneself if four_eyes.decision.effect == "deny" with input as answer("key:anna", "user:anna@example.com", "low")

test_the_default_key if four_eyes.decision.effect == "deny" with input as answer("key:default", "user:anna@example.com", "high")

test_the_default_key_at_low_risk if four_eyes.decision.effect == "allow" with input as answer("key:default", "user:anna@example.com", "low")
