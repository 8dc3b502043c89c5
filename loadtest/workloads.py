"""What sessions ask: the requests of each, and how long their users think in between.

Pure and seeded. A session is a generator: it yields a step, is sent the texts that came back, and
goes on or ends. Session number n of a seed asks the same whoever runs it, so distributed workers
need agree on nothing but their share of the numbers. Steps with several calls make them at once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import log
from random import Random
from typing import Annotated, Any, Literal

import msgspec

from loadtest.traces import Replayed
from loadtest.words import text, text_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
TextRoute = Literal["chat", "completions", "responses"]


class Call(msgspec.Struct, frozen=True):
    """One request, but for the model's name."""

    path: str
    body: dict[str, Any]
    label: str
    tenant: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    key_variable: str | None = None
    """The environment variable that holds the API key, where it is not the run's."""


class Step(msgspec.Struct, frozen=True):
    """Calls made at once, `think_s` after the step before was answered."""

    calls: tuple[Call, ...]
    think_s: float = 0.0


Session = Generator[Step, Sequence[str], None]


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A log-normal length: its mean, its coefficient of variation, and the most it may be."""

    mean: Positive
    variation: NotNegative = 0.5
    most: AtLeastOne | None = None


Length = int | Spread


def draw(random: Random, length: Length) -> int:
    """A number of tokens, at least 1."""
    if isinstance(length, int):
        return max(1, length)
    square = log(1 + length.variation**2)
    drawn = round(random.lognormvariate(log(length.mean) - square / 2, square**0.5))
    return max(1, drawn if length.most is None else min(drawn, length.most))


def ask(route: TextRoute, messages: list[dict[str, str]], output_tokens: int) -> tuple[str, Any]:
    """Path and body of a streamed request for `output_tokens` at the most."""
    if route == "responses":
        return RESPONSES, {"input": messages, "max_output_tokens": output_tokens, "stream": True}
    body: dict[str, Any] = {
        "max_tokens": output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if route == "completions":
        prompt = "\n".join(message["content"] for message in messages)
        return COMPLETIONS, {"prompt": prompt, **body}
    return CHAT, {"messages": messages, **body}


class SharedPrefix(
    msgspec.Struct, frozen=True, tag_field="kind", tag="shared-prefix", forbid_unknown_fields=True
):
    """Single turns under one of a few long system prompts: assistants, each with many users."""

    groups: AtLeastOne = 8
    prefix_tokens: int = 1000
    prompt_tokens: Length = 100
    output_tokens: Length = 64
    route: TextRoute = "chat"

    def session(self, seed: int, number: int) -> Session:
        """One question."""
        random = Random(f"{seed} shared-prefix {number}")
        group = random.randrange(self.groups)
        messages = [
            _message("system", text_of(f"{seed} system {group}", self.prefix_tokens)),
            _message("user", text(random, draw(random, self.prompt_tokens))),
        ]
        path, body = ask(self.route, messages, draw(random, self.output_tokens))
        yield Step((Call(path, body, self.route),))


class MultiTurn(
    msgspec.Struct, frozen=True, tag_field="kind", tag="multi-turn", forbid_unknown_fields=True
):
    """Conversations: each turn repeats all before it, and users think before they write."""

    system_tokens: int = 200
    turns: Length = 5
    question_tokens: Length = 60
    output_tokens: Length = 80
    think_s: NotNegative = 2.0
    """In the mean; exponential."""

    def session(self, seed: int, number: int) -> Session:
        """One conversation. The replies are the endpoint's own."""
        random = Random(f"{seed} multi-turn {number}")
        messages = [_message("system", text_of(f"{seed} system", self.system_tokens))]
        for turn in range(draw(random, self.turns)):
            messages.append(_message("user", text(random, draw(random, self.question_tokens))))
            path, body = ask("chat", list(messages), draw(random, self.output_tokens))
            think_s = random.expovariate(1 / self.think_s) if turn and self.think_s else 0.0
            call = Call(path, body, "first turn" if turn == 0 else "later turn")
            (reply,) = yield Step((call,), think_s)
            messages.append(_message("assistant", reply))


class LongContext(
    msgspec.Struct, frozen=True, tag_field="kind", tag="long-context", forbid_unknown_fields=True
):
    """Prompts that share nothing, long ones: prefill is all there is."""

    prompt_tokens: Length = Spread(8000, 0.6, 30_000)
    output_tokens: Length = 32

    def session(self, seed: int, number: int) -> Session:
        """One prompt."""
        random = Random(f"{seed} long-context {number}")
        prompt = text(random, draw(random, self.prompt_tokens))
        path, body = ask("chat", [_message("user", prompt)], draw(random, self.output_tokens))
        yield Step((Call(path, body, "long context"),))


class Agents(
    msgspec.Struct, frozen=True, tag_field="kind", tag="agents", forbid_unknown_fields=True
):
    """Agents: each step asks several things of one context at once, then goes on."""

    context_tokens: int = 1500
    steps: Length = 4
    siblings: AtLeastOne = 4
    result_tokens: Length = 150
    output_tokens: Length = 48
    tool_s: NotNegative = 0.3
    """What the tools take between steps."""

    def session(self, seed: int, number: int) -> Session:
        """One task, from its first step to its last."""
        random = Random(f"{seed} agents {number}")
        messages = [_message("system", text_of(f"{seed} agent", self.context_tokens))]
        messages.append(_message("user", text(random, draw(random, self.result_tokens))))
        for step in range(draw(random, self.steps)):
            calls = []
            for _ in range(self.siblings):
                asked = [*messages, _message("user", text(random, 12))]
                path, body = ask("chat", asked, draw(random, self.output_tokens))
                calls.append(Call(path, body, "sibling"))
            replies = yield Step(tuple(calls), self.tool_s if step else 0.0)
            messages.append(_message("assistant", replies[0]))
            messages.append(_message("user", text(random, draw(random, self.result_tokens))))


