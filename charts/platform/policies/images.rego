package headraceimages

images contains container.image if {
	some spec in specs(input.review.object)
	some container in containers(spec)
}

images contains image if {
	some spec in specs(input.review.object)
	some volume in spec.volumes
	image := volume.image.reference
}

violation contains {"msg": sprintf("%v is not of a registry that is trusted", [image])} if {
	some image in images
	count(input.parameters.registries) > 0
	every registry in input.parameters.registries {
		not startswith(image, registry)
	}
}

violation contains {"msg": sprintf("%v is not named by its digest", [image])} if {
	some image in images
	input.parameters.digests
	not regex.match(`@sha256:[a-f0-9]{64}$`, image)
}
