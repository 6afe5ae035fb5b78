package egress_hosts_test

import data.egress_hosts

request(host, method) := {"call": {"tool": host, "args": {"method": method}}}

test_a_listed_host if egress_hosts.decision.effect == "allow" with input as request("api.bank.example", "GET")

test_below_a_domain if egress_hosts.decision.effect == "allow" with input as request("a.corp.example", "GET")

test_a_name_that_only_ends_so if egress_hosts.decision.effect == "deny" with input as request("evilcorp.example", "GET")

test_another_host if egress_hosts.decision.effect == "deny" with input as request("collect.example", "GET")

test_writing_is_told if egress_hosts.decision.obligations[0].to == "security" with input as request("api.bank.example", "POST")
