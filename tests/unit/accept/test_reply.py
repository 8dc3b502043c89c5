"""Every error there is has a reply in OpenAI's shape, and reasons tell errors apart."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from gateway.accept.reply import error_event, error_reply
from gateway.errors import ClientGone, GatewayError, NoReplica
from tests.builders import a_route


def concrete(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """Every error class that can be raised."""
    if hasattr(kind, "reason"):
        yield kind
    for child in kind.__subclasses__():
        yield from concrete(child)


ERRORS = sorted(set(concrete()), key=lambda kind: kind.reason)


def test_reasons_are_unique_lower_snake_words() -> None:
    reasons = [kind.reason for kind in ERRORS]
    assert len(set(reasons)) == len(reasons) > 20
    assert all(reason.isascii() and reason.replace("_", "").islower() for reason in reasons)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.reason)
def test_every_error_has_a_reply_in_openais_shape(kind: type[GatewayError]) -> None:
    status, headers, body = error_reply(kind(param="p"))
    document = orjson.loads(body)
    assert status == kind.status
    assert issubclass(kind, ClientGone) or 400 <= status <= 599
    assert (b"content-type", b"application/json") in headers
    error = document["error"]
    assert (error["code"], error["param"], error["message"]) == (kind.reason, "p", kind.message)
    assert (error["type"] == "server_error") == (status >= 500 and kind.fault != "client")


@pytest.mark.parametrize(
    ("retry_after_s", "said"), [(0.01, b"1"), (1.0, b"1"), (1.2, b"2"), (60, b"60")]
)
def test_retry_after_is_whole_seconds_and_never_none(retry_after_s: float, said: bytes) -> None:
    _, headers, _ = error_reply(NoReplica(retry_after_s=retry_after_s))
    assert dict(headers)[b"retry-after"] == said


@pytest.mark.parametrize(
    ("path", "is_named", "is_wrapped"),
    [
        ("/v1/chat/completions", False, False),
        ("/v1/completions", False, False),
        ("/v1/messages", True, True),
        ("/v1/responses", True, False),
    ],
)
def test_an_error_in_a_stream_is_one_event_in_the_routes_dialect(
    path: str, is_named: bool, is_wrapped: bool
) -> None:
    event = error_event(NoReplica(), a_route(path))
    assert event.startswith(b"\n\n")
    assert event.endswith(b"\n\n")
    lines = event.strip().split(b"\n")
    assert lines[:-1] == ([b"event: error"] if is_named else [])
    document = orjson.loads(lines[-1].removeprefix(b"data: "))
    assert document["error"]["code"] == "no_replica"
    assert (document.get("type") == "error") == is_wrapped
