"""One prompt sent to one replica: what was expected of its cache, and what came of it.

Invariants. Where events are read a prompt is pending from dispatch on until its first byte and a
while after, or until it is dropped, whichever is first, and once. Its hit is judged once, when both
the response and, on replicas whose events are read, its tokens are known, in whichever order.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

from gateway.choose.audit import Answers, Audit, Curiosity
from gateway.choose.block_hash import Chain
from gateway.choose.given import Given
from gateway.choose.kv_source import Instant, KvSource
from gateway.choose.ruler import Ruler
from gateway.choose.stretch import End, Lesson
from gateway.choose.text_chain import MARKS, Hash, Prompt
from gateway.choose.text_index import TextIndex
from gateway.kv_cache import Certainty
from gateway.record import Value
from gateway.request import Usage
from gateway.vocabulary import Seconds, Tokens

SHORTER, LONGER, STEADY = 0.9, 1.1, 1.01
"""What a surprise makes of the size a cache is believed to have."""

ROUGHLY: Final = 8  # hits told from bytes may be off by one part in so many

PENDING_S: Final = 2.0
"""After the first byte, events of what was stored before it have come."""

GUESSED_BLOCK: Final = 16  # vLLM's default, of a replica that does not say


class Grade(StrEnum):
    """How a replica's cache is known."""

    EXACT = "exact"
    PARTIAL = "partial"
    APPROXIMATE = "approximate"


_APPROXIMATE: Final = Grade.APPROXIMATE  # found faster by names of our own
_SILENT: Final = Certainty.SILENT


class Record:
    """What is known of one replica."""

    __slots__ = ("_block_size", "answers", "audit", "curiosity", "has_cache", "sent", "source")

    def __init__(
        self, source: KvSource, sent: Given, curiosity: Curiosity, answers: Answers
    ) -> None:
        """`curiosity` and `answers` are all replicas'."""
        self.source = source
        self.sent = sent
        self.curiosity = curiosity
        self.answers = answers
        self.audit = Audit()
        self.has_cache = True
        self._block_size: Tokens = GUESSED_BLOCK

    def __repr__(self) -> str:
        return f"<Record {self.grade}, {self.source!r}, {self.sent!r}>"

    @property
    def grade(self) -> Grade:
        """How well its events tell its cache."""
        if not self.source.is_readable or self.audit.is_doubted:
            return _APPROXIMATE
        return Grade.EXACT if self.source.certainty is Certainty.EXACT else Grade.PARTIAL

    @property
    def block_size(self) -> Tokens:
        """Hits are multiples of it: as events tell it, else as it was described."""
        return self.source.block_size or self._block_size

    def described(self, block_size: Tokens) -> None:
        """It says so."""
        self._block_size = block_size


class CacheState(Value, frozen=True):
    """For metrics: what is known of one replica's cache."""

    blocks: int
    believed_tokens: Tokens
    grade: Grade
    audit: Audit


