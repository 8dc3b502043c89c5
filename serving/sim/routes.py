"""Which route answers which path, and what is around it: faults, errors, a client that left."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.applications import Starlette
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from serving.sim.api_errors import ApiError
from serving.sim.audio_route import AudioRoute
from serving.sim.call import Call
from serving.sim.channel import ClientLeftError
from serving.sim.messages_route import MessagesRoutes
from serving.sim.openai_routes import OpenAIRoutes
from serving.sim.pooling_routes import PoolingRoutes
from serving.sim.render_routes import RenderRoutes
from serving.sim.responses_route import ResponsesRoute
from serving.sim.service import Service
from serving.sim.text_routes import TextRoutes

Route = Callable[[Call], Awaitable[None]]
_ANTHROPIC = "/v1/messages"


def inference_routes(service: Service) -> dict[str, Route]:
    """Every POST route a client sends work to."""
    openai, messages = OpenAIRoutes(service), MessagesRoutes(service)
    pooling, text, render = PoolingRoutes(service), TextRoutes(service), RenderRoutes(service)
    return {
        "/v1/chat/completions": openai.chat,
        "/v1/completions": openai.completions,
        "/v1/responses": ResponsesRoute(service).respond,
        "/v1/messages": messages.messages,
        "/v1/messages/count_tokens": messages.count_tokens,
        "/v1/embeddings": pooling.embeddings,
        "/pooling": pooling.pooling,
        "/classify": pooling.classify,
        "/score": pooling.score,
        "/v1/score": pooling.score,
        "/rerank": pooling.rerank,
        "/v1/rerank": pooling.rerank,
        "/v2/rerank": pooling.rerank,
        "/tokenize": text.tokenize,
        "/detokenize": text.detokenize,
        "/v1/audio/transcriptions": AudioRoute(service).transcribe,
        "/v1/chat/completions/render": render.chat,
        "/v1/completions/render": render.completions,
        "/v1/messages/render": render.messages,
        "/v1/responses/render": render.responses,
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
            path = call.scope["path"]
            is_anthropic = path.startswith(_ANTHROPIC) and not path.endswith("/render")
            body = error.anthropic_body() if is_anthropic else error.openai_body()
            try:
                await call.reply(error.status, body)
            except ClientLeftError:
                return


async def _not_allowed(_: Call) -> None:
    raise ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
