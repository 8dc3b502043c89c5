"""POST /v1/.../render: what a prompt becomes before the model reads it, as vLLM 0.32 answers.

Asked for the token ids that a request of one of the generating routes would be computed from;
answers with vLLM's GenerateRequest, of which the token ids are the simulator's own and the sampling
parameters only as many as the simulator knows. A vLLM started without --enable-scale-out refuses
every one of these routes with 403, and so does a replica here.

Source: vLLM 0.32, entrypoints/scale_out (factories.py, render, token_in_token_out/protocol.py).
"""

from http import HTTPStatus
from typing import Any

import msgspec

from serving.sim.api_errors import ApiError
from serving.sim.call import Call
from serving.sim.openai_routes import prompts_of
from serving.sim.requests import (
    ChatRequest,
    CompletionRequest,
    Limits,
    MessagesRequest,
    ResponsesRequest,
    read,
    tools_message,
)
from serving.sim.service import Service
from serving.sim.tokens import render_chat, tokenize

_DISABLED = (
    "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
)


class RenderRoutes:
    """The routes; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, call: Call) -> None:
        self._check_enabled()
        request = await read(call, ChatRequest)
        request.check()
        messages = tools_message(request.tools) + [m.rendered() for m in request.messages]
        text = render_chat(
            messages,
            replies=request.add_generation_prompt,
            continues=request.continue_final_message,
        )
        rendered = self._rendered(call, "chatcmpl-", request.model, tokenize(text), request.limits)
        rendered |= {"stream": bool(request.stream), "cache_salt": request.cache_salt}
        await call.reply(200, msgspec.json.encode(rendered))

    async def completions(self, call: Call) -> None:
        self._check_enabled()
        request = await read(call, CompletionRequest)
        request.check()
        rendered = [
            self._rendered(call, "cmpl-", request.model, prompt, request.limits)
            | {"stream": bool(request.stream), "cache_salt": request.cache_salt}
            for prompt in prompts_of(request.prompt)
        ]
        await call.reply(200, msgspec.json.encode(rendered))

    async def messages(self, call: Call) -> None:
        self._check_enabled()
        request = await read(call, MessagesRequest)
        messages = tools_message(request.tools) + request.conversation()
        tokens = tokenize(render_chat(messages))
        rendered = self._rendered(call, "chatcmpl-", request.model, tokens, request.limits)
        rendered["stream"] = bool(request.stream)
        await call.reply(200, msgspec.json.encode(rendered))

    async def responses(self, call: Call) -> None:
        self._check_enabled()
        request = await read(call, ResponsesRequest)
        request.check()
        tokens = tokenize(render_chat(request.messages()))
        rendered = self._rendered(call, "resp_", request.model, tokens, request.limits)
        rendered |= {"stream": bool(request.stream), "cache_salt": request.cache_salt}
        await call.reply(200, msgspec.json.encode(rendered))

    def _check_enabled(self) -> None:
        if not self._service.settings.scale_out:
            raise ApiError(HTTPStatus.FORBIDDEN, _DISABLED, "PermissionDeniedError")

    def _rendered(
        self, call: Call, prefix: str, model: str | None, tokens: list[int], limits: Limits
    ) -> dict[str, Any]:
        """A GenerateRequest. Raises ApiError for an unknown model or a prompt too long for it."""
        service = self._service
        found = service.model(model)
        service.reading([tokens], found)
        room = service.max_model_len - len(tokens)
        return {
            "request_id": service.new_id(prefix, call),
            "token_ids": tokens,
            "token_offsets": None,
            "features": None,
            "content_parts": None,
            "sampling_params": {
                "max_tokens": room if limits.max_tokens is None else min(limits.max_tokens, room),
                "min_tokens": limits.least_tokens,
                "stop": limits.stops,
                "ignore_eos": limits.ignores_end,
            },
            "model": model,
            "reasoning_ended": None,
            "reasoning_parser_kwargs": None,
            "return_token_ids": None,
            "output_mode": "tokens",
            "stream": False,
            "stream_options": None,
            "cache_salt": None,
            "priority": 0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
        }
