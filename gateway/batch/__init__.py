"""Batch: files of requests, answered on spare capacity within a day.

Asked: keep this file; answer each of its lines once; say how far you are. The state is in a store
that several gateways may share: a batch is held under a lease, and every write names the lease's
fence, so a gateway that was thought dead changes nothing.

It must never take room that interactive requests want, never lose a line, never answer one twice,
and never touch a disk or a database on the event loop.
"""
