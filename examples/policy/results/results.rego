# Results: what comes back is looked at before it is released. A result that is larger
# than rules see, or that holds what looks like a private key, is withheld.
#
# policy:
#   bundles: [{name: results, dir: ./examples/policy/results, unsigned: true}]
#   hooks:
#     - {at: tool.result, query: data.results.decision}
package results

default decision := {"effect": "allow"}

decision := {
	"effect": "deny",
	"reasons": [{"code": "unseen", "msg": "larger than rules see", "rule": "results.size"}],
} if input.event.result == null

decision := {
	"effect": "deny",
	"reasons": [{"code": "key", "msg": "holds a private key", "rule": "results.key"}],
} if {
	some block in input.event.result.content
	contains(block.text, "PRIVATE KEY-----")
}
