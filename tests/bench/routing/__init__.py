"""Routing in virtual time: which policy brings the first token soonest, and at what hit rate?

Asked: "given these arrivals and these replicas, what does each policy make of them?" Answers with
time to first token, hit rate beside the ideal one, and how evenly the replicas worked. The
gateway's own policies run as they are, through their port; comparators are written anew here from
their published formulas. Run it with `python -m tests.bench.routing` (`make bench-routing`).

A replica here is a model, not an engine: `engine` says what it does and what it leaves out.
Differences under a few percent mean nothing for real engines.
"""
