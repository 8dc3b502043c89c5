"""POST /v1/responses: the event sequence of OpenAI's responses API, as vLLM 0.32 sends it.

Unary and stream; replies are one message of one text part. Nothing is stored: there is no GET.
"""

from itertools import count
from typing import Any

import msgspec

from serving.sim.call import Call
from serving.sim.engine import FinishReason
from serving.sim.generation import stream
from serving.sim.kv_cache import CacheKey
from serving.sim.requests import ResponsesRequest, read
from serving.sim.service import Piece, Service, Usage
from serving.sim.tokens import render_chat, tokenize


class ResponsesRoute:
    """The route; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def respond(self, call: Call) -> None:
        service = self._service
        request = await read(call, ResponsesRequest)
        request.check()
        model = service.model(request.model)
        prompt = tokenize(render_chat(request.messages()))
        key = CacheKey(model.adapter, request.cache_salt, call.header(b"x-session-id"))
        jobs = service.replying([prompt], request.limits, key, request.announces_reuse)
        limits = service.max_model_len - len(prompt)
        answer = _response(request, min(request.max_output_tokens or limits, limits))
        answer["id"] = service.new_id("resp_", call)
        answer["created_at"] = int(service.now_s())
        answer["model"] = model.name
        rendering = ResponsesRendering(answer, service.new_id("msg_", call))
        if request.stream:
            await stream(service, call, jobs, rendering)
            return
        with service.generating(call, jobs) as generation:
            await generation.finish()
        reply = jobs[0].reply
        body = rendering.completed(reply.text, reply.finish, generation.usage)
        await call.reply(200, msgspec.json.encode(body))


class ResponsesRendering:
    """created, in_progress, the item and its part opened, deltas, all of it closed, completed."""

    def __init__(self, answer: dict[str, Any], item_id: str) -> None:
        self._answer = answer
        self._item_id = item_id
        self._numbers = count()
        self._texts: list[str] = []
        self._finish = FinishReason.STOP

    def preface(self) -> list[bytes]:
        return [
            self._event("response.created", response=self._answer),
            self._event("response.in_progress", response=self._answer),
        ]

    def opening(self, usage: Usage) -> list[bytes]:
        item = {**self._item("in_progress"), "content": []}
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._part_event("response.content_part.added", part=_part("")),
        ]

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        self._texts.append(piece.text)
        self._finish = piece.finish or self._finish
        return self._part_event("response.output_text.delta", delta=piece.text, logprobs=[])

    def closing(self, usage: Usage) -> list[bytes]:
        text = "".join(self._texts)
        item = self._item("completed", text)
        done = self.completed(text, self._finish, usage)
        return [
            self._part_event("response.output_text.done", text=text, logprobs=[]),
            self._part_event("response.content_part.done", part=_part(text)),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event("response.completed", response=done),
        ]

    def completed(self, text: str, finish: FinishReason, usage: Usage) -> dict[str, Any]:
        """The whole response at its end."""
        cut_off = finish is FinishReason.LENGTH
        return {
            **self._answer,
            "status": "incomplete" if cut_off else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off else None,
            "output": [self._item("completed", text)],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
        }

    def _item(self, status: str, text: str | None = None) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_part(text)],
        }

    def _part_event(self, kind: str, **fields: object) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}


def _response(request: ResponsesRequest, max_output_tokens: int) -> dict[str, Any]:
    """What a response says before it has any output."""
    return {
        "id": "",
        "created_at": 0,
        "incomplete_details": None,
        "instructions": request.instructions,
        "metadata": request.metadata,
        "model": "",
        "object": "response",
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "background": False,
        "max_output_tokens": max_output_tokens,
        "service_tier": "auto",
        "status": "in_progress",
        "truncation": "disabled",
        "usage": None,
    }
