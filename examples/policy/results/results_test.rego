package results_test

import data.results

text(s) := {"event": {"result": {"content": [{"type": "text", "text": s}]}}}

test_text if results.decision.effect == "allow" with input as text("an invoice")

test_a_key if results.decision.effect == "deny" with input as text("-----BEGIN PRIVATE KEY-----")

test_too_large if results.decision.effect == "deny" with input as {"event": {"result": null}}

test_no_content if results.decision.effect == "allow" with input as {"event": {"result": {}}}
