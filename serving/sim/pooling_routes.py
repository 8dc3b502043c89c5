"""Routes whose requests are only read: embeddings, pooling, classification, scores, reranking.

Vectors and scores are invented from the tokens alone, so equal inputs get equal answers on every
replica. A pair of texts is one prompt of the engine, as with a cross-encoder.
"""

from base64 import b64encode
from math import sqrt
from struct import pack
from typing import Any, Literal
from zlib import crc32

import msgspec

from serving.sim.api_errors import bad_request
from serving.sim.call import Call
from serving.sim.openai_routes import prompts_of
from serving.sim.requests import ChatMessage, read
from serving.sim.service import Service, Usage
from serving.sim.tokens import render_chat, token_bytes, tokenize

DIMENSIONS = 64
LABELS = ("negative", "positive")

Encoding = Literal["float", "base64"]
Texts = str | list[str]


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings, /pooling and /classify; chat messages may stand for `input`."""

    model: str | None = None
    input: str | list[Any] | None = None
    messages: list[ChatMessage] | None = None
    encoding_format: Encoding = "float"
    dimensions: int | None = None

    def prompts(self) -> list[list[int]]:
        if self.messages:
            return [tokenize(render_chat([m.rendered() for m in self.messages], replies=False))]
        if self.input is None:
            raise bad_request("either input or messages is required", "input")
        return prompts_of(self.input)


class ScoreRequest(msgspec.Struct, kw_only=True):
    """POST /score: one text or as many as the others, against each of the others."""

    model: str | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None

    def pairs(self) -> list[tuple[str, str]]:
        left, right = _listed(self.text_1 or self.queries), _listed(self.text_2 or self.documents)
        if len(left) == 1:
            left = left * len(right)
        if not right or len(left) != len(right):
            raise bad_request("Input lengths must be either 1:1, 1:N or N:N")
        return list(zip(left, right, strict=True))


class RerankRequest(msgspec.Struct, kw_only=True):
    """POST /rerank"""

    query: str
    documents: list[str | dict[str, Any]]
    model: str | None = None
    top_n: int = 0


class PoolingRoutes:
    """The routes; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embeddings(self, call: Call) -> None:
        await self._vectors(call, "embd-", "embedding", "embedding")

    async def pooling(self, call: Call) -> None:
        await self._vectors(call, "pool-", "pooling", "data")

    async def classify(self, call: Call) -> None:
        request = await read(call, EmbeddingRequest)
        prompts = request.prompts()
        usage = await self._read_through(call, request.model, prompts)
        data = [_classified(index, score_of(prompt)) for index, prompt in enumerate(prompts)]
        await self._list(call, "classify-", request.model, data, usage)

    async def score(self, call: Call) -> None:
        request = await read(call, ScoreRequest)
        prompts = [_pair(*pair) for pair in request.pairs()]
        usage = await self._read_through(call, request.model, prompts)
        data = [
            {"index": index, "object": "score", "score": score_of(prompt)}
            for index, prompt in enumerate(prompts)
        ]
        await self._list(call, "score-", request.model, data, usage)

    async def rerank(self, call: Call) -> None:
        request = await read(call, RerankRequest)
        texts = [_document_text(document) for document in request.documents]
        prompts = [_pair(request.query, text) for text in texts]
        if not prompts:
            raise bad_request("documents must not be empty", "documents")
        usage = await self._read_through(call, request.model, prompts)
        results = [
            {"index": index, "document": {"text": text}, "relevance_score": score_of(prompt)}
            for index, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        ]
        results.sort(key=lambda result: -float(str(result["relevance_score"])))
        body = {
            "id": self._service.new_id("rerank-", call),
            "model": self._service.model(request.model).name,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
            "results": results[: request.top_n or len(results)],
        }
        await call.reply(200, msgspec.json.encode(body))

    async def _vectors(self, call: Call, prefix: str, kind: str, field: str) -> None:
        request = await read(call, EmbeddingRequest)
        prompts = request.prompts()
        usage = await self._read_through(call, request.model, prompts)
        size = request.dimensions or DIMENSIONS
        data = [
            {"index": index, "object": kind, field: _encoded(prompt, size, request.encoding_format)}
            for index, prompt in enumerate(prompts)
        ]
        await self._list(call, prefix, request.model, data, usage)

    async def _read_through(self, call: Call, model: str | None, prompts: list[list[int]]) -> Usage:
        """Let the engine read the prompts. Raises ApiError, ClientLeftError."""
        jobs = self._service.reading(prompts, self._service.model(model))
        with self._service.generating(call, jobs) as generation:
            await generation.finish()
        return generation.usage

    async def _list(
        self, call: Call, prefix: str, model: str | None, data: list[dict[str, Any]], usage: Usage
    ) -> None:
        body = {
            "id": self._service.new_id(prefix, call),
            "object": "list",
            "created": int(self._service.now_s()),
            "model": self._service.model(model).name,
            "data": data,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
        await call.reply(200, msgspec.json.encode(body))


def embedding_of(prompt: list[int], size: int) -> list[float]:
    """A unit vector that depends on nothing but the tokens."""
    state = crc32(token_bytes(prompt))
    raw = []
    for _ in range(size):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        raw.append(state / (1 << 31) - 1.0)
    length = sqrt(sum(value * value for value in raw)) or 1.0
    return [value / length for value in raw]


def score_of(prompt: list[int]) -> float:
    """A number in 0..1 that depends on nothing but the tokens."""
    return crc32(token_bytes(prompt)) / 0xFFFFFFFF


def _encoded(prompt: list[int], size: int, encoding: Encoding) -> list[float] | str:
    vector = embedding_of(prompt, size)
    if encoding == "float":
        return vector
    return b64encode(pack(f"<{size}f", *vector)).decode()


def _classified(index: int, score: float) -> dict[str, Any]:
    probabilities = [1.0 - score, score]
    label = LABELS[score >= 0.5]
    return {"index": index, "label": label, "probs": probabilities, "num_classes": len(LABELS)}


def _pair(left: str, right: str) -> list[int]:
    """The left text is padded to whole tokens, so that pairs with one query share a prefix."""
    return tokenize(render_chat([("query", left), ("document", right)], replies=False))


def _listed(texts: Texts | None) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts or ())


def _document_text(document: str | dict[str, Any]) -> str:
    if isinstance(document, str):
        return document
    text = document.get("text")
    return text if isinstance(text, str) else msgspec.json.encode(document).decode()
