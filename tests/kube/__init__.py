"""A stand-in for a Kubernetes cluster: real HTTP, real lists and watches, and trouble on demand.

`cluster` is what a cluster holds and how it changes; `server` speaks HTTP for it, with `rights` of
service accounts and patches as `merging` takes them; `makings` writes pods and their like. It knows
no admission and no conflicts of field owners. The official client, kubectl and helm (3.17 and 4)
take it for a cluster, where nothing happens by itself.

`world` adds what makes things happen: `controllers` make pods of Deployments and the like,
`kubelet` runs them as processes on this machine, `services` lead to them, and `keda` scales.
"""
