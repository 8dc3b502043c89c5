"""What the console costs: `python -m tests.bench.console`. Best of some runs, in microseconds.

A snapshot and its encoding, as often as `console.every_s` says while somebody looks; and what a
request pays: while nobody looks, and while somebody does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from time import perf_counter

import msgspec

from gateway.app import House
from gateway.choose.explain import explained
from gateway.console.recent import DECISIONS
from gateway.console.snapshot import MOST_FAMILIES, snapshot
from gateway.fleet.health import Sign
from gateway.overview import Overview
from gateway.request import GenerationRequest
from gateway.settings import ConsoleSettings, Settings
from gateway.vocabulary import ModelName, ReplicaAddress
from tests.builders import MODEL, a_request, altered

ROUNDS = 7


def best_us(act: Callable[[], object], times: int) -> float:
    """Of one, the least over some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = perf_counter()
        for _ in range(times):
            act()
        found.append((perf_counter() - began) / times)
    return min(found) * 1e6


def a_house(replicas: int) -> House:
    """Not serving; all replicas healthy, and so much sent that there is everything to show."""
    house = House(Settings.of({"account": {"access_log": "off"}}))
    names = [f"http://10.0.{each // 250}.{each % 250 + 1}:8000" for each in range(replicas)]
    addresses = [ReplicaAddress(name, (ModelName(MODEL),)) for name in names]
    house.roster.apply(addresses, "static")
    for replica in house.roster.replicas:
        house.roster.sign(replica, Sign.PROBE_SUCCESS, 0.0)
    return house


def a_prompt(family: int) -> GenerationRequest:
    text = b'[{"role": "system", "content": "%d ' % family + b"water " * 2000 + b'"}]'
    return altered(a_request(prompt_tokens=len(text) // 4), prompt=text)


def show(replicas: int) -> None:
    """One line."""
    house, rng = a_house(replicas), Random(1)
    chooser, recent = house.chooser, house.life.rooms.recent
    overview = Overview(house.life, ConsoleSettings(), None)
    for number in range(10 * DECISIONS):
        request = a_prompt(rng.randrange(2 * MOST_FAMILIES))
        choice = chooser.choose(request, house.roster.replicas, float(number))
        recent.chosen(request, explained(choice), float(number))
        with chooser.dispatched(request, choice, float(number)) as claim:
            claim.first_byte(float(number))
            if claim.dispatch is not None:
                recent.sent(request, claim.dispatch.hashes, float(number))

    encode = msgspec.json.Encoder().encode
    told = snapshot(overview, recent, 1)
    taken = best_us(lambda: snapshot(overview, recent, 1), 20)
    encoded = best_us(lambda: encode(told), 20)
    noted = best_us(lambda: recent.chosen(request, explained(choice), 0.0), 200)
    asked = best_us(lambda: house.life.rooms.recent.is_wanted, 10_000) - best_us(
        lambda: None, 10_000
    )
    sys.stdout.write(
        f"{replicas:4} replicas: snapshot {taken:6.0f} us, encoding {encoded:5.0f} us for "
        f"{len(encode(told))} bytes; a request: {noted:4.1f} us watched, {asked:.3f} us not\n"
    )


if __name__ == "__main__":
    for count in (2, 16, 64):
        show(count)
