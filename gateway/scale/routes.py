"""`GET /scale/{model}`: the demand for one model, for whoever scales it.

KEDA's metrics-api reads it as JSON (`valueLocation: replicas_needed`) or as Prometheus text. Every
gateway says what all of them know: where KEDA asks each and aggregates, the aggregation is `max`.
Open, as /metrics is: who reads it has no key, and it holds nothing of anybody's requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import InvalidRequest, UnknownModel
from gateway.scale.metrics import DemandCollector
from gateway.vocabulary import ModelName

if TYPE_CHECKING:
    from starlette.requests import Request

    from gateway.demand import DemandSource

FORMATS: Final = ("json", "prometheus")
_TEXT: Final = ("text/plain", "application/openmetrics-text")


def scale_routes(source: DemandSource) -> tuple[Route, ...]:
    """The room's own, for the control app."""

    async def scale(request: Request) -> Response:
        model = ModelName(request.path_params["model"])
        if model not in source.models():
            raise UnknownModel(f"The model `{model[:200]}` does not exist.", param="model")
        if _format(request) == "json":
            body = msgspec.json.encode(source.demand(model))
            return Response(body, media_type="application/json")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(DemandCollector(source, (model,)))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return (Route("/scale/{model:path}", scale),)


def _format(request: Request) -> str:
    """As the query says, else as Accept prefers; JSON where neither does.

    Raises InvalidRequest.
    """
    asked = request.query_params.get("format")
    if asked is not None:
        if asked not in FORMATS:
            raise InvalidRequest(f"`format` is one of {', '.join(FORMATS)}.", param="format")
        return asked
    accepted = request.headers.get("accept", "").lower()
    return "prometheus" if accepted.startswith(_TEXT) else "json"
