# Eight rules as a company might have them, for tests and benchmarks.
package vault.toolcall

default decision := {"effect": "deny", "reasons": [{"code": "default", "msg": "no rule", "rule": "default"}]}

decision := {"effect": "deny", "reasons": deny} if count(deny) > 0

decision := {"effect": "ask", "approval": {"group": "finance"}, "reasons": asks} if {
	count(deny) == 0
	count(asks) > 0
}

decision := {"effect": "allow"} if {
	count(deny) == 0
	count(asks) == 0
	known
}

known if input.call.server in data.servers

deny contains {"code": "expired", "msg": "late", "rule": "expired"} if {
	time.parse_rfc3339_ns(input.grant.exp) < time.parse_rfc3339_ns(input.time)
}

deny contains {"code": "destructive", "msg": "never", "rule": "destructive"} if {
	input.call.tool in {"drop_table", "delete_volume"}
}

deny contains {"code": "tenant", "msg": "foreign tenant", "rule": "tenant"} if {
	input.principal.tenant != "acme"
}

deny contains {"code": "denies", "msg": "too many refusals", "rule": "denies"} if input.history.denies > 20

asks contains {"code": "large", "msg": "large amount", "rule": "large"} if {
	input.call.tool == "transfer"
	input.call.args.amount > 500
}

asks contains {"code": "tainted", "msg": "untrusted data", "rule": "tainted"} if {
	input.data.labels.integrity == "web"
	not input.call.read_only
}

asks contains {"code": "domain", "msg": "unusual domain", "rule": "domain"} if {
	some to in input.call.args.to
	not endswith(to, "@example.com")
}
