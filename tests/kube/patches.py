"""A patch of each media type that the API knows, applied to an object."""

from __future__ import annotations

from typing import Any

from tests.kube.cluster import Object, Trouble
from tests.kube.merging import merged, strategic

APPLY = "application/apply-patch+yaml"


def patched(was: Object, kind: str, patch: Any) -> Object:
    """`was` with a patch of this media type, other than APPLY. Raises Trouble, 415."""
    match kind:
        case "application/json-patch+json":
            for step in patch:
                _step(was, step)
            return was
        case "application/merge-patch+json":
            return merged(was, patch)
        case "application/strategic-merge-patch+json":
            return strategic(was, patch)
    raise Trouble(415, "UnsupportedMediaType", f"the body of the request is {kind}")


def _step(target: Any, step: Object) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace or remove."""
    *path, last = [
        name.replace("~1", "/").replace("~0", "~") for name in step["path"].split("/")[1:]
    ]
    for name in path:
        target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
    if isinstance(target, list):
        at = len(target) if last == "-" else int(last)
        if step["op"] != "add":
            del target[at]
        if step["op"] != "remove":
            target.insert(at, step["value"])
    elif step["op"] == "remove":
        target.pop(last, None)
    else:
        target[last] = step["value"]
