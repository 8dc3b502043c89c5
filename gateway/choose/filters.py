"""May this replica serve this request?"""

from __future__ import annotations

from typing import Final

from gateway.vocabulary import GenerationRequest, ReplicaView, Role

_PREFILL: Final = Role.PREFILL  # an enum member is looked up faster by a name of our own


class Decodes:
    """Keeps replicas that can carry a request to its end: all but those that only prefill."""

    __slots__ = ()

    def keeps(self, request: GenerationRequest, replica: ReplicaView) -> bool:
        """Depends on the replica's role alone."""
        return replica.role is not _PREFILL
