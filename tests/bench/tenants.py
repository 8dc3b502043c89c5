"""What the tenants' room costs a request, in this process: python -m tests.bench.tenants

Each figure is the least of many short runs, less what the loop around it takes: other programs on
the machine make single runs slower, none faster.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import yaml

from gateway.accept.amend import Value, amended
from gateway.request import Usage
from gateway.tenants.document import read_documents
from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from gateway.tenants.tenancy import Strangers, Tenancy
from gateway.vocabulary import Route
from tests.bench.machine import describe
from tests.builders import a_chat, a_request, a_route

RUNS: Final = 1000
ROUNDS: Final = 100
KEY: Final = new_key(bytes(range(ID_BYTES + SECRET_BYTES)))
MANY: Final = 10**9
LIMITS: Final = {"requests_per_minute": MANY, "tokens_per_minute": MANY}


class Caller(msgspec.Struct):
    """A request's exchange, as the room sees it."""

    body: bytes
    fields: dict[bytes, bytes]
    route: Route = a_route()
    received_at: float = 0.0
    on_behalf_of: str | None = None
    notes: Sequence[bytes] = ()

    def amend(self, *path: str, value: Value) -> bool:
        """As an exchange does it, less the keeping."""
        return amended(self.body, path, value) is not self.body


class Became(msgspec.Struct):
    """What became of it."""

    usage: Usage = Usage(90, 10, None)
    dispatched_at: float = 0.0
    first_byte_at: float = 0.1
    chunks: int = 1
    status: int = 200


def a_tenancy(**tenant: object) -> Tenancy:
    """One tenant, who has the key."""
    document = {
        "salt_secret": "s" * 32,
        "tenants": [{"name": "acme", **tenant}],
        "keys": [{"id": KEY.id, "tenant": "acme", "sha256": digest(KEY.key.encode()).hex()}],
    }
    made = Tenancy(time.monotonic, time.time, 512)
    made.adopt(read_documents({"tenants.yaml": yaml.safe_dump(document).encode()}))
    return made


def cost_us(tenants: Tenancy | Strangers, body: bytes) -> float:
    """Of one request: who asks, may it, what was used."""
    client = Caller(body, {b"authorization": b"Bearer " + KEY.key.encode()})
    request, became = a_request(max_tokens=300), Became()

    def once() -> None:
        caller = tenants.identify(client)
        with caller.stay(caller.asks(request), client, became):
            pass

    return least_us(once) - least_us(lambda: None)


def least_us(once: Callable[[], None]) -> float:
    """The least of many short runs, per call."""
    return min(timeit.repeat(once, number=ROUNDS, repeat=RUNS)) / ROUNDS * 1e6


def main() -> None:
    """Print the figures."""
    for name, value in describe(Path(__file__).resolve().parents[2]).items():
        print(f"{name}: {value}")
    small, large = a_chat("hello there " * 30), a_chat("word and more of it " * 1000)
    for name, tenants, body in (
        ("no keys", Strangers(), small),
        ("keys, no limits", a_tenancy(), small),
        ("keys, requests and tokens a minute", a_tenancy(**LIMITS), small),
        ("keys, every limit", a_tenancy(**LIMITS, tokens_per_day=10**12, max_concurrent=9), small),
        ("the same and a salt", a_tenancy(**LIMITS, isolate_cache=True), small),
        ("the same and a salt", a_tenancy(**LIMITS, isolate_cache=True), large),
    ):
        print(f"{name} ({len(body)} bytes): {cost_us(tenants, body):.1f} us")


if __name__ == "__main__":
    main()
