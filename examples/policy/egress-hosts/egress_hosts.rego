# Egress hosts: whatever a task file grants, requests go to hosts of this list only,
# and a host that the task has not reached before is told to security.
#
# policy:
#   bundles: [{name: egress, dir: ./examples/policy/egress-hosts, unsigned: true}]
#   hooks:
#     - {at: tool.call, kinds: [egress], query: data.egress_hosts.decision}
package egress_hosts

default decision := {
	"effect": "deny",
	"reasons": [{"code": "host", "msg": "the host is not on the company's list", "rule": "egress.host"}],
}

decision := {"effect": "allow"} if {
	listed
	not writes
}

decision := {"effect": "allow", "obligations": [{"type": "notify", "to": "security"}]} if {
	listed
	writes
}

listed if input.call.tool in data.egress.hosts

listed if {
	some domain in data.egress.domains
	endswith(input.call.tool, concat("", [".", domain]))
}

writes if input.call.args.method in {"POST", "PUT", "PATCH", "DELETE"}
