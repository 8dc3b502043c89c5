"""The first request an engine answers: readiness waits for it.

An engine that answers its health check may yet compile, capture or allocate at its first request;
and one whose weights are broken answers /health all the same. What kind of model it serves is found
by asking: text is completed, or embedded, or pooled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from serving.asking import ask
from serving.child import ChildSettings

_PROMPT: Final = "The quick brown fox jumps over the lazy dog."


def requests_for(model: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Paths and bodies, in the order in which they are tried."""
    return (
        ("/v1/completions", {"model": model, "prompt": _PROMPT, "max_tokens": 4, "temperature": 0}),
        ("/v1/embeddings", {"model": model, "input": _PROMPT}),
        ("/pooling", {"model": model, "input": _PROMPT}),
    )


async def warm_up(where: ChildSettings, model: str, timeout_s: float) -> str | None:
    """Ask once of each kind until one is answered; None then, else what the last answer was."""
    trouble = ""
    for path, body in requests_for(model):
        answer = await ask(
            where.host, where.port, path, json.dumps(body).encode(), timeout_s, where.tls
        )
        if answer is None:
            return f"{path} was not answered within {timeout_s:g} s"
        if answer.status == 200:
            return None
        trouble = f"{path} was answered with {answer.status}: {answer.body[:200]!r}"
        if answer.status >= 500:
            break  # of the right kind, and broken
    return trouble
