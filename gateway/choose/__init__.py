"""Choose: which replica?

Asked: "of these replicas, all able to serve, which should have this request?" Answers with one
of them. A policy is a profile: filters (may it?), a scorer (what would it cost there? least wins)
and a picker (which of the cheap ones?). Policies are found by name in `policies.POLICIES`.

It must never wait, read a clock or a socket, or change a replica: it reads views and returns one.
"""
