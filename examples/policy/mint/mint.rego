# Mint: what an approver may hand out. No task lives longer than a working day, none is
# without constraints on its arguments, and what pays names who is asked.
#
# policy:
#   bundles: [{name: mint, dir: ./examples/policy/mint, unsigned: true}]
#   hooks:
#     - {at: token.mint, query: data.mint.decision}
package mint

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": problems} if count(problems) > 0

problems contains {"code": "long", "msg": "longer than a working day", "rule": "mint.life"} if {
	input.event.life_s > (10 * 60) * 60
}

problems contains {"code": "open", "msg": "arguments without constraints", "rule": "mint.any"} if {
	some g in input.event.grants
	g.any
}

problems contains {"code": "unasked", "msg": "payments name who is asked", "rule": "mint.pay"} if {
	some g in input.event.grants
	g.server == "pay"
	count(asked(g)) == 0
}

asked(g) := g.ask if is_array(g.ask)

else := []
