package headracegpus

gpus(container) := [name |
	some name in object.keys(container.resources.limits)
	is_gpu(name)
]

is_gpu(name) if startswith(name, "nvidia.com/")

is_gpu(name) if name == "amd.com/gpu"

violation contains {"msg": sprintf("container %v asks for %v of %v: more than %v", [container.name, wanted, name, input.parameters.most])} if {
	some spec in specs(input.review.object)
	some container in containers(spec)
	some name in gpus(container)
	wanted := container.resources.limits[name]
	not within(wanted)
}

# What is no plain number, such as 1k, is more.
within(wanted) if {
	regex.match(`^[0-9]+$`, sprintf("%v", [wanted]))
	to_number(wanted) <= input.parameters.most
}

# The device plugin and DRA do not know of each other: each would hand out GPUs of its own.
violation contains {"msg": "GPUs are asked for by a limit and by a claim"} if {
	some spec in specs(input.review.object)
	count(spec.resourceClaims) > 0
	some container in containers(spec)
	count(gpus(container)) > 0
}

# A claim, or a template of claims.
devices := input.review.object.spec.devices

devices := input.review.object.spec.spec.devices

requests contains request if {
	some each in devices.requests
	request := each.exactly
}

requests contains request if {
	some each in devices.requests
	some request in each.firstAvailable
}

violation contains {"msg": sprintf("a claim of %v devices is of more than %v", [request.count, input.parameters.most])} if {
	some request in requests
	request.count > input.parameters.most
}

violation contains {"msg": "a claim of all devices has no limit"} if {
	some request in requests
	request.allocationMode == "All"
}
