# Four eyes: nobody approves in a task that acts for them, and a key without a
# passphrase approves nothing of high risk.
#
# policy:
#   bundles: [{name: eyes, dir: ./examples/policy/four-eyes, unsigned: true}]
#   hooks:
#     - {at: approval.resolve, query: data.four_eyes.decision}
package four_eyes

default decision := {"effect": "allow"}

decision := {
	"effect": "deny",
	"reasons": [{"code": "self", "msg": "the task acts for the approver", "rule": "eyes.self"}],
} if own_task

decision := {
	"effect": "deny",
	"reasons": [{"code": "default", "msg": "the default key does not approve what is risky", "rule": "eyes.default"}],
} if {
	not own_task
	input.event.risk == "high"
	input.event.approver == "key:default"
}

own_task if data.people[input.event.approver] == input.principal.user
