"""What a request costs on a replica, in predicted seconds.

    cost = wait + load + T(u) + congestion x T'(u) + footprint x r x f / mean rate

`wait` is how long the replica is busy with prefill it already owes, `load` how long it takes to
bring in what it holds outside its GPU, T(u) its own prefill of the u prompt tokens it does not
hold.

T'(u) is the same on the mean replica of the pool, and times `congestion` it is what a cold prefill
costs those who come behind it there: rho / (1 - rho) for a replica that is busy for a share rho of
the time, within bounds. Without it a pool near its limit gives affinity away and must prefill more
for it. A replica that has been idle takes cold work cheaply: so a hot prefix gets one more copy
when those who hold it are behind and somebody is not. T' is not taken at the replica's own rate:
fast replicas would be filled too far.

`f` are the tokens in use there: those of running requests, what they share counted once. They push
what others come back for out of the cache, so that a replica which is idle for a moment but full of
conversations is no bargain. `r` is how much of prompts has been found in caches of late: where
nobody comes back, no cache is lost; what remains is that those who run slow each other down.

Where requests wait in the gateway, a newcomer overtakes those that stand behind it
(`gateway.order`): it does not wait for what they are owed, but T(u) is added for each of them, who
will wait for it.

Prefill is counted in *work*: tokens as they would be without context. Attention makes a token at
context c cost 1 + c / attention tokens; for a prompt of L tokens of which the last u are computed,
work is u (1 + (L - u / 2) / attention tokens).

docs/adr/0013 has what each term is worth, and those that were tried and left out.
"""

from __future__ import annotations

from typing import Final

from gateway.choose.text_chain import Hash
from gateway.record import Value
from gateway.vocabulary import Tokens

HALF: Final = 0.5
BUSY_S: Final = 10.0
"""Over how long a replica's busy share is taken: later looks count more, by exp(-t / BUSY_S)."""

REUSE_WEIGHT: Final = 0.005
"""Of one request among those before it, in the share of prompts that is found cached."""


class Price(Value, frozen=True):
    """The weights that were measured; others are for measuring.

    The congestions are what work costs those behind it, in multiples of its own time: on a replica
    that has been idle, at least on one that was busy for HALF of the time or more, and at most.
    Less at the bottom spreads bursts and grouped prompts over busy replicas, more on idle ones
    herds on a hot prefix. `footprint` is what a token in use costs those who come back, in tokens
    of prefill.
    """

    idle_congestion: float = 1.0
    least_congestion: float = 4.0
    most_congestion: float = 16.0
    footprint: float = 0.2

    def congestion(self, busy: float) -> float:
        """How dear uncached work is to those behind it, in multiples of its own time. O(1)."""
        if busy >= 1.0:
            return self.most_congestion
        idle, least = self.idle_congestion, self.least_congestion
        floor = idle + (least - idle) * min(busy / HALF, 1.0)
        return min(max(busy / (1.0 - busy), floor), self.most_congestion)


def work(prompt_tokens: Tokens, uncached: Tokens, attention_tokens: float) -> Tokens:
    """Tokens of prefill without context that take as long, rounded down. O(1)."""
    return int(uncached * (1.0 + (prompt_tokens - 0.5 * uncached) / attention_tokens))


class Footprint:
    """The tokens in use on one replica: what running requests share is counted once.

    Those that hit equally much of prompts that begin alike are taken to share it.

    Invariants. Never negative; zero when nothing runs.
    """

    __slots__ = ("_shared", "tokens")

    def __init__(self) -> None:
        self._shared: dict[object, int] = {}  # beginning and hit: how many run
        self.tokens: Tokens = 0

    def __repr__(self) -> str:
        return f"<Footprint {self.tokens} tokens>"

    def begin(self, beginning: Hash, hit: Tokens, own: Tokens) -> None:
        """A request with so many tokens of its own, beside a hit. O(1)."""
        key: object = (beginning, hit)  # put together once: of two that mypyc knows, at every use
        runs = self._shared.get(key, 0)
        self._shared[key] = runs + 1
        self.tokens += own if runs else own + hit

    def end(self, beginning: Hash, hit: Tokens, own: Tokens) -> None:
        """It is over."""
        key: object = (beginning, hit)  # put together once: of two that mypyc knows, at every use
        runs = self._shared[key] - 1
        if runs:
            self._shared[key] = runs
        else:
            del self._shared[key]
        self.tokens -= own if runs else own + hit
