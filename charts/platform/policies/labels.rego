package headracelabels

labelled := array.concat([input.review.object], templates(input.review.object))

violation contains {"msg": sprintf("the label %v is missing", [label])} if {
	some each in labelled
	some label in input.parameters.required
	not each.metadata.labels[label]
}
