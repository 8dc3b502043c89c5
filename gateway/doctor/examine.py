"""One replica is examined: it is asked, listened to, and asked again.

Effects only: what was seen is `Evidence`, and what it means is for `checks` to say. A prompt that
nobody has sent before is sent twice, with one token of output each; nothing else about the replica
is touched, and everything is bounded in time.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zmq

from gateway.choose.block_hash import ENGINES, Chain
from gateway.doctor.evidence import Asked, Evidence, Published, Read, Replayed, Source
from gateway.doctor.web import Answer, NoAnswer, ask
from gateway.fleet.exposition import read_facts
from gateway.fleet.kv_sources import read_sources
from gateway.fleet.kv_wire import Message, read_batch, read_message, replay_request
from gateway.kv_cache import BlocksStored
from gateway.parse.parser import Parser, Shown
from gateway.tokens.prompts import Unreadable
from gateway.vocabulary import ROUTES, Seconds

ANSWER_S: Final[Seconds] = 60.0
LISTEN_S: Final[Seconds] = 3.0
JOIN_S: Final[Seconds] = 0.3
"""A subscription is in force only after the engine has heard of it."""

WORDS: Final = (
    "stone", "river", "lantern", "harvest", "copper", "meadow", "ladder", "winter", "basket",
    "signal", "timber", "garden", "window", "market", "feather", "anchor",
)  # fmt: skip

Reader = Callable[[str, Mapping[str, Any]], Sequence[int] | str]
"""A route and a body -> the prompt's tokens by our own means, or why there are none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an examination may take."""

    answer_s: Seconds = ANSWER_S
    listen_s: Seconds = LISTEN_S


BOUNDS: Final = Limits()


def examine(url: str, read: Reader | None = None, limits: Limits = BOUNDS) -> Evidence:
    """All that can be seen of the replica at `url`. Never raises for what is wrong with it."""
    try:
        version = ask(f"{url}/version", limits.answer_s)
        listed = ask(f"{url}/v1/models", limits.answer_s)
    except NoAnswer as error:
        return Evidence(url, unreachable=str(error))
    if listed.status != 200:
        return Evidence(url, unreachable=f"/v1/models answered {listed.status}")
    cards = (listed.json() or {}).get("data") or []
    seen = Evidence(
        url,
        version=(version.json() or {}).get("version") if version.status == 200 else None,
        models=tuple(str(card.get("id")) for card in cards),
        clock_off_s=None if listed.date_s is None else listed.date_s - time.time(),
    )
    seen = _with_facts(seen, limits)
    seen = replace(seen, sources=_sources(url, limits))
    if not seen.models:
        return seen
    body = _body(seen.models[0], _length(seen, cards[0]))
    with _listening(seen.sources or ()) as subscribed:
        seen = replace(seen, asked=_ask_twice(url, body, limits))
        published, first = _published(subscribed, limits) if seen.sources else (None, None)
    seen = replace(seen, published=published, replayed=_replayed(seen, first, limits))
    return _with_tokens(seen, body, read, limits)


def _get(url: str, limits: Limits) -> Answer | None:
    """None where there is no good answer."""
    try:
        answer = ask(url, limits.answer_s)
    except NoAnswer:
        return None
    return answer if answer.status == 200 else None


def _with_facts(seen: Evidence, limits: Limits) -> Evidence:
    answer = _get(f"{seen.url}/metrics", limits)
    if answer is None:
        return seen
    facts = read_facts(answer.body)
    size, held = facts.block_size, facts.cache_tokens
    return replace(
        seen,
        prefix_caching=facts.prefix_caching,
        hash_algorithm=facts.hash_algorithm,
        block_size=size,
        blocks=held // size if size and held else None,
    )


def _sources(url: str, limits: Limits) -> tuple[Source, ...] | None:
    answer = _get(f"{url}/kv_event_sources", limits)
    if answer is None:
        return None
    try:
        found = read_sources(answer.body, url)
    except ValueError:
        return None
    return tuple(
        Source(rank, each.endpoint, each.replay_endpoint, each.topic)
        for rank, each in sorted(found.items())
    )


def _length(seen: Evidence, card: Mapping[str, Any]) -> int:
    """Words to send: some blocks full, and well within what the model takes."""
    longest = card.get("max_model_len")
    wanted = 4 * (seen.block_size or 128)
    return min(wanted, longest // 3 if isinstance(longest, int) else wanted)


def _body(model: str, words: int) -> dict[str, Any]:
    rng = secrets.SystemRandom()
    text = f"{secrets.token_hex(8)} " + " ".join(rng.choice(WORDS) for _ in range(words))
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0}


def _ask_twice(url: str, body: dict[str, Any], limits: Limits) -> Asked:
    answers = []
    for _ in range(2):
        try:
            answer = ask(f"{url}/v1/chat/completions", limits.answer_s, body)
        except NoAnswer as error:
            return Asked(0, wrong=str(error))
        if answer.status != 200:
            return Asked(answer.status, wrong=f"/v1/chat/completions answered {answer.status}")
        answers.append(answer.json() or {})
    first, second = answers
    return Asked(
        200,
        (second.get("usage") or {}).get("prompt_tokens"),
        _cached(first),
        _cached(second),
        second.get("system_fingerprint"),
    )


