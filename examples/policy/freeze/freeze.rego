# Change freeze: while a window is open, only tools that read may run. The time
# is the call's own (input.time), so the same call always gets the same answer.
#
# policy:
#   bundles: [{name: freeze, dir: ./examples/policy/freeze, unsigned: true}]
#   hooks:
#     - {at: tool.call, query: data.freeze.decision}
package freeze

default decision := {"effect": "allow"}

decision := {
	"effect": "deny",
	"reasons": [{"code": "frozen", "msg": reason, "rule": "freeze.window"}],
} if {
	not input.call.read_only
	reason := open_windows[_]
}

# The reasons of the windows that are open, sorted as sets are.
open_windows contains w.reason if {
	some w in data.windows
	now := time.parse_rfc3339_ns(input.time)
	now >= time.parse_rfc3339_ns(w.from)
	now < time.parse_rfc3339_ns(w.to)
}
