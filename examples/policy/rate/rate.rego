# Rate: a task that is refused again and again, or that makes more calls than a
# person would, waits for somebody to look.
#
# policy:
#   bundles: [{name: rate, dir: ./examples/policy/rate, unsigned: true}]
#   hooks:
#     - {at: tool.call, query: data.rate.decision}
package rate

default decision := {"effect": "allow"}

decision := {
	"effect": "ask",
	"approval": {"group": "policy"},
	"reasons": [{"code": "many", "msg": "more calls than usual", "rule": "rate.calls"}],
} if {
	input.history.calls >= data.rate_limits.calls
	input.history.denies < data.rate_limits.denies
}

decision := {
	"effect": "deny",
	"reasons": [{"code": "refused", "msg": "refused too often", "rule": "rate.denies"}],
} if input.history.denies >= data.rate_limits.denies