def _cached(answer: Mapping[str, Any]) -> int | None:
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    found = details.get("cached_tokens")
    return found if isinstance(found, int) else None


# Events -----------------------------------------------------------------------------------------


@contextmanager
def _listening(sources: Sequence[Source]) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        subscribed = context.socket(zmq.SUB)
        subscribed.set_hwm(0)
        subscribed.linger = 0
        for source in sources:
            subscribed.connect(source.endpoint)
            subscribed.subscribe(source.topic)
        if sources:
            time.sleep(JOIN_S)
        yield subscribed
    finally:
        context.destroy(linger=0)


def _messages(
    socket: zmq.Socket[bytes], first_s: Seconds, more_s: Seconds
) -> Iterator[tuple[Message, Seconds]]:
    """What comes, and when: the first within `first_s`, each further one within `more_s`."""
    wait_s = first_s
    while socket.poll(int(wait_s * 1000)):
        try:
            yield read_message(socket.recv_multipart()), time.time()
        except ValueError:
            continue
        wait_s = more_s


def _published(socket: zmq.Socket[bytes], limits: Limits) -> tuple[Published, int | None]:
    """What was published, and the number of the first batch of it."""
    batches, first, size, chain = 0, None, None, list[int]()
    groups: set[int] = set()
    for message, _ in _messages(socket, limits.listen_s, JOIN_S):
        try:
            events = read_batch(message.payload)
        except ValueError:
            continue
        batches += 1
        first = message.number if first is None else first
        for event in events:
            if isinstance(event, BlocksStored):
                groups.add(event.group)
                size = event.block_size
                chain.extend(event.hashes)
    return Published(batches, size, chain, has_groups=len(groups) > 1), first


def _replayed(seen: Evidence, first: int | None, limits: Limits) -> Replayed | None:
    """The first rank that can replay is asked for what was just published."""
    for source in seen.sources or ():
        if source.replay_endpoint is not None:
            return _replay(source.replay_endpoint, first or 0, limits)
    return None


def _replay(endpoint: str, first: int, limits: Limits) -> Replayed:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.set_hwm(0)
        dealer.connect(endpoint)
        dealer.send_multipart(replay_request(first))
        batches = 0
        for message, _ in _messages(dealer, limits.listen_s, limits.listen_s):
            if message.is_end:
                return Replayed(batches, is_ended=True)
            batches += 1
        return Replayed(batches)
    finally:
        context.destroy(linger=0)


# Tokens -----------------------------------------------------------------------------------------


def _with_tokens(
    seen: Evidence, body: Mapping[str, Any], read: Reader | None, limits: Limits
) -> Evidence:
    """The prompt as the engine reads it, as we do, and the names its blocks should have."""
    engine, wrong = _engine_tokens(seen.url, body, limits)
    ours: Sequence[int] | None = None
    if read is None:
        wrong = wrong or "no tokenizer here"
    else:
        found = read("/v1/chat/completions", body)
        if isinstance(found, str):
            wrong = found
        else:
            ours = found
    tokens = engine if ours is None else ours
    size = seen.published.block_size if seen.published is not None else seen.block_size
    named = _names(tokens, size) if tokens is not None and size else {}
    return replace(seen, read=Read(engine, ours, wrong), chains=named)


def _names(tokens: Sequence[int], block_size: int) -> dict[str, Sequence[int]]:
    """What the prompt's blocks are called, by algorithm."""
    named: dict[str, Sequence[int]] = {}
    for hasher in ENGINES:
        chain = Chain()
        for _ in chain.grow(hasher, (None, None), tokens, block_size):
            pass
        named[hasher.name] = chain.hashes
    return named


def _engine_tokens(
    url: str, body: Mapping[str, Any], limits: Limits
) -> tuple[Sequence[int] | None, str | None]:
    asked = {"model": body["model"], "messages": body["messages"]}
    try:
        answer = ask(f"{url}/tokenize", limits.answer_s, asked)
    except NoAnswer as error:
        return None, str(error)
    tokens = (answer.json() or {}).get("tokens") if answer.status == 200 else None
    if not isinstance(tokens, list):
        return None, f"/tokenize answered {answer.status}"
    return tokens, None


def reader(folder: str) -> Reader:
    """Reads prompts with the model's own files. Raises OSError or ValueError for a folder that has
    none, or damaged ones."""
    from gateway.tokens.reader import Reader as ModelReader

    model, parser = ModelReader(Path(folder), cache_bytes=1), Parser()
    routes = {route.path: route for route in ROUTES}

    def read(path: str, body: Mapping[str, Any]) -> Sequence[int] | str:
        shown = Shown(routes[path], json.dumps(body).encode())
        try:
            return model.read(parser.parse(shown), None).tokens
        except Unreadable as error:
            return str(error)

    return read
