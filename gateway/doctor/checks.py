"""What was seen of a replica is judged: a finding a line, each with what to change.

Pure. Invariants: every check gives exactly one finding, in a fixed order; one that could not be
made is UNKNOWN and says why, never GOOD; every finding that is not GOOD says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.doctor.evidence import Evidence, Published
from gateway.vocabulary import Seconds

CLOCK_S: Final[Seconds] = 2.0
"""A clock further off than this confuses whoever reads logs of both; routing does not use it."""

EVENTS_FLAG: Final = (
    '--kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq", '
    '"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}\''
)


class Verdict(StrEnum):
    """What a check came to."""

    GOOD = "ok"
    BAD = "change"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was checked, how it stands, and what to do about it."""

    check: str
    verdict: Verdict
    says: str


def good(check: str, says: str) -> Finding:
    """It is as it should be."""
    return Finding(check, Verdict.GOOD, says)


def bad(check: str, says: str) -> Finding:
    """It is not, and this is what to change."""
    return Finding(check, Verdict.BAD, says)


def unknown(check: str, says: str) -> Finding:
    """It could not be seen, and this is why."""
    return Finding(check, Verdict.UNKNOWN, says)


def findings(seen: Evidence) -> list[Finding]:
    """All checks of one replica; the first alone where it cannot be reached."""
    first = _reachable(seen)
    if first.verdict is Verdict.BAD:
        return [first]
    return [first, *(check(seen) for check in CHECKS)]


def _reachable(seen: Evidence) -> Finding:
    if seen.unreachable is not None:
        return bad("reachable", f"{seen.unreachable}; is the engine up, and is this its port?")
    if not seen.models:
        return bad("reachable", "it serves no model yet: wait until it has loaded")
    return good("reachable", f"vLLM {seen.version or '?'} serves {', '.join(seen.models)}")


def _clock(seen: Evidence) -> Finding:
    if seen.clock_off_s is None:
        return unknown("clock", "its answers carry no Date")
    if abs(seen.clock_off_s) > CLOCK_S:
        return bad(
            "clock",
            f"{seen.clock_off_s:+.1f} s from the clock here: run NTP on both, or logs will not "
            "line up",
        )
    return good("clock", f"within {CLOCK_S:g} s of the clock here")


def _prefix_caching(seen: Evidence) -> Finding:
    if seen.prefix_caching is None:
        return unknown("prefix caching", "its /metrics do not say (vllm:cache_config_info)")
    if not seen.prefix_caching:
        return bad("prefix caching", "off: start the engine with --enable-prefix-caching")
    return good("prefix caching", "on")


def _capacity(seen: Evidence) -> Finding:
    if seen.blocks is None or seen.block_size is None:
        return unknown(
            "capacity",
            "its /metrics do not say: set choose.cache_tokens to what its KV cache holds",
        )
    tokens = seen.blocks * seen.block_size
    return good("capacity", f"{seen.blocks} blocks of {seen.block_size} tokens: {tokens} tokens")


def _cached_tokens(seen: Evidence) -> Finding:
    asked = seen.asked
    if asked is None or asked.wrong is not None:
        return unknown(
            "cached_tokens", "no answer to read it from" if asked is None else _why(seen)
        )
    if asked.cached_second is None:
        return bad(
            "cached_tokens",
            "not reported, so predictions cannot be audited: start the engine with "
            "--enable-prompt-tokens-details",
        )
    if asked.cached_second == 0 and seen.prefix_caching is not False:
        return bad(
            "cached_tokens",
            f"a prompt of {asked.prompt_tokens} tokens asked twice was cached to 0 of them: is the "
            "KV cache far too small, or --block-size too large?",
        )
    return good(
        "cached_tokens",
        f"reported: {asked.cached_second} of {asked.prompt_tokens} when asked again",
    )


def _events(seen: Evidence) -> Finding:
    if seen.sources is None:
        return unknown(
            "KV events",
            "it has no /kv_event_sources (vLLM before 0.32?): set fleet.replicas[].kv_events, or "
            "upgrade",
        )
    if not seen.sources:
        return bad("KV events", f"off: start the engine with {EVENTS_FLAG}")
    published = seen.published
    if published is None:
        return unknown("KV events", "no prompt could be asked, so none were waited for")
    where = ", ".join(source.endpoint for source in seen.sources)
    if not published.batches:
        return bad(
            "KV events",
            f"announced at {where}, but none came. Is the port open from here? vLLM listens only "
            'where "endpoint" has a wildcard, as in "tcp://*:5557"; it connects to a host it names',
        )
    return good("KV events", f"{published.batches} batches came from {where}")


