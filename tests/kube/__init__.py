"""A stand-in for a Kubernetes API server: real HTTP, real lists and watches, and trouble on demand.

`cluster` is what a cluster holds and how it changes; `server` speaks HTTP for it; `makings` writes
pods and their like. It knows no admission, no controllers and no field ownership: what is written
is what is there.
"""
