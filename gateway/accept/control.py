"""Everything that is not inference: health, readiness, metrics, models, what the fleet is doing.

An ordinary Starlette app, behind the express lane on the same port. It reads; it changes nothing
itself. Files and batches are another room's routes, which it shows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from gateway.accept.models import model_document, models_document
from gateway.accept.open_inference import PREFIX, open_inference_routes
from gateway.accept.reply import error_reply
from gateway.errors import Bug, GatewayError, MethodNotAllowed, UnknownModel, UnknownPath
from gateway.vocabulary import ROUTES, TENANT, ModelName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gateway.vocabulary import ModelCard, Tenant


_KEYED: Final = ("/v1/", PREFIX, "/debug/")


class Panel(Protocol):
    """What the control app reads."""

    @property
    def is_ready(self) -> bool: ...
    def models(self) -> Mapping[ModelName, ModelCard]: ...
    def serves(self, model: ModelName) -> bool: ...
    def tenant(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """Who sends a head with these fields. Raises InvalidKey."""

    def fleet_document(self) -> dict[str, Any]: ...
    def route_document(self, path: str, body: bytes, tenant: Tenant) -> dict[str, Any]:
        """Raises a GatewayError where the gateway would refuse the body."""


Scrape = Callable[[], Awaitable[Collector]]
"""What `/metrics` shows: gathered anew each time."""


class Json(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """By orjson."""
        return orjson.dumps(content)


def refusal(error: GatewayError, headers: Mapping[str, str] | None = None) -> Response:
    """An error, in OpenAI's shape."""
    status, fields, body = error_reply(error)
    named = {name.decode(): value.decode() for name, value in fields}
    return Response(body, status, headers={**named, **(headers or {})})


def control_app(panel: Panel, scrape: Scrape, others: Sequence[Route] = ()) -> ASGIApp:
    """The app, over what it reads, with the routes of `others`, which may raise GatewayErrors."""

    async def healthz(_: Request) -> Response:
        return Json({"status": "ok"})

    async def readyz(_: Request) -> Response:
        ready = panel.is_ready
        return Json({"ready": ready}, status_code=200 if ready else 503)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await scrape()), headers={"content-type": content_type})

    async def models(request: Request) -> Response:
        tenant: Tenant = request.scope[TENANT]
        cards = panel.models().values()
        return Json(models_document([card for card in cards if tenant.may_use(card.id)]))

    async def model(request: Request) -> Response:
        name, tenant = ModelName(request.path_params["name"]), request.scope[TENANT]
        card = panel.models().get(name) if tenant.may_use(name) else None
        return refusal(UnknownModel()) if card is None else Json(model_document(card))

    async def fleet(_: Request) -> Response:
        return Json(panel.fleet_document())

    async def route(request: Request) -> Response:
        path = request.query_params.get("path", "/v1/chat/completions")
        try:
            return Json(panel.route_document(path, await request.body(), request.scope[TENANT]))
        except GatewayError as error:
            return refusal(error)

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/debug/fleet", fleet),
            Route("/debug/route", route, methods=["POST"]),
            *open_inference_routes(panel),
            *others,
            *(Route(route.path, _only_post) for route in ROUTES),
        ],
        exception_handlers={
            HTTPException: _http_error,
            GatewayError: _refused,
            Exception: _bug,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be written with the client's own Host
    return _Keyed(app, panel)


class _Keyed:
    """Lets nobody without a key, where keys are asked for, at models and at what is ours to know.

    Health and metrics stay open: what reads them has no key. A handler finds the tenant in its
    scope.
    """

    def __init__(self, app: ASGIApp, panel: Panel) -> None:
        self._app = app
        self._panel = panel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"].startswith(_KEYED):
            try:
                scope[TENANT] = self._panel.tenant(dict(scope["headers"]))
            except GatewayError as error:
                await refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _OnlyPost:
    """The inference routes, for what did not go down the express lane."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A POST comes here by an unusual spelling of the path only."""
        if scope["method"] == "POST":
            answer = refusal(UnknownPath())
        else:
            answer = refusal(MethodNotAllowed("Use POST."), {"allow": "POST"})
        await answer(scope, receive, send)


_only_post = _OnlyPost()


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own refusals, in our shape."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        return refusal(MethodNotAllowed(), error.headers)
    return refusal(UnknownPath())


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return refusal(error)


async def _bug(_: Request, __: Exception) -> Response:
    return refusal(Bug())
