"""Everything that is not inference: models, health, metrics, and the simulator's own levers.

An ordinary Starlette application. Sources: vLLM 0.32, entrypoints/serve/instrumentator and
entrypoints/serve/dev/sleep, entrypoints/openai/models.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.sim.api_errors import ApiError
from serving.sim.metrics import render_metrics
from serving.sim.service import Service
from serving.sim.settings import VERSION

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Control:
    """The answers; `crash` is what POST /sim/faults does for {"crash": ...}."""

    def __init__(
        self,
        service: Service,
        event_sources: dict[str, dict[str, Any]],
        crash: Callable[[str], None],
    ) -> None:
        self._service = service
        self._event_sources = event_sources
        self._crash = crash
        self._started_at_s = int(service.now_s())

    def app(self) -> Starlette:
        """The application; unknown paths and methods are told in vLLM's error shape."""
        get = {
            "/health": self.health,
            "/ping": self.health,
            "/version": self.version,
            "/load": self.load,
            "/metrics": self.metrics,
            "/v1/models": self.models,
            "/kv_event_sources": self.kv_event_sources,
        }
        return Starlette(
            routes=[
                *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
                Route("/reset_prefix_cache", self.reset_prefix_cache, methods=["POST"]),
                *(self._sleep_routes() if self._service.settings.sleep_mode else ()),
                Route("/sim/faults", self.faults, methods=["GET", "POST", "DELETE"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def _sleep_routes(self) -> list[Route]:
        return [
            Route("/sleep", self.sleep, methods=["POST"]),
            Route("/wake_up", self.wake_up, methods=["POST"]),
            Route("/is_sleeping", self.is_sleeping, methods=["GET"]),
        ]

    async def sleep(self, request: Request) -> Response:
        level = int(request.query_params.get("level", "1"))
        self._service.runner.sleep(level)
        return JSONResponse({"status": "sleeping", "level": level})

    async def wake_up(self, _: Request) -> Response:
        runner = self._service.runner
        if runner.is_sleeping:
            await asyncio.sleep(self._service.settings.wake_s)
            runner.wake_up()
        return JSONResponse({"status": "awake", "tags": None})

    async def is_sleeping(self, _: Request) -> Response:
        return JSONResponse({"is_sleeping": self._service.runner.is_sleeping})

    async def health(self, request: Request) -> Response:
        sick = self._service.faults.table.health
        if sick is None:
            return Response(status_code=200)
        if sick.hangs:
            while not await request.is_disconnected():
                await asyncio.sleep(0.05)
        return Response(status_code=sick.status)

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def load(self, _: Request) -> Response:
        return JSONResponse({"server_load": self._service.inflight})

    async def kv_event_sources(self, _: Request) -> Response:
        return JSONResponse(self._event_sources)

    async def metrics(self, _: Request) -> Response:
        service = self._service
        engine = service.runner.engine
        config = {
            "block_size": str(engine.shape.block_size),
            "num_gpu_blocks": str(engine.shape.blocks),
            "enable_prefix_caching": str(service.settings.prefix_caching),
            "prefix_caching_hash_algo": str(service.settings.hash_algorithm),
        }
        model = service.settings.models[0]
        timings = service.runner.timings
        text = render_metrics(engine, timings, model, config, len(service.adapters))
        return Response(text, media_type=METRICS_TYPE)

    async def models(self, _: Request) -> Response:
        names = self._service.settings.models
        cards = [self._card(name, names[0], None) for name in names]
        cards += [
            self._card(adapter.name, adapter.path, names[0]) for adapter in self._service.adapters
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def reset_prefix_cache(self, _: Request) -> Response:
        return Response(status_code=200 if self._service.runner.clear_cache() else 503)

    async def faults(self, request: Request) -> Response:
        """Show, merge or clear the faults; {"crash": "exit" or "drop"} acts after the answer."""
        faults = self._service.faults
        crash = None
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "POST":
            try:
                changes = msgspec.json.decode(await request.body(), type=dict[str, Any])
                crash = changes.pop("crash", None)
                faults.merge(changes)
            except msgspec.MsgspecError as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            if crash not in (None, "exit", "drop"):
                return JSONResponse({"error": "crash is exit or drop"}, status_code=400)
        if crash is not None:
            asyncio.get_running_loop().call_later(0.05, self._crash, crash)
        return JSONResponse(msgspec.to_builtins(faults.table))

    def _card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started_at_s,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": None if parent else self._service.max_model_len,
            "permission": [],
        }


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = ApiError(HTTPStatus(error.status_code), error.detail).openai_body()
    return Response(body, error.status_code, media_type="application/json", headers=error.headers)
