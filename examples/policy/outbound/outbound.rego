# Outbound mail: inside the company it goes, outside somebody says yes, and a
# task that has read the open web may not mail outside at all. What comes back is
# marked as readable by the mail compartment only.
#
# policy:
#   bundles: [{name: outbound, dir: ./examples/policy/outbound, unsigned: true}]
#   hooks:
#     - {at: tool.call, tools: ["mail.send"], query: data.outbound.decision}
package outbound

default decision := {"effect": "deny"}

decision := {"effect": "allow", "obligations": [{"type": "label", "label": {"readers": ["mail"]}}]} if inside

decision := {
	"effect": "ask",
	"approval": {"group": "communications"},
	"reasons": [{"code": "outside", "msg": "mail leaves the company", "rule": "outbound.outside"}],
	"obligations": [{"type": "notify", "to": "security"}],
} if {
	recipient
	not inside
	not seen_web
}

decision := {
	"effect": "deny",
	"reasons": [{"code": "web", "msg": "the task has read the open web", "rule": "outbound.web"}],
} if {
	recipient
	not inside
	seen_web
}

recipient := lower(input.call.args.to)

inside if endswith(recipient, "@example.com")

seen_web if input.data.labels.integrity == "web"
