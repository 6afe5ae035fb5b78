package break_glass_test

import data.break_glass

call(tool, environment, integrity) := {"call": {"tool": tool, "args": {"environment": environment}}, "data": {"labels": {"integrity": integrity}}}

test_reading if break_glass.decision.effect == "allow" with input as call("list_tables", "production", "web")

test_dropping_asks if break_glass.decision.approval.group == "oncall" with input as call("drop_table", "staging", "web")

test_production_asks_both if {
	doc := call("delete_volume", "production", "org")
	break_glass.decision.approval.group == "oncall" with input as doc
	break_glass.second.approval.group == "owners" with input as doc
}

test_tainted_never if break_glass.decision.effect == "deny" with input as call("delete_volume", "production", "web")

test_a_name_that_only_begins_so if break_glass.decision.effect == "allow" with input as call("deleted_items", "production", "org")

test_reading_asks_nobody_else if break_glass.second.effect == "allow" with input as call("list_tables", "production", "org")
