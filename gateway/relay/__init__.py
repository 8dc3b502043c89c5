"""The relay: bytes to a replica, its answer back to the client.

Asked: "carry this request to this replica and its response to this client". Answers with a Reply
when the response has been relayed whole, or raises the ReplicaError that says what broke and
whether another attempt is right. It reads a response only to learn where it ends; bytes pass as
they came wherever their framing allows it.

It must never choose a replica, never decide how often to try, never parse JSON while bytes flow,
and never leave a connection that is neither in use, nor idle in the pool, nor closed.
"""
