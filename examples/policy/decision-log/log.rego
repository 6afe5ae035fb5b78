# Decision log: what pvault policy log hides before it writes. Its input is one event;
# what the rules of a call see is input.input there.
#
# policy:
#   bundles: [{name: log, dir: ./examples/policy/decision-log, unsigned: true}]
package system.log

# Reads of public data are not worth a line.
drop if {
	input.vault.effect == "allow"
	input.input.call.read_only
	input.input.data.labels.confidentiality == "public"
}

# Arguments that hold a secret or a person, in whatever tool.
hidden := {"password", "token", "iban", "birthday"}

mask contains sprintf("/input/call/args/%s", [name]) if {
	some name, _ in input.input.call.args
	name in hidden
}

# A message can quote an argument, so it goes with it.
mask contains "/result/reasons" if {
	some name, _ in input.input.call.args
	name in hidden
}

# Who it was is a pseudonym for whom the log is shipped to.
mask contains {"op": "upsert", "path": "/input/principal/user", "value": "user"} if input.input.principal.user
