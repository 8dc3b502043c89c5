# The templates of pods in an object of any kind that makes pods; a Pod is its own.
templates(object) := [object] if object.kind == "Pod"

templates(object) := [object.spec.template] if object.kind in {"Deployment", "StatefulSet", "DaemonSet", "Job"}

templates(object) := [object.spec.jobTemplate.spec.template] if object.kind == "CronJob"

templates(object) := group_templates(object.spec.leaderWorkerTemplate) if object.kind == "LeaderWorkerSet"

templates(object) := job_templates(object.spec.replicatedJobs) if object.kind == "JobSet"

group_templates(group) := [group[side] |
	some side in ["leaderTemplate", "workerTemplate"]
	group[side]
]

job_templates(jobs) := [job.template.spec.template | some job in jobs]

specs(object) := [template.spec | some template in templates(object)]

containers(spec) := [container |
	some field in ["containers", "initContainers"]
	some container in spec[field]
]
