"""Many texts, each asked of a gateway; none is lost, and none fails the others.

The pace is the gateway's: calls go out as far as `Window` lets them, are sent again when it says
429 or 503, and wait where it is away, each for as long as `patience_s`. A call that is sent again
is the same, byte for byte, and bears the same X-Request-Id: nothing is kept by the gateway, so an
answer that came twice is one answer. Embeddings go many to a call; a call that is refused is
halved, until the text that is at fault stands alone.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from serving.jobs.calls import LATER, Answer, Away, Calls, read_key
from serving.jobs.pace import Window, backoff_s

PUSHED_BACK = frozenset({429, 503})
HOPELESS = frozenset({401, 403, 404})  # no key, no right, no model: as it is for one, it is for all
HALVED = frozenset({400, 413, 422})
KINDS = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings"}
_TRIES = 4  # of a call that is answered with 500 and the like
_OWN = frozenset({"model", "messages", "input", "stream", "n", "encoding_format"})


@dataclass(frozen=True)
class Scoring:
    """What is asked of each text, and how. Raises ValueError for what makes no sense."""

    endpoint: str
    model: str
    kind: str = "chat"
    """`chat` or `embeddings`."""
    system: str = ""
    """What a chat begins with."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """More of each body: `max_tokens`, `temperature`, `dimensions`."""
    api_key_file: str | None = None
    """Where each executor finds the key: it is in no plan and in no log."""
    concurrency: int = 16
    """Calls in flight, of each task, at the most."""
    rows_per_call: int = 32
    """Embeddings asked for at once."""
    patience_s: float = 7200.0
    """For how long a call is made again while the gateway cannot take it."""
    timeout_s: float = 1800.0
    """For how long an answer may take; a gateway holds what its replicas cannot take yet."""
    request_class: str = "batch"
    """X-Headrace-Class: interactive requests go first."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {self.kind}")
        if wrong := _OWN & set(self.parameters):
            raise ValueError(f"not a parameter here: {', '.join(sorted(wrong))}")
        if self.concurrency < 1 or self.rows_per_call < 1:
            raise ValueError("concurrency and rows_per_call are at least 1")
        if self.system and self.kind != "chat":
            raise ValueError("only a chat has a system prompt")

    def body(self, texts: Sequence[str]) -> bytes:
        """One call; a chat is about one text."""
        asked: dict[str, Any] = {"model": self.model, **self.parameters}
        if self.kind == "chat":
            system = [{"role": "system", "content": self.system}] if self.system else []
            asked["messages"] = [*system, {"role": "user", "content": texts[0]}]
        else:
            asked["input"] = list(texts)
        return json.dumps(asked).encode()

    def read(self, count: int, document: Any) -> list[Scored]:
        """The answers to `count` texts. Raises ValueError, KeyError, TypeError or IndexError for
        what is no answer to them."""
        if self.kind == "chat":
            usage = document.get("usage") or {}
            text = document["choices"][0]["message"]["content"]
            return [Scored(text, None, usage.get("prompt_tokens"), usage.get("completion_tokens"))]
        found = {each["index"]: [float(x) for x in each["embedding"]] for each in document["data"]}
        if set(found) != set(range(count)):
            raise ValueError(f"{len(found)} embeddings for {count} texts")
        return [Scored(found[index]) for index in range(count)]


@dataclass(frozen=True)
class Scored:
    """What has come of one text: an answer, or an error; neither, where the text is null."""

    answer: str | list[float] | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Refused(Exception):
    """The gateway will answer none of the texts."""


