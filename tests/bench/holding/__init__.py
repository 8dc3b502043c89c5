"""Holding in virtual time: what do late binding and the order of the queue do for those who wait?

Asked: "given these arrivals and these replicas, who gets what, and when?" The gateway's own gate,
chooser and ledger run as they are, on an event loop whose clock jumps from one event to the next;
replicas are `serving.sim` engines, stepped in that time. Run it with `python -m
tests.bench.holding` (`make bench-holding`).

An engine's figures are of the order of a 32B model on two GPUs, assumed and not measured. No
network, no HTTP: what the gate costs in time of its own is `make bench`'s to say.
"""
