# Break glass: destructive tools ask two groups, and on production never run while
# the task has read anything from outside.
#
# policy:
#   bundles: [{name: glass, dir: ./examples/policy/break-glass, unsigned: true}]
#   hooks:
#     - {at: tool.call, risk: high, query: data.break_glass.decision}
#     - {at: tool.call, risk: high, query: data.break_glass.second}
package break_glass

default decision := {"effect": "allow"}

decision := {
	"effect": "deny",
	"reasons": [{"code": "tainted", "msg": "data from outside is in scope", "rule": "glass.tainted"}],
} if {
	destructive
	production
	outside
}

decision := {
	"effect": "ask",
	"approval": {"group": "oncall"},
	"reasons": [{"code": "destructive", "msg": "deletes something", "rule": "glass.oncall"}],
} if {
	destructive
	not tainted
}

# One hook names one group, so a second hook names the second.
default second := {"effect": "allow"}

second := {
	"effect": "ask",
	"approval": {"group": "owners"},
	"reasons": [{"code": "production", "msg": "on production", "rule": "glass.owners"}],
} if {
	destructive
	production
}

destructive if regex.match(`^(delete|drop|destroy|purge|truncate)(_|$)`, input.call.tool)

production if input.call.args.environment == "production"

outside if input.data.labels.integrity in {"web", "tool"}

tainted if {
	production
	outside
}