class Dispatch:
    """From the choice on. Whatever is told twice counts once."""

    __slots__ = (
        "_arrived", "_end", "_found", "_instant", "_is_awaited", "_is_pending", "_last",
        "_parting", "_predicted", "_prompt", "_sent", "_settled", "_texts", "_unread_from",
        "hashes", "named", "record", "wants_report", "wants_tokens",
    )  # fmt: skip

    def __init__(
        self,
        texts: TextIndex,
        arrived: deque[tuple[Seconds, Dispatch]],
        record: Record,
        prompt: Prompt,
        foreseen: tuple[Tokens, Ruler],
    ) -> None:
        """It is sent; `arrived` gets those that are pending and whose first byte came."""
        self._texts = texts
        self._arrived = arrived
        self._sent = record.sent
        self._predicted, ruler = foreseen
        self._prompt: Prompt | None = prompt
        self._end = ruler.ends.get(record.sent.bit)
        self._parting = ruler.parting(record.sent.bit)
        self._is_awaited = True  # its first byte is
        self._is_pending = record.source.certainty is not _SILENT
        self.hashes: list[Hash] = prompt.whole()
        self._unread_from, self._last = texts.send(
            record.sent,
            self.hashes,
            ruler.per_byte,
            is_pending=self._is_pending,
            walk=ruler.walk,
        )
        self._instant: Instant | None = None  # while its hit waits to be settled
        self._settled: Tokens | None = None
        self._found: Tokens | None = None
        self.record = record
        self.named: Lesson | None = None
        """The names of its blocks, where they were found out before it was sent."""
        self.wants_tokens = False
        """Its prompt is worth reading: its replica tells of its blocks, whose names are missing."""
        self.wants_report = False
        """The engine is to be asked to tell what it reused."""

    def __repr__(self) -> str:
        return f"<Dispatch {self._predicted} tokens predicted, {self._settled} settled>"

    @property
    def read_share(self) -> float:
        """Of its prompt, the part that the replica had read of others when it was sent: what was
        only on its way there is not counted. To be asked before it has ended."""
        read = min(self._unread_from, len(self.hashes))
        return MARKS[read - 1] / len(self._prompt) if read and self._prompt is not None else 0.0

    def foresees(self, tokens: Tokens) -> None:
        """So many more will be found there, which others bring."""
        self._predicted += tokens

    def watch(self) -> None:
        """Its hit will be settled: remember from now on how the replica's blocks change."""
        self._instant = self.record.source.watch()

    def first_byte(self, now: Seconds) -> None:
        """The replica has read the prompt."""
        if self._is_awaited:
            self._is_awaited = False
            if self._unread_from < len(self.hashes):
                self._texts.arrived(self._sent, self.hashes, self._unread_from)
            if self._is_pending:
                self._arrived.append((now, self))

    def expired(self) -> None:
        """Its first byte is long past: events tell the rest."""
        self._texts.settle(self._sent, self.hashes)

    def ended(self) -> None:
        """It is over. If no first byte has come, the prompt is not there."""
        self._prompt = None  # it is a view of the request's body
        if self._found is None:
            self._unwatch()  # nothing to judge
        if self._is_awaited:
            self._is_awaited = False
            self._texts.failed(self._sent, self.hashes, self._unread_from)
            if self._is_pending:
                self._texts.settle(self._sent, self.hashes)

    def answered(self, usage: Usage, now: Seconds) -> None:
        """The response was relayed whole, and this is what it says."""
        self.first_byte(now)
        cached_tokens = usage.cached_tokens
        if usage.prompt_tokens and usage.output_tokens:
            self._remember(usage.prompt_tokens, usage.output_tokens)
        if cached_tokens is None:
            return
        self._learn(cached_tokens)
        record = self.record
        record.audit.predicted.add(self._predicted, cached_tokens, record.block_size)
        record.curiosity.foresaw(self._predicted, cached_tokens, record.block_size)
        if record.grade is _APPROXIMATE and record.has_cache:
            self._resize(cached_tokens)
        self._found = cached_tokens
        if self._settled is not None:
            self._judge(self._settled, cached_tokens)

    def _remember(self, prompt_tokens: Tokens, output_tokens: Tokens) -> None:
        """Its next turn begins with it and its answer, of which the last token is not computed."""
        prompt, last = self._prompt, self._last
        if prompt is None or last is None or last.last != self.hashes[-1]:
            return
        length = len(prompt)
        digest = prompt.digest(len(self.hashes), length)
        computed = prompt_tokens + output_tokens - 1
        last.end(End(length, digest, self._sent.bit, prompt_tokens, computed))

    def _learn(self, found: Tokens) -> None:
        """What was found where an earlier prompt ended, or where it parted from those known."""
        size, end, parting, prompt = self.record.block_size, self._end, self._parting, self._prompt
        if end is not None and prompt is not None:
            asked, whole = end.prompt_tokens // size * size, end.tokens // size * size
            is_next_turn = end.length < len(prompt)  # or the same prompt again
            if is_next_turn and whole > asked and found >= asked - size:
                self.record.answers.found(prompt.model, is_kept=found > asked)
        elif parting is not None and found:
            margin = 2 * size + self._predicted // ROUGHLY
            stretch, marks = parting
            is_there = stretch.last == self.hashes[marks - 1]  # or prompts part before it
            if is_there and abs(found - self._predicted) <= margin:
                stretch.parted = found

    def settle(self, chain: Chain | None, length: Tokens) -> None:
        """The prompt is so many tokens, and these are the names of its blocks."""
        if self._instant is None:
            return
        source = self.record.source
        was = source.since(self._instant)
        self._unwatch()
        if chain is None or was is None or not source.is_readable:
            return
        size = self.record.block_size
        self._settled = source.prefix(chain.hashes[: (length - 1) // size], was) * size
        if self._found is not None:
            self._judge(self._settled, self._found)

    def _judge(self, settled: Tokens, found: Tokens) -> None:
        """Prompts on their way beside it are expected to be found and may be not, so anything
        between what was settled and what was predicted is right."""
        audit, size = self.record.audit, self.record.block_size
        audit.settled.add(settled, found)
        most = max(settled, self._predicted)
        audit.judge(min(settled, self._predicted) - size, most + size, found)

    def _resize(self, found: Tokens) -> None:
        margin = self.record.block_size + self._predicted // ROUGHLY
        if found < self._predicted - margin:
            self._sent.scale(SHORTER)
            self._texts.trim(self._sent)
        elif found > self._predicted + margin:
            self._sent.scale(LONGER)
        elif self._predicted:
            self._sent.scale(STEADY)

    def _unwatch(self) -> None:
        if self._instant is not None:
            self.record.source.unwatch(self._instant)
            self._instant = None
