"""Whom do we speak to, and who may ask for what?

Who replicas are is told by their SPIFFE IDs, and who we are by ours (`workload_api`, `mutual_tls`).
What may be asked for is decided by the operator's policy, beside us (`opa`).
"""
