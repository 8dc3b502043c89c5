"""Our place in a replica that spans nodes, as LeaderWorkerSet tells it in the environment.

Pure. Source: the variables LeaderWorkerSet 0.7 and later put into every container of a group,
LWS_LEADER_ADDRESS, LWS_GROUP_SIZE (leader included) and LWS_WORKER_INDEX (0 is the leader).
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.engine_args import Node
from serving.replica.settings import SettingsError


def node_of(environ: Mapping[str, str]) -> Node | None:
    """None outside a group, or in a group of one. Raises SettingsError for half an answer."""
    leader = environ.get("LWS_LEADER_ADDRESS", "")
    if not leader:
        return None
    size, rank = (_number(environ, name) for name in ("LWS_GROUP_SIZE", "LWS_WORKER_INDEX"))
    if rank >= size:
        raise SettingsError(f"LWS_WORKER_INDEX is {rank} in a group of {size}")
    return Node(rank, size, leader) if size > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdecimal()):
        raise SettingsError(f"{name} is {text!r}, beside LWS_LEADER_ADDRESS it must be a number")
    return int(text)
