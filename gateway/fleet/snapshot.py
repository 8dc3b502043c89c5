"""The fleet as a document, for `/debug/fleet`. Asked: what do we believe, and why? Pure.

Invariant: no credentials in it, should a URL ever carry any; values are plain JSON.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from gateway.fleet.ledger import Replica
from gateway.fleet.roster import Roster


def fleet_document(roster: Roster) -> dict[str, Any]:
    """All replicas, in the order they joined; built anew on each call, so the caller owns it."""
    return {
        "is_ready": roster.is_ready,
        "replicas": [_replica(replica) for replica in roster.replicas],
    }


def _replica(replica: Replica) -> dict[str, Any]:
    return {
        "id": _without_credentials(replica.id),
        "url": _without_credentials(replica.address.url),
        "role": replica.role.value,
        "health": replica.health.value,
        "models": sorted(replica.models),
        "engine": {
            name: value for name, value in asdict(replica.facts).items() if value is not None
        },
        "inflight_requests": replica.inflight_requests,
        "inflight_prompt_tokens": replica.inflight_prompt_tokens,
        "others_inflight_requests": replica.others_requests,
        "others_inflight_prompt_tokens": replica.others_prompt_tokens,
        "failures_in_a_row": replica.standing.failures_in_a_row,
        "ejections": replica.standing.ejections,
    }


def _without_credentials(url: str) -> str:
    """`user:password@` left out."""
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]
