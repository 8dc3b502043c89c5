"""Which route answers which path, and what is around it: faults, errors, a client that left."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.applications import Starlette
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from serving.sim.api_errors import ApiError
from serving.sim.call import Call
from serving.sim.channel import ClientLeftError
from serving.sim.openai_routes import OpenAIRoutes
from serving.sim.service import Service

Route = Callable[[Call], Awaitable[None]]
_ANTHROPIC = "/v1/messages"


def inference_routes(service: Service) -> dict[str, Route]:
    """Every POST route that uses the engine."""
    openai = OpenAIRoutes(service)
    return {
        "/v1/chat/completions": openai.chat,
        "/v1/completions": openai.completions,
    }


class SimApp:
    """The ASGI application: inference routes by a table, all else by Starlette."""

    def __init__(self, service: Service, control: Starlette) -> None:
        self._service = service
        self._routes = inference_routes(service)
        self._control = control

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["type"] != "http":
            await self._control(scope, receive, send)  # type: ignore[arg-type]
            return
        if scope["method"] != "POST":
            await self._answer(Call(scope, receive, send, None), _not_allowed)
            return
        await self._answer(Call(scope, receive, send, self._service.faults.draw()), route)

    async def _answer(self, call: Call, route: Route) -> None:
        try:
            with self._service.counted():
                await call.meet_fault()
                await route(call)
        except ClientLeftError:
            return
        except ApiError as error:
            is_anthropic = call.scope["path"].startswith(_ANTHROPIC)
            body = error.anthropic_body() if is_anthropic else error.openai_body()
            try:
                await call.reply(error.status, body)
            except ClientLeftError:
                return


async def _not_allowed(_: Call) -> None:
    raise ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
