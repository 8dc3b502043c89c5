"""Values for tests, every argument optional: name only what the law at hand is about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gateway.fleet.health import Standing
from gateway.fleet.ledger import Replica
from gateway.request import GenerationRequest, Usage
from gateway.vocabulary import ROUTES, Health, ModelCard, ModelName, ReplicaAddress, Role, Route

MODEL = "m"
"""What replicas in tests serve, unless a test says otherwise."""


def a_route(path: str = "/v1/chat/completions") -> Route:
    """The inference route at a path."""
    return next(route for route in ROUTES if route.path == path)


def a_request(
    model: str = MODEL,
    *,
    path: str = "/v1/chat/completions",
    stream: bool = False,
    prompt_bytes: int = 400,
    prompt_tokens: int = 100,
    max_tokens: int | None = None,
) -> GenerationRequest:
    """A request as the parser makes them."""
    return GenerationRequest(
        a_route(path), ModelName(model), stream, prompt_bytes, prompt_tokens, max_tokens
    )


_FIELDS = (
    "route", "model", "stream", "prompt_bytes", "prompt_tokens", "max_tokens", "prompt", "context",
    "session", "tenant", "deadline", "reading",
)  # fmt: skip


def altered(request: GenerationRequest, **changes: Any) -> GenerationRequest:
    """The same but for these fields."""
    return GenerationRequest(**{name: getattr(request, name) for name in _FIELDS} | changes)


def a_replica(
    name: str = "r1",
    *,
    models: Iterable[str] = (MODEL,),
    health: Health = Health.HEALTHY,
    role: Role = Role.BOTH,
    requests: int = 0,
    prompt_tokens: int = 0,
) -> Replica:
    """A replica outside any roster, with so much in flight. Also a `ReplicaView`."""
    replica = Replica(ReplicaAddress(f"http://{name}:8000", role=role))
    replica.models = {ModelName(model): ModelCard(ModelName(model)) for model in models}
    replica.standing = Standing(health)
    replica.inflight_requests = requests
    replica.inflight_prompt_tokens = prompt_tokens
    return replica


def a_chat(text: str = "hello there", model: str = MODEL, **fields: Any) -> bytes:
    """The body of a chat request, five tokens long unless `max_tokens` says otherwise."""
    fields.setdefault("max_tokens", 5)
    document = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps(document).encode()


def a_post(
    body: bytes | None = None,
    *,
    path: str = "/v1/chat/completions",
    headers: Iterable[tuple[str, str]] = (),
    version: str = "1.1",
) -> bytes:
    """A whole, well-formed POST as bytes; of a short chat unless a body is given."""
    body = a_chat() if body is None else body
    lines = [f"POST {path} HTTP/{version}", "Host: gateway", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def a_get(path: str = "/healthz", *, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole, well-formed GET as bytes."""
    lines = [f"GET {path} HTTP/1.1", "Host: gateway", *(f"{name}: {val}" for name, val in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(eq=False)
class AnEntry:
    """An account of one request, as far as the meter of demand reads it."""

    request: GenerationRequest | None
    received_at: float
    dispatched_at: float | None = None
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    uncached: int | None = None
    usage: Usage = field(default_factory=Usage)