def _replay(seen: Evidence) -> Finding:
    if not seen.sources:
        return unknown("replay", "there are no events to replay")
    if all(source.replay_endpoint is None for source in seen.sources):
        return bad(
            "replay",
            'off: add "replay_endpoint": "tcp://*:5558" to --kv-events-config, or what is missed '
            "once is never learnt",
        )
    replayed = seen.replayed
    if replayed is None:
        return unknown("replay", "it was not asked")
    if not replayed.batches and not replayed.is_ended:
        return bad("replay", "announced, but no answer: is its port open from here?")
    return good("replay", f"{replayed.batches} past batches came")


def _block_size(seen: Evidence) -> Finding:
    published = seen.published
    size = published.block_size if published is not None else seen.block_size
    if size is None:
        return unknown("block size", "neither events nor /metrics say")
    if published is not None and published.has_groups:
        return bad(
            "block size",
            "a hybrid model with several groups of blocks: its cache is followed approximately",
        )
    if size > 256:
        return bad(
            "block size", f"{size} tokens: shorter prefixes are never shared; lower --block-size"
        )
    return good("block size", f"{size} tokens")


def _hash(seen: Evidence) -> Finding:
    published = seen.published
    if published is None or not published.chain:
        return unknown("hash algorithm", "no stored block was seen")
    if not seen.chains:
        return unknown("hash algorithm", "the prompt's tokens are not known here (see tokenizer)")
    found = _algorithm(seen, published)
    if found is None:
        return bad(
            "hash algorithm",
            "its block hashes are not reproducible here: start every replica with "
            "--prefix-caching-hash-algo sha256_cbor (blocks are told apart by their tokens until "
            "then)",
        )
    if found == "sha256":
        return good(
            "hash algorithm",
            "sha256, reproduced; sha256_cbor would be so for adapters and salts too",
        )
    return good("hash algorithm", f"{found}, reproduced")


def _algorithm(seen: Evidence, published: Published) -> str | None:
    """By which the events name blocks as we do."""
    stored = set(published.chain)
    for name, chain in seen.chains.items():
        if chain and chain[0] in stored:
            return name
    return None


def _tokenizer(seen: Evidence) -> Finding:
    read = seen.read
    if read.engine is None or read.ours is None:
        return unknown(
            "tokenizer",
            f"{read.wrong or 'not compared'}: name the model's folder with --tokenizer DIR",
        )
    if list(read.engine) != list(read.ours):
        return bad(
            "tokenizer",
            f"the engine reads the test prompt as {len(read.engine)} tokens, we as "
            f"{len(read.ours)}, and not the same ones: give both the same model folder and chat "
            "template",
        )
    return good("tokenizer", f"agrees, template included ({len(read.ours)} tokens)")


def _prediction(seen: Evidence) -> Finding:
    """Asked again, as much was cached as the blocks it had stored say."""
    asked, published = seen.asked, seen.published
    if asked is None or asked.cached_second is None or published is None or not published.chain:
        return unknown("prediction", "needs cached_tokens and events")
    if asked.prompt_tokens is None or published.block_size is None:
        return unknown("prediction", "the answer does not say how long the prompt was")
    expected = (asked.prompt_tokens - 1) // published.block_size * published.block_size
    if asked.cached_second != expected:
        return bad(
            "prediction",
            f"{asked.cached_second} tokens were cached, {expected} expected: the replica may be "
            "evicting under load; ask again when it is quiet",
        )
    return good("prediction", f"{expected} tokens expected to be cached, and they were")


def _ranks(seen: Evidence) -> Finding:
    degree = _degree(seen)
    sources = seen.sources or ()
    ranks = f"{len(sources)} data-parallel ranks, " if len(sources) > 1 else ""
    if degree is None:
        return unknown("parallelism", f"{ranks}its fingerprint does not say")
    return good("parallelism", f"{ranks}tensor-parallel degree {degree}")


def _degree(seen: Evidence) -> int | None:
    """From `system_fingerprint`: vllm-<version>[-tpN][-ppN][-dpN][-ep]-<hash>."""
    fingerprint = seen.asked.fingerprint if seen.asked is not None else None
    if fingerprint is None or not fingerprint.startswith("vllm-"):
        return None
    for part in fingerprint.split("-")[2:-1]:
        if part.startswith("tp") and part[2:].isdigit():
            return int(part[2:])
    return 1


def _why(seen: Evidence) -> str:
    return seen.asked.wrong or "" if seen.asked is not None else ""


CHECKS: Final[tuple[Callable[[Evidence], Finding], ...]] = (
    _prefix_caching,
    _cached_tokens,
    _capacity,
    _block_size,
    _events,
    _replay,
    _hash,
    _tokenizer,
    _prediction,
    _ranks,
    _clock,
)
