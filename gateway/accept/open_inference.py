"""Health and metadata as the Open Inference Protocol (v2) has them, which KServe asks.

Source: kserve/open-inference-protocol, specification/protocol/open_inference_rest.yaml. What it
says of tensors is left out: prompts go to OpenAI's routes. A model has one version, without a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import orjson
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.errors import UnknownModel
from gateway.vocabulary import TENANT, ModelName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from gateway.vocabulary import ModelCard

PREFIX: Final = "/v2/models/"
"""What is under it is shown to those who may use the model."""

PLATFORM: Final = "openai"
"""How a model is spoken to here."""


class Panel(Protocol):
    """What is read."""

    @property
    def is_ready(self) -> bool: ...
    def models(self) -> Mapping[ModelName, ModelCard]: ...
    def serves(self, model: ModelName) -> bool: ...


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def open_inference_routes(panel: Panel) -> list[Route]:
    """The routes, over what they read."""

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        is_ready = panel.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def server(_: Request) -> Response:
        return _json({"name": "headrace", "version": __version__, "extensions": []})

    async def model(request: Request) -> Response:
        name = _known(panel, request)
        return _unknown() if name is None else _json({"name": name, "platform": PLATFORM})

    async def model_ready(request: Request) -> Response:
        name = _known(panel, request)
        if name is None:
            return _unknown()
        is_ready = panel.serves(name)
        return _json({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    return [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v2/", server),
        Route("/v2/models/{name:path}/ready", model_ready),
        Route("/v2/models/{name:path}", model),
    ]


def _known(panel: Panel, request: Request) -> ModelName | None:
    """The model that is named, if it is one that the tenant may use."""
    name = ModelName(request.path_params["name"])
    may_use = request.scope[TENANT].may_use(name)
    return name if may_use and name in panel.models() else None


def _unknown() -> Response:
    """The protocol's errors are one sentence."""
    return _json({"error": UnknownModel.message}, UnknownModel.status)
