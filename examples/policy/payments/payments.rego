# Payments: small ones pass, large ones ask the finance group, and one account is
# never paid.
#
# policy:
#   bundles: [{name: payments, dir: ./examples/policy/payments, unsigned: true}]
#   hooks:
#     - {at: tool.call, tools: ["pay.*"], query: data.payments.decision}
#
# The hook matches payments only, so every other call is left to its capability.
package payments

# No rule that fits is no yes.
default decision := {
	"effect": "deny",
	"reasons": [{"code": "no_rule", "msg": "no rule allows this payment", "rule": "payments.default"}],
}

decision := {"effect": "allow"} if {
	valid
	not blocked
	input.call.args.amount <= data.limits.unattended
}

decision := {
	"effect": "ask",
	"approval": {"group": "finance"},
	"reasons": [{"code": "large", "msg": "more than the unattended limit", "rule": "payments.large"}],
} if {
	valid
	not blocked
	input.call.args.amount > data.limits.unattended
}

decision := {
	"effect": "deny",
	"reasons": [{"code": "blocked", "msg": "this account is never paid", "rule": "payments.blocked"}],
} if {
	valid
	blocked
}

# A payment without a positive amount in euro fits no rule.
valid if {
	input.call.args.amount > 0
	input.call.args.currency == "EUR"
}

blocked if input.call.args.to in data.limits.blocked
