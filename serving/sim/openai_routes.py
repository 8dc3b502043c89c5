"""The routes of OpenAI's chat and text completions, field for field as vLLM 0.32 answers them."""

from collections import Counter
from typing import Any

import msgspec

from serving.sim.api_errors import bad_request
from serving.sim.call import Call
from serving.sim.generation import stream
from serving.sim.kv_cache import CacheKey
from serving.sim.requests import ChatRequest, CompletionRequest, read, tools_message
from serving.sim.service import Generation, Job, Model, Piece, Service, Usage
from serving.sim.tokens import detokenize, render_chat, tokenize

DONE = b"data: [DONE]\n\n"


def usage_object(usage: Usage, details: bool) -> dict[str, Any]:
    """OpenAI's usage object; `details` adds `cached_tokens`."""
    found: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    found["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens} if details else None
    return found


class OpenAIRendering:
    """Chunks of a chat or text completion.

    Every chunk of a stream is equal but for its text and end, so the rest is rendered once.
    """

    def __init__(self, answer: dict[str, Any], request: ChatRequest | CompletionRequest) -> None:
        self.is_chat = isinstance(request, ChatRequest)
        self._with_usage = request.include_usage
        self._continuous = request.continuous_usage
        self._fingerprint = answer.pop("system_fingerprint")
        self._details = answer.pop("details")
        self._sent: Counter[int] = Counter()
        self._head = b"data: " + msgspec.json.encode(answer)[:-1]

    def preface(self) -> list[bytes]:
        return []

    def opening(self, usage: Usage) -> list[bytes]:
        if not self.is_chat:
            return []
        delta = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        extra = b',"prompt_token_ids":null,"prompt_text":null'
        return [self._event(b',"choices":[{"index":0,"delta":' + delta + extra, usage, 0)]

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        text = msgspec.json.encode(piece.text)
        is_last = piece.finish is not None
        finish = b'"%b"' % str(piece.finish).encode() if is_last else b"null"
        stop_reason = msgspec.json.encode(piece.stop_reason)
        if self.is_chat:
            content = b'"delta":{"content":%b}' % text
            reason = b',"stop_reason":%b' % stop_reason if is_last else b""
        else:
            content = b'"text":%b' % text
            reason = b',"stop_reason":%b,"prompt_token_ids":null' % stop_reason
        choice = b',"choices":[{"index":%d,%b,"logprobs":null,"finish_reason":%b%b' % (
            piece.index,
            content,
            finish,
            reason,
        )
        end = b',"token_ids":null}]'
        if is_last and not self._with_usage:
            end += b',"system_fingerprint":"%b"' % self._fingerprint.encode()
        self._sent[piece.index] += 1
        return self._event(choice + end, usage, self._sent[piece.index])

    def closing(self, usage: Usage) -> list[bytes]:
        if not self._with_usage:
            return [DONE]
        found = msgspec.json.encode(usage_object(usage, self._details))
        fingerprint = b',"system_fingerprint":"%b"}\n\n' % self._fingerprint.encode()
        return [self._head + b',"choices":[],"usage":' + found + fingerprint, DONE]

    def _event(self, fields: bytes, usage: Usage, completion_tokens: int) -> bytes:
        if self._continuous:
            so_far = Usage(usage.prompt_tokens, completion_tokens)
            fields += b',"usage":' + msgspec.json.encode(usage_object(so_far, False))
        return self._head + fields + b"}\n\n"


class OpenAIRoutes:
    """POST /v1/chat/completions and /v1/completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, call: Call) -> None:
        request = await read(call, ChatRequest)
        request.check()
        model = self._service.model(request.model)
        messages = tools_message(request.tools) + [m.rendered() for m in request.messages]
        prompt = render_chat(
            messages,
            replies=request.add_generation_prompt,
            continues=request.continue_final_message,
        )
        answer = self._answer("chatcmpl-", "chat.completion", call, model)
        await self._answer_with(call, request, [tokenize(prompt)], answer)

    async def completions(self, call: Call) -> None:
        request = await read(call, CompletionRequest)
        request.check()
        model = self._service.model(request.model)
        answer = self._answer("cmpl-", "text_completion", call, model)
        await self._answer_with(call, request, prompts_of(request.prompt), answer)

    async def _answer_with(
        self,
        call: Call,
        request: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        answer: dict[str, Any],
    ) -> None:
        service = self._service
        key = CacheKey(
            service.model(request.model).adapter,
            request.cache_salt,
            call.header(b"x-session-id"),
        )
        jobs = service.replying(prompts, request.limits, key, request.announces_reuse)
        if request.stream:
            if answer["object"] == "chat.completion":
                answer["object"] = "chat.completion.chunk"
            await stream(service, call, jobs, OpenAIRendering(answer, request))
            return
        with service.generating(call, jobs) as generation:
            await generation.finish()
        body = _unary_body(request, generation, answer)
        await call.reply(200, msgspec.json.encode(body))

    def _answer(self, prefix: str, kind: str, call: Call, model: Model) -> dict[str, Any]:
        """The fields an answer and every chunk of it begin with."""
        return {
            "id": self._service.new_id(prefix, call),
            "object": kind,
            "created": int(self._service.now_s()),
            "model": model.name,
            "system_fingerprint": self._service.fingerprint,
            "details": self._service.settings.prompt_tokens_details,
        }


def _unary_body(
    request: ChatRequest | CompletionRequest, generation: Generation, answer: dict[str, Any]
) -> dict[str, Any]:
    details = answer.pop("details")
    choices = [_choice(request, index, job) for index, job in enumerate(generation.jobs)]
    return {
        **answer,
        "choices": choices,
        "service_tier": None,
        "usage": usage_object(generation.usage, details),
        "kv_transfer_params": None,
    }


def _choice(request: ChatRequest | CompletionRequest, index: int, job: Job) -> dict[str, Any]:
    ending = {
        "logprobs": None,
        "finish_reason": job.reply.finish,
        "stop_reason": job.reply.stop_reason,
        "token_ids": None,
    }
    if isinstance(request, ChatRequest):
        message = {"role": "assistant", "content": job.reply.text, "refusal": None}
        return {"index": index, "message": message, **ending}
    before = detokenize(job.prompt) if request.echo else ""
    return {"index": index, "text": before + job.reply.text, **ending}


def prompts_of(prompt: str | list[Any]) -> list[list[int]]:
    """A text, a list of texts, a list of token ids, or a list of such lists. Raises ApiError."""
    if isinstance(prompt, str):
        return [tokenize(prompt)]
    if prompt and all(type(item) is int for item in prompt):
        return [prompt]
    found = []
    for item in prompt:
        if isinstance(item, str):
            found.append(tokenize(item))
        elif isinstance(item, list) and all(type(token) is int for token in item):
            found.append(item)
        else:
            raise bad_request("prompt must be text, token ids, or a list of these", "prompt")
    if not found:
        raise bad_request("prompt must not be empty", "prompt")
    return found
