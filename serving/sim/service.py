"""What every route needs: the models served, prompts into tokens, requests through the engine."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from zlib import crc32

from serving.sim.api_errors import ApiError, bad_request, unknown_model
from serving.sim.call import Call
from serving.sim.engine import EngineRequest, FinishReason
from serving.sim.faults import Faults
from serving.sim.kv_cache import Adapter, CacheKey
from serving.sim.replies import NO_REPLY, Reply, plan_reply
from serving.sim.requests import Limits
from serving.sim.runner import Clock, Runner
from serving.sim.settings import VERSION, SimSettings
from serving.sim.tokens import TOKEN_LIMIT


@dataclass(frozen=True, slots=True)
class Model:
    """A name a request may use; `adapter` is None for the base model."""

    name: str
    adapter: Adapter | None


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to compute, and the reply it will get."""

    prompt: list[int]
    reply: Reply
    key: CacheKey
    announces_reuse: bool = False


@dataclass(slots=True)
class Usage:
    """Tokens of one exchange, over all its prompts."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """A token's text, of the job at `index`; `finish` is set on the job's last."""

    index: int
    text: str
    finish: FinishReason | None
    stop_reason: str | None = None


class Generation:
    """The jobs of one exchange on their way through the engine."""

    def __init__(self, call: Call, jobs: Sequence[Job], ids: dict[str, int]) -> None:
        self.jobs = jobs
        self.usage = Usage(sum(len(job.prompt) for job in jobs))
        self.unfinished = ids
        self._channel = call.channel
        self._sent = [0] * len(jobs)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """All pieces there are, as often as there are any, until every job has ended.

        Raises ClientLeftError.
        """
        while self.unfinished:
            pieces = []
            for output in await self._channel.take():
                index = self.unfinished[output.request_id]
                sent = self._sent[index]
                if sent == 0:
                    self.usage.cached_tokens += output.cached_tokens
                text = ""
                if output.token is not None:
                    text = self.jobs[index].reply.pieces[sent]
                    self.usage.completion_tokens += 1
                    self._sent[index] = sent + 1
                if output.finish is not None:
                    del self.unfinished[output.request_id]
                    stop_reason = self.jobs[index].reply.stop_reason
                    pieces.append(Piece(index, text, output.finish, stop_reason))
                else:
                    pieces.append(Piece(index, text, None))
            yield pieces

    async def finish(self) -> None:
        """Wait until every job has ended. Raises ClientLeftError."""
        async for _ in self.pieces():
            pass


class Service:
    """The replica behind its routes."""

    def __init__(self, settings: SimSettings, runner: Runner, faults: Faults, clock: Clock) -> None:
        self.settings = settings
        self.runner = runner
        self.faults = faults
        self.now_s = clock
        """Seconds since the epoch, for `created`."""
        self.inflight = 0
        self.adapters = settings.adapters()
        self.max_model_len = runner.engine.shape.max_model_len
        self.fingerprint = f"vllm-{VERSION}-{crc32(repr(settings.models).encode()):08x}"
        self._rng = Random(settings.seed)
        self._requests = 0
        base = settings.models[0]
        self._models = {name: Model(base, None) for name in settings.models}
        self._models |= {adapter.name: Model(adapter.name, adapter) for adapter in self.adapters}

    def model(self, name: str | None) -> Model:
        """The model of this name, the base model for None or "". Raises ApiError."""
        found = self._models.get(name or self.settings.models[0])
        if found is None:
            raise unknown_model(str(name), ", ".join(self.settings.models))
        return found

    def new_id(self, prefix: str, call: Call) -> str:
        """An id for an answer: the client's X-Request-Id where it gave one, as vLLM does."""
        own = call.header(b"x-request-id")
        return f"{prefix}{own or format(self._rng.getrandbits(128), '032x')}"

    def reading(self, prompts: Sequence[list[int]], model: Model) -> list[Job]:
        """Jobs that only read their prompts. Raises ApiError."""
        key = CacheKey(model.adapter)
        return [Job(self._checked(prompt), NO_REPLY, key) for prompt in prompts]

    def replying(
        self, prompts: Sequence[list[int]], limits: Limits, key: CacheKey, announces: bool = False
    ) -> list[Job]:
        """Jobs that answer their prompts. Raises ApiError."""
        if limits.max_tokens is not None and limits.max_tokens > self.max_model_len:
            raise bad_request(
                f"max_tokens={limits.max_tokens} cannot be greater than "
                f"max_model_len={self.max_model_len}. Please request fewer output tokens.",
                "max_tokens",
            )
        seed = self.settings.seed
        if key.adapter is not None:
            seed ^= crc32(key.adapter.name.encode())
        mean = self.settings.mean_output_tokens
        jobs = []
        for prompt in prompts:
            room = self.max_model_len - len(self._checked(prompt))
            reply = plan_reply(prompt, limits, room, seed, mean)
            jobs.append(Job(prompt, reply, key, announces))
        return jobs

    @contextmanager
    def generating(self, call: Call, jobs: Sequence[Job]) -> Iterator[Generation]:
        """Put the jobs into the engine; whatever has not ended at the exit is aborted."""
        ids: dict[str, int] = {}
        try:
            for index, job in enumerate(jobs):
                self._requests += 1
                request = EngineRequest(
                    id=str(self._requests),
                    prompt=job.prompt,
                    output=job.reply.tokens,
                    finish=job.reply.finish,
                    key=job.key,
                    announces_reuse=job.announces_reuse,
                )
                self.runner.submit(request, call.channel.put)
                ids[request.id] = index
            yield Generation(call, jobs, ids)
        finally:
            for request_id in ids:
                self.runner.abort(request_id)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One exchange more in flight, for /load."""
        self.inflight += 1
        try:
            yield
        finally:
            self.inflight -= 1

    def _checked(self, prompt: list[int]) -> list[int]:
        """The prompt, if the model can take it. Raises ApiError."""
        if not prompt:
            raise bad_request("The decoder prompt cannot be empty", "prompt")
        if len(prompt) > self.max_model_len:
            raise bad_request(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"your prompt contains {len(prompt)} input tokens. Please reduce the length of "
                f"the input prompt.",
                "input_tokens",
            )
        if min(prompt) < 0 or max(prompt) >= TOKEN_LIMIT:
            raise ApiError(HTTPStatus.BAD_REQUEST, "token id out of vocabulary", None, "prompt")
        return prompt
