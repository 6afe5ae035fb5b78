package system.log_test

import data.system.log

event(effect, args) := {
	"vault": {"effect": effect},
	"input": {
		"call": {"read_only": true, "args": args},
		"data": {"labels": {"confidentiality": "public"}},
		"principal": {"user": "user:clerk@example.com"},
	},
}

test_public_reads_are_dropped if log.drop with input as event("allow", {})

test_refusals_are_not if not log.drop with input as event("deny", {})

test_secrets_are_hidden if {
	masks := log.mask with input as event("deny", {"iban": "DE02", "note": "x"})
	masks == {
		"/input/call/args/iban",
		"/result/reasons",
		{"op": "upsert", "path": "/input/principal/user", "value": "user"},
	}
}
