"""May this replica serve this request?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.choose.chooser import Filter
from gateway.request import GenerationRequest
from gateway.vocabulary import ReplicaView, Role

if TYPE_CHECKING:
    from gateway.choose.chooser import R

_PREFILL: Final = Role.PREFILL  # an enum member is looked up faster by a name of our own


class Decodes(Filter):
    """Keeps replicas that can carry a request to its end: all but those that only prefill."""

    __slots__ = ("_all_of",)

    def __init__(self) -> None:
        self._all_of: Sequence[ReplicaView] = ()  # a tuple of which all were kept

    def sift(self, request: GenerationRequest, replicas: Sequence[R]) -> Sequence[R]:
        """Depends on the replicas' roles alone, which cannot change within a tuple: the roster
        makes a new one then. So a tuple is looked through once. All is what was given, itself."""
        if replicas is self._all_of:
            return replicas
        kept = [one for one in replicas if one.role is not _PREFILL]
        if len(kept) < len(replicas):
            return kept
        if isinstance(replicas, tuple):
            self._all_of = replicas
        return replicas
