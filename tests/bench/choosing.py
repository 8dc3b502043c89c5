"""`python -m tests.bench.choosing`: what choosing among many replicas costs, and knowing caches.

Prints one line per figure: median and range of CPU time over repetitions, and the target. In one
process, nothing is sent. `--blocks` is how many blocks the memory figure is taken at.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from gateway.choose.block_hash import SHA256, Chain
from gateway.choose.chooser import Chooser
from gateway.choose.holdings import Holdings
from gateway.choose.policies import policy
from gateway.fleet.ledger import Replica
from gateway.kv_cache import BlockListener, BlocksStored, Certainty, EngineFacts, Tokenised
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import ROUTES, ModelName, ReplicaAddress, ReplicaId
from tests.bench.machine import describe

ROOT: Final = Path(__file__).resolve().parents[2]
REPLICAS: Final = 64
SIZE: Final = 16
SEED: Final = 20_261_126
WARM: Final = 8  # replicas that hold some of the long prompt
ROUNDS: Final = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.choosing", description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000_000, help="for the memory figure")
    args = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe(ROOT).items()))
    print(f"{REPLICAS} replicas, blocks of {SIZE} tokens, seed {SEED}")
    rng = random.Random(SEED)
    for name, unit, target, samples in (
        ("choose, 2 KB prompt nobody knows", "us", "< 25", unseen(rng)),
        ("choose, 128 KB, 90 % known, by blocks", "us", "< 200", shared(rng, by_blocks=True)),
        ("choose, 128 KB, 90 % known, by text", "us", "< 200", shared(rng, by_blocks=False)),
        ("choose and dispatch, 2 KB nobody knows", "us", "-", unseen(rng, dispatch=True)),
        ("ingestion, names are the engine's own", "blocks/s", "> 200000", ingestion(rng, True)),
        ("ingestion, bridged", "blocks/s", "> 200000", ingestion(rng, False)),
    ):
        middle, low, high = statistics.median(samples), min(samples), max(samples)
        print(f"{name:42} {middle:12,.1f} [{low:,.1f} to {high:,.1f}] {unit} (target {target})")
    before = memory_mb()
    fill(rng, args.blocks)
    print(f"{args.blocks:,} blocks: {memory_mb():,.0f} MB resident at most, {before:,.0f} before")
    return 0


def memory_mb() -> float:
    """Resident at most, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform == "linux" else 1024 * 1024)


def request(prompt: bytes) -> GenerationRequest:
    """As parsed; a token for every four bytes."""
    route, tokens = ROUTES[0], len(prompt) // 4
    return GenerationRequest(
        route, ModelName("m"), True, len(prompt), tokens, None, prompt, (("tools", b"tools"),)
    )


def fleet() -> tuple[Replica, ...]:
    """Idle ones, as a roster keeps them."""
    addresses = [f"http://10.0.0.{n}:8000" for n in range(1, REPLICAS + 1)]
    return tuple(Replica(ReplicaAddress(each)) for each in addresses)


def listening(chooser: Chooser, replicas: Sequence[Replica]) -> BlockListener:
    """All tell what they hold."""
    holdings = chooser.listener
    assert holdings is not None
    chain = names(range(SIZE))
    for replica in replicas:
        holdings.described(replica.id, EngineFacts(block_size=SIZE, cache_tokens=2_000_000))
        holdings.certainty(replica.id, Certainty.EXACT)
        holdings.apply(replica.id, [BlocksStored(chain, None, list(range(SIZE)), SIZE)])
    return holdings


def names(tokens: Sequence[int]) -> array[int]:
    """The engine's, of all full blocks."""
    chain = Chain()
    for _ in chain.grow(SHA256, (None, None), tokens, SIZE):
        pass
    return chain.hashes


def timed(work: Callable[[], object]) -> float:
    """Seconds of CPU, with what has been built before out of the collector's sight, as the house
    does when it starts."""
    gc.collect()
    gc.freeze()
    start = time.process_time()
    work()
    return time.process_time() - start


