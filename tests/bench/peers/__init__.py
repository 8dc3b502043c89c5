"""Routing over HTTP, in real time: what the policies of real gateways make of one trace.

Asked: "with the same simulated replicas behind it and the same requests before it, how soon does
each gateway bring the first token, at what hit rate, and for how much CPU?" Every gateway is its
own process, as its users get it; the replicas are `serving.sim`, whose prefill takes real seconds
and whose caches publish real events. Run it with `python -m tests.bench.routing --http`
(`make bench-routing ARGS=--http`).

The replicas are a model, not an engine, and lengths are scaled down so that two cores carry all of
it: `trace` says by how much. Compare subjects of one record; seconds mean nothing elsewhere.
"""
