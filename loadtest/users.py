"""Locust users for OpenAI-compatible endpoints: streamed chat, completions, responses, embeddings.

Derive from `StreamingUser` and write tasks as with any Locust user:

    class Reader(StreamingUser):
        wait_time = constant_pacing(2)

        @task
        def ask(self):
            self.client.chat([{"role": "user", "content": "Name three rivers."}], max_tokens=60)

Each request appears in Locust's statistics, web UI and CSV as itself (response time: end to end;
size: output tokens) and beside it, under its name, as TTFT, ITL (a value for each gap), TPOT and
GOOD, whose rate is the goodput. Only the request itself counts in Locust's totals.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from locust import User

from loadtest.replies import Reply
from loadtest.samples import Marks, Objectives, Sample, sample_of
from loadtest.stream import Client, Endpoint
from loadtest.workloads import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES

if TYPE_CHECKING:
    from locust.env import Environment


class RequestFailed(Exception):
    """What Locust is told of a request that brought no whole reply; the message is its kind."""


def log_sample(environment: Environment, sample: Sample, good: bool) -> None:
    """Enter one sample in Locust's statistics."""
    name = f"{sample.tenant}: {sample.label}" if sample.tenant else sample.label
    environment.events.request.fire(
        request_type="POST",
        name=name,
        response_time=sample.e2e_s * 1e3,
        response_length=sample.output_tokens or 0,
        exception=None if sample.error is None else RequestFailed(sample.error),
        context={},
    )
    if sample.error is not None:
        return
    entry = environment.stats.entries
    for method, values_s in (
        ("TTFT", [sample.ttft_s]),
        ("TPOT", [sample.tpot_s]),
        ("ITL", sample.gaps_s),
        ("GOOD", [sample.e2e_s] if good else []),
    ):
        for value_s in values_s:
            if value_s is not None:
                # an int, says Locust, but keeps fractions in means; its percentiles are rounded
                entry[(name, method)].log(value_s * 1e3, 0)  # type: ignore[arg-type]


class ApiClient:
    """What a user asks with. Each call waits for the whole reply, marks it, and enters it."""

    def __init__(
        self, client: Client, model: str, take: Callable[[Sample], None], began_s: float
    ) -> None:
        self._client = client
        self._model = model
        self._take = take
        self._began_s = began_s

    def chat(self, messages: list[dict[str, Any]], *, name: str = "chat", **more: object) -> Reply:
        """`/v1/chat/completions`, streamed unless `stream=False`; `more` goes into the body."""
        return self._post(CHAT, name, {"messages": messages, **_streamed(more)})

    def completions(self, prompt: str, *, name: str = "completions", **more: object) -> Reply:
        """`/v1/completions`, streamed unless `stream=False`."""
        return self._post(COMPLETIONS, name, {"prompt": prompt, **_streamed(more)})

    def responses(self, asked: object, *, name: str = "responses", **more: object) -> Reply:
        """`/v1/responses`, streamed unless `stream=False`."""
        return self._post(RESPONSES, name, {"input": asked, "stream": True, **more})

    def embeddings(self, asked: object, *, name: str = "embeddings", **more: object) -> Reply:
        """`/v1/embeddings`."""
        return self._post(EMBEDDINGS, name, {"input": asked, **more})

    def _post(self, path: str, name: str, body: dict[str, object]) -> Reply:
        marks = Marks(perf_counter())
        reply = self._client.post(path, {"model": self._model, **body}, marks)
        marks.shift(-self._began_s)
        self._take(sample_of(marks, name, error=reply.error))
        return reply


def _streamed(more: dict[str, object]) -> dict[str, object]:
    if more.get("stream") is False:
        return more
    return {"stream": True, "stream_options": {"include_usage": True}, **more}


class StreamingUser(User):
    """One user of an OpenAI-compatible endpoint at `host`; see the module. Abstract."""

    abstract = True
    model: str = ""
    """Empty: what HEADRACE_MODEL says."""
    api_key_variable: str = "OPENAI_API_KEY"
    objectives: Objectives = Objectives()
    """What counts as good."""
    client: ApiClient

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        endpoint = Endpoint.of(self.host or "", api_key=os.environ.get(self.api_key_variable))
        model = self.model or os.environ.get("HEADRACE_MODEL", "")
        self._connections = Client(endpoint)
        self.client = ApiClient(self._connections, model, self._take, perf_counter())

    def on_stop(self) -> None:
        """Close what is open."""
        self._connections.close()

    def _take(self, sample: Sample) -> None:
        log_sample(self.environment, sample, self.objectives.met_by(sample))
