package headraceprivilege

judged := specs(input.review.object)

violation contains {"msg": sprintf("%v: the node's own namespaces are not for pods", [field])} if {
	some spec in judged
	some field in ["hostNetwork", "hostPID", "hostIPC"]
	spec[field]
}

violation contains {"msg": sprintf("the folder %v of the node is not for pods", [path])} if {
	some spec in judged
	some volume in spec.volumes
	path := volume.hostPath.path
	not allowed(path)
}

allowed(path) if {
	some folder in input.parameters.hostPaths
	startswith(sprintf("%v/", [path]), sprintf("%v/", [folder]))
}

violation contains {"msg": sprintf("container %v may gain privileges", [container.name])} if {
	some spec in judged
	some container in containers(spec)
	not confined(container)
}

confined(container) if {
	context := container.securityContext
	context.allowPrivilegeEscalation == false
	not context.privileged
	"ALL" in context.capabilities.drop
	not context.capabilities.add
}

violation contains {"msg": sprintf("container %v may run as root", [container.name])} if {
	some spec in judged
	some container in containers(spec)
	not is_user(spec, container)
}

is_user(_, container) if container.securityContext.runAsNonRoot

is_user(spec, container) if {
	spec.securityContext.runAsNonRoot
	not container.securityContext.runAsNonRoot == false
}
