"""A stand-in for a Kubernetes API server: real HTTP, real lists and watches, and trouble on demand.

`cluster` is what a cluster holds and how it changes; `server` speaks HTTP for it; `makings` writes
pods and their like. It knows no admission, no controllers and no field ownership: what is written
is what is there. The official client, kubectl (`apply` with `--validate=false`) and helm (`install`
and `upgrade` with `--disable-openapi-validation`) take it for a cluster.
"""
