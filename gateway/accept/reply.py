"""What a client is told when its request ends early. The wording of replies is nowhere else.

Two shapes: before the response has begun, a status with OpenAI's error object; after it, an SSE
event with the same object. `/v1/messages` speaks Anthropic's dialect, which wraps the same object.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson

from gateway.errors import Fault, GatewayError

if TYPE_CHECKING:
    from gateway.vocabulary import Route

Field = tuple[bytes, bytes]


def _kind(error: GatewayError) -> str:
    """OpenAI's `error.type`, by status."""
    match error.status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "invalid_request_error" if error.fault is Fault.CLIENT else "server_error"


def error_document(error: GatewayError, route: Route | None = None) -> dict[str, object]:
    """The error object, in the dialect of the route."""
    document: dict[str, object] = {
        "error": {
            "message": str(error),
            "type": _kind(error),
            "param": error.param,
            "code": error.reason,
        }
    }
    if route is not None and route.path.startswith("/v1/messages"):
        return {"type": "error", **document}
    return document


def error_reply(error: GatewayError, route: Route | None = None) -> tuple[int, list[Field], bytes]:
    """Status, header fields and body of a refusal."""
    headers: list[Field] = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, orjson.dumps(error_document(error, route))


def error_event(error: GatewayError, route: Route | None = None) -> bytes:
    """One SSE event that tells a client, in mid-stream, why the stream ends here.

    It opens with a blank line, so that half an event left by the replica cannot swallow it.
    """
    return told_event(orjson.dumps(error_document(error, route)), route)


def told_event(document: bytes, route: Route | None) -> bytes:
    """The same of what somebody else has written: the body of a replica's refusal."""
    named = route is not None and route.path in ("/v1/messages", "/v1/responses")
    lines = b"".join([b"data: %b\n" % line for line in document.splitlines()])
    return b"\n\n" + (b"event: error\n" if named else b"") + lines + b"\n"
