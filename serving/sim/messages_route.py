"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, as vLLM 0.32 answers it."""

from typing import Any

import msgspec

from serving.sim.call import Call
from serving.sim.engine import FinishReason
from serving.sim.generation import stream
from serving.sim.kv_cache import CacheKey
from serving.sim.requests import MessagesRequest, read, tools_message
from serving.sim.service import Piece, Service, Usage
from serving.sim.tokens import render_chat, tokenize


class MessagesRoutes:
    """The routes; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def messages(self, call: Call) -> None:
        service = self._service
        request = await read(call, MessagesRequest)
        model = service.model(request.model)
        key = CacheKey(model.adapter, session=call.header(b"x-session-id"))
        jobs = service.replying([_prompt(request)], request.limits, key)
        answer: dict[str, Any] = {
            "id": service.new_id("chatcmpl-", call),
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": model.name,
            "stop_reason": None,
            "stop_sequence": None,
        }
        if request.stream:
            await stream(service, call, jobs, MessagesRendering(answer))
            return
        with service.generating(call, jobs) as generation:
            await generation.finish()
        reply = jobs[0].reply
        answer["content"] = [{"type": "text", "text": reply.text}]
        answer |= _ending(reply.finish, reply.stop_reason)
        answer["usage"] = _usage(generation.usage)
        await call.reply(200, msgspec.json.encode(answer))

    async def count_tokens(self, call: Call) -> None:
        request = await read(call, MessagesRequest)
        self._service.model(request.model)
        tokens = len(_prompt(request))
        body = {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        await call.reply(200, msgspec.json.encode(body))


class MessagesRendering:
    """message_start, one text block, message_delta with the end and the usage, message_stop."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._ending: dict[str, Any] = {}

    def preface(self) -> list[bytes]:
        return []

    def opening(self, usage: Usage) -> list[bytes]:
        start = {**self._answer, "usage": _usage(usage)}
        block = {"type": "text", "text": ""}
        return [
            _event("message_start", message=start),
            _event("content_block_start", index=0, content_block=block),
        ]

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        if piece.finish is not None:
            self._ending = _ending(piece.finish, piece.stop_reason)
        delta = {"type": "text_delta", "text": piece.text}
        return _event("content_block_delta", index=0, delta=delta)

    def closing(self, usage: Usage) -> list[bytes]:
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=self._ending, usage=_usage(usage)),
            _event("message_stop"),
        ]


def _prompt(request: MessagesRequest) -> list[int]:
    return tokenize(render_chat(tools_message(request.tools) + request.conversation()))


def _ending(finish: FinishReason, stop_reason: str | None) -> dict[str, Any]:
    if stop_reason is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    ended = "max_tokens" if finish is FinishReason.LENGTH else "end_turn"
    return {"stop_reason": ended, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts cached input apart from the rest."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def _event(kind: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