def unseen(rng: random.Random, *, dispatch: bool = False) -> list[float]:
    """Microseconds a request, over a history of other prompts."""
    chooser, replicas = policy(ChooseSettings(policy="cache-aware"), rng), fleet()
    listening(chooser, replicas)
    for _ in range(500):
        old = request(rng.randbytes(2048))
        chooser.dispatched(old, chooser.choose(old, replicas, 0.0), 0.0).__enter__()
    samples = []
    for _ in range(ROUNDS):
        asked = [request(rng.randbytes(2048)) for _ in range(1000)]

        def work(asked: list[GenerationRequest] = asked) -> None:
            for each in asked:
                choice = chooser.choose(each, replicas, 0.0)
                if dispatch:
                    with chooser.dispatched(each, choice, 0.0) as claim:
                        claim.first_byte(0.0)

        samples.append(timed(work) * 1e6 / len(asked))
    return samples


def shared(rng: random.Random, *, by_blocks: bool) -> list[float]:
    """Microseconds a request whose first nine tenths some replicas hold, each a part of its own."""
    chooser, replicas = policy(ChooseSettings(policy="cache-aware"), rng), fleet()
    holdings = listening(chooser, replicas) if by_blocks else None
    known = rng.randbytes(131_072 * 9 // 10)
    tokens = [rng.randrange(100_000) for _ in range(len(known) // 4)]
    chain = names(tokens)
    for at in range(WARM):
        part = len(known) * (at + 1) // WARM
        asked = request(known[:part])
        choice = chooser.choose(asked, replicas[at : at + 1], 0.0)
        with chooser.dispatched(asked, choice, 0.0) as claim:
            claim.first_byte(0.0)
        if holdings is not None:
            blocks = part // 4 // SIZE
            event = BlocksStored(chain[:blocks], None, tokens[: blocks * SIZE], SIZE)
            holdings.apply(replicas[at].id, [event])
            edges = [(each, each // 4) for each in range(4, part + 1, 4)]
            for _ in chooser.learn(claim, Tokenised(tokens[: part // 4], edges)):
                pass
    chooser.tidy(10.0)
    samples = []
    for _ in range(ROUNDS):
        prompts = [request(known + rng.randbytes(131_072 // 10)) for _ in range(100)]

        def work(prompts: list[GenerationRequest] = prompts) -> None:
            for each in prompts:
                chooser.choose(each, replicas, 0.0)

        samples.append(timed(work) * 1e6 / len(prompts))
    return samples


def prompts_told(rng: random.Random, *, is_native: bool) -> Iterator[list[BlocksStored]]:
    """Prompts of 2048 tokens, told as two steps of an engine."""
    half = 64 * SIZE
    for _ in range(200):
        tokens = [rng.randrange(100_000) for _ in range(2 * half)]
        chain = (
            names(tokens) if is_native else array("Q", [rng.getrandbits(64) for _ in range(128)])
        )
        yield [
            BlocksStored(chain[:64], None, tokens[:half], SIZE),
            BlocksStored(chain[64:], chain[63], tokens[half:], SIZE),
        ]


def ingestion(rng: random.Random, is_native: bool) -> list[float]:
    """Blocks per second of one core."""
    samples = []
    for _ in range(ROUNDS):
        holdings = Holdings(1_000_000, 100_000.0)
        told = list(prompts_told(rng, is_native=is_native))

        def work(holdings: Holdings = holdings, told: list[list[BlocksStored]] = told) -> None:
            for at, events in enumerate(told):
                holdings.apply(ReplicaId(str(at % REPLICAS)), events)

        samples.append(128 * len(told) / timed(work))
    return samples


def fill(rng: random.Random, blocks: int) -> BlockListener:
    """So many different blocks; one in eight is held by two replicas."""
    chooser, replicas = policy(ChooseSettings(policy="cache-aware"), rng), fleet()
    holdings = listening(chooser, replicas)
    for start in range(0, blocks, 64):
        hashes = array("Q", [rng.getrandbits(64) for _ in range(min(64, blocks - start))])
        first = rng.randrange(REPLICAS)
        event = BlocksStored(hashes, 1, (), SIZE)
        holdings.apply(replicas[first].id, [event])
        if not start // 64 % 8:
            holdings.apply(replicas[(first + 1 + rng.randrange(REPLICAS - 1)) % 64].id, [event])
    return holdings


if __name__ == "__main__":
    sys.exit(main())
