"""The fleet: what we believe about the replicas.

This room is asked three things. Who can serve this model right now? (`roster`, O(1)) How much have
we put on each of them? (`ledger`, by leases) Is this one well? (`health`, a table of states)
It learns from discovery (`discover`: settings, DNS, a file, Kubernetes), from its own probes
(`probe`) and from the signs that requests leave behind. What engines tell of their caches it hears
(`kv_events`) and passes on to whoever wants to know (`kv_cache.BlockListener`), with how far it can
be trusted.

It never decides which replica a request gets, never sends a request of a client, and never holds a
reply back to wait for news: a question about the fleet is answered from what is already known.
One owner, `roster.Roster`, moves all of it, synchronously, so nothing here needs a lock.
"""
