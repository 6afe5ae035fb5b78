# Business hours: what changes something waits until somebody is there to see it.
# The time is the call's own, in UTC.
#
# policy:
#   bundles: [{name: hours, dir: ./examples/policy/business-hours, unsigned: true}]
#   hooks:
#     - {at: tool.call, query: data.business_hours.decision}
package business_hours

default decision := {"effect": "allow"}

decision := {
	"effect": "deny",
	"reasons": [{"code": "closed", "msg": "outside of business hours", "rule": "hours.closed"}],
} if {
	not input.call.read_only
	not open
}

open if {
	now := time.parse_rfc3339_ns(input.time)
	day := time.weekday([now, "UTC"])
	day in data.hours.days
	[hour, _, _] := time.clock([now, "UTC"])
	hour >= data.hours.from
	hour < data.hours.to
}