class Scorer:
    """Asks, from threads of its own, until it is closed; used by one thread."""

    def __init__(self, scoring: Scoring) -> None:
        """Connects to nothing yet. Raises BadAddress, OSError for a key that cannot be read."""
        self.gate = _Gate(scoring.concurrency)
        self._scoring = scoring
        self._key = read_key(scoring.api_key_file)
        Calls(scoring.endpoint)  # if the address is wrong, it is said here
        self._own = threading.local()
        self._opened: list[Calls] = []
        self._pool = ThreadPoolExecutor(scoring.concurrency, "score")

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.close()
        self._pool.shutdown(cancel_futures=True)
        for calls in self._opened:
            calls.close()

    def score(self, texts: Sequence[str | None]) -> list[Scored]:
        """What has come of each, in their order. Raises Refused, BadAddress."""
        scored = [Scored()] * len(texts)
        rows = [row for row, text in enumerate(texts) if text is not None]
        size = 1 if self._scoring.kind == "chat" else self._scoring.rows_per_call
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        asked = [[str(texts[row]) for row in group] for group in groups]
        for group, found in zip(groups, self._pool.map(self._group, asked), strict=True):
            for row, each in zip(group, found, strict=True):
                scored[row] = each
        return scored

    def _group(self, texts: list[str]) -> list[Scored]:
        answer = self._answer(texts)
        if isinstance(answer, str):
            return [Scored(error=answer)] * len(texts)
        if answer.status == 200:
            try:
                return self._scoring.read(len(texts), answer.json())
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                why = f"not an answer: {type(error).__name__}: {error}"
                return [Scored(error=why)] * len(texts)
        if answer.status in HOPELESS:
            raise Refused(f"the gateway says {answer.status}: {answer.message()}")
        if len(texts) > 1 and answer.status in HALVED:
            half = len(texts) // 2
            return self._group(texts[:half]) + self._group(texts[half:])
        return [Scored(error=f"{answer.status}: {answer.message()}")] * len(texts)

    def _answer(self, texts: list[str]) -> Answer | str:
        """The last answer to a call, or why there is none."""
        body = self._scoring.body(texts)
        headers = {
            "X-Request-Id": f"score-{uuid.uuid4().hex}",
            "X-Headrace-Class": self._scoring.request_class,
        }
        give_up_at = time.monotonic() + self._scoring.patience_s
        failures = broken = 0
        while True:
            sent_at = self.gate.enter()
            answer, why = self._sent(body, headers)
            failures += 1
            wait_s = backoff_s(failures, random.random())
            if answer is not None and answer.status in PUSHED_BACK:
                wait_s = answer.retry_after_s or wait_s
                self.gate.pushed_back(sent_at, wait_s)
            elif answer is not None:
                self.gate.answered()
            else:
                self.gate.failed()
            if answer is not None and answer.status not in LATER:
                broken += 1
                if answer.status < 500 or broken == _TRIES:
                    return answer
            if time.monotonic() + wait_s >= give_up_at:
                return answer or why
            self.gate.rest(wait_s)

    def _sent(self, body: bytes, headers: Mapping[str, str]) -> tuple[Answer | None, str]:
        if not hasattr(self._own, "calls"):
            self._own.calls = Calls(self._scoring.endpoint, self._key, self._scoring.timeout_s)
            self._opened.append(self._own.calls)
        calls: Calls = self._own.calls
        try:
            return calls.post(KINDS[self._scoring.kind], body, headers), ""
        except Away as away:
            return None, f"the gateway is away: {away}"


class Closed(Exception):
    """The scorer is closed: what still waits need not be asked."""


class _Gate:
    """A window that threads go through."""

    def __init__(self, most: int) -> None:
        self.window = Window(most)
        self._changed = threading.Condition()
        self._is_closed = False

    def enter(self) -> float:
        """Wait until a call may start; returns when that was. Raises Closed."""
        with self._changed:
            while (wait_s := self.window.wait_s(time.monotonic())) != 0.0:
                self._wait(wait_s)
            self._wait(0.0)
            self.window.start()
            return time.monotonic()

    def rest(self, seconds: float) -> None:
        """Wait that long. Raises Closed."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                self._wait(left)

    def answered(self) -> None:
        """A call ended."""
        with self._changed:
            self.window.answered()
            self._changed.notify_all()

    def failed(self) -> None:
        """A call ended without an answer."""
        with self._changed:
            self.window.failed()
            self._changed.notify_all()

    def pushed_back(self, sent_at: float, wait_s: float) -> None:
        """A call was refused for now."""
        with self._changed:
            self.window.pushed_back(sent_at, time.monotonic(), wait_s)
            self._changed.notify_all()

    def close(self) -> None:
        """Whoever waits is told to leave."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wait(self, seconds: float | None) -> None:
        if not self._is_closed and seconds != 0.0:
            self._changed.wait(seconds)
        if self._is_closed:
            raise Closed