class Rag(msgspec.Struct, frozen=True, tag_field="kind", tag="rag", forbid_unknown_fields=True):
    """Questions over documents put into the prompt; some documents are asked for far more often."""

    documents: AtLeastOne = 200
    per_question: AtLeastOne = 3
    document_tokens: int = 400
    skew: float = 1.0
    """Of Zipf's law: document k is asked for k^-skew times as often as the first."""
    system_tokens: int = 100
    question_tokens: Length = 30
    output_tokens: Length = 64

    def session(self, seed: int, number: int) -> Session:
        """One question; its documents come in the order of their drawing, as a ranker's would."""
        random = Random(f"{seed} rag {number}")
        weights = [rank**-self.skew for rank in range(1, self.documents + 1)]
        drawn = dict.fromkeys(random.choices(range(self.documents), weights, k=self.per_question))
        found = "\n".join(
            text_of(f"{seed} document {each}", self.document_tokens) for each in drawn
        )
        question = text(random, draw(random, self.question_tokens))
        messages = [
            _message("system", text_of(f"{seed} system", self.system_tokens)),
            _message("user", f"{found}\n{question}"),
        ]
        path, body = ask("chat", messages, draw(random, self.output_tokens))
        yield Step((Call(path, body, "rag"),))


class Embeddings(
    msgspec.Struct, frozen=True, tag_field="kind", tag="embeddings", forbid_unknown_fields=True
):
    """Small batches of texts to embed."""

    inputs: AtLeastOne = 4
    tokens: Length = 60

    def session(self, seed: int, number: int) -> Session:
        """One batch."""
        random = Random(f"{seed} embeddings {number}")
        inputs = [text(random, draw(random, self.tokens)) for _ in range(self.inputs)]
        yield Step((Call(EMBEDDINGS, {"input": inputs}, "embeddings"),))


Single = SharedPrefix | MultiTurn | LongContext | Agents | Rag | Embeddings


class TenantShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tenant of a mix: its share of the sessions, what it asks, and how it is known."""

    name: str
    share: Positive
    workload: Single
    key_variable: str | None = None
    """The environment variable that holds its API key; scenarios hold none."""
    headers: dict[str, str] = {}


class Tenants(
    msgspec.Struct, frozen=True, tag_field="kind", tag="tenants", forbid_unknown_fields=True
):
    """Several tenants at once, each with a workload of its own."""

    tenants: Annotated[list[TenantShare], msgspec.Meta(min_length=1)]

    def session(self, seed: int, number: int) -> Session:
        """A session of the tenant whose turn the seed says it is."""
        random = Random(f"{seed} tenants {number}")
        weights = [tenant.share for tenant in self.tenants]
        (tenant,) = random.choices(self.tenants, weights)
        known_by = {
            "tenant": tenant.name,
            "headers": tuple(tenant.headers.items()),
            "key_variable": tenant.key_variable,
        }
        session = tenant.workload.session(seed, number)
        step = next(session)
        while True:
            calls = tuple(msgspec.structs.replace(call, **known_by) for call in step.calls)
            replies = yield Step(calls, step.think_s)
            try:
                step = session.send(replies)
            except StopIteration:
                return


class Replay(
    msgspec.Struct, frozen=True, tag_field="kind", tag="replay", forbid_unknown_fields=True
):
    """A trace's requests, at its own times with arrivals of kind `own-times`, else at others.

    `scale` shortens prompts and blocks, `output_scale` replies, for engines smaller than those the
    trace was taken from; what is longer than `most_tokens` together is cut.
    """

    trace: str
    scale: Positive = 1.0
    output_scale: Positive = 1.0
    most_tokens: Annotated[int, msgspec.Meta(ge=2)] | None = None

    def session_of(self, request: Replayed) -> Session:
        """One request of the trace, made up again."""
        prompt = "".join(
            text_of(f"block {name}", max(1, round(tokens * self.scale)))
            for name, tokens in request.named()
        )
        own = Random(f"{request.at_s} {request.prompt_tokens} {request.output_tokens}")
        prompt += text(own, round(request.own_tokens * self.scale))
        output_tokens = max(1, round(request.output_tokens * self.output_scale))
        if self.most_tokens is not None:
            output_tokens = min(output_tokens, self.most_tokens // 2)
            prompt = prompt[: 4 * (self.most_tokens - output_tokens)]
        yield Step((_replayed(request, prompt, output_tokens),))


Workload = Single | Tenants | Replay


def _replayed(request: Replayed, prompt: str, output_tokens: int) -> Call:
    if request.route == EMBEDDINGS:
        return Call(EMBEDDINGS, {"input": [prompt]}, "embeddings", request.tenant)
    routes: dict[str, TextRoute] = {COMPLETIONS: "completions", RESPONSES: "responses"}
    route = routes.get(request.route, "chat")
    path, body = ask(route, [_message("user", prompt)], output_tokens)
    if not request.stream:
        body = {name: value for name, value in body.items() if not name.startswith("stream")}
    return Call(path, body, route, request.tenant)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
