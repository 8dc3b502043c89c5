"""Where a replica's engine tells of its cache: the body of its GET /kv_event_sources, read.

Asked: which sources, by data-parallel rank? Invariant: any bytes give sources or ValueError. A
rank that publishes no events is left out. An endpoint bound to every address of the replica's
machine is reached at the host that the replica itself is reached at.
Source: vLLM 0.32: {rank: KVEventsConfig}, ports resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway.settings import KvEventSettings
from gateway.vocabulary import EventSource

_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_EVERYWHERE: Final = frozenset({"*", "0.0.0.0", "::"})  # read, not bound


class _Config(msgspec.Struct):
    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = ""
    replay_endpoint: str | None = None
    topic: str = ""


_DECODER = msgspec.json.Decoder(dict[str, _Config])


def read_sources(body: bytes, url: str) -> Mapping[int, EventSource]:
    """The sources of the replica at `url`, by rank. Raises ValueError where it is no such list."""
    try:
        configs = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"not a list of event sources: {error}") from error
    host = host_of(url)
    return {
        int(rank): EventSource(
            _reachable(config.endpoint, host),
            _reachable(config.replay_endpoint, host) if config.replay_endpoint else None,
            config.topic,
        )
        for rank, config in configs.items()
        if config.enable_kv_cache_events and config.publisher in ("zmq", None)
    }


def usual_source(settings: KvEventSettings, url: str) -> EventSource | None:
    """What the settings say of a replica that does not say it itself, or of its rank 0."""
    if settings.port is None:
        return None
    host = host_of(url)
    replay = None if settings.replay_port is None else f"tcp://{host}:{settings.replay_port}"
    return EventSource(f"tcp://{host}:{settings.port}", replay)


def host_of(url: str) -> str:
    """Of a replica's URL; IPv6 addresses in brackets."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]" if ":" in host else host


def _reachable(endpoint: str, host: str) -> str:
    """Raises ValueError for what is not tcp://host:port; ipc:// is for a replica on our machine.

    An engine binds ipc and wildcards; at a host that is named it would connect, not listen.
    """
    if endpoint.startswith("ipc://") and host in _HERE:
        return endpoint
    scheme, _, rest = endpoint.partition("://")
    named, _, port = rest.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= 65535
    if scheme != "tcp" or not is_port or not named:
        raise ValueError(f"not an endpoint that can be reached: {endpoint[:200]!r}")
    return f"tcp://{host if named.strip('[]') in _EVERYWHERE else named}:{port}"
