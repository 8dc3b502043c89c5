package headraceegress

policy := input.review.object.spec

violation contains {"msg": "what may go out is not said"} if not "Egress" in policy.policyTypes

violation contains {"msg": sprintf("anywhere may be reached, by more than the ports %v", [input.parameters.ports])} if {
	some rule in policy.egress
	is_open(rule)
	not only_known(rule)
}

is_open(rule) if not rule.to

is_open(rule) if count(rule.to) == 0

is_open(rule) if {
	some peer in rule.to
	[_, bits] := split(peer.ipBlock.cidr, "/")
	to_number(bits) < 8
}

only_known(rule) if {
	count(rule.ports) > 0
	every each in rule.ports {
		each.port in input.parameters.ports
		not each.endPort
	}
}
