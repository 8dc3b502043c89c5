"""A policy in the shadow: no effect, its own memory, and one yardstick for both."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.chooser import Claim
from gateway.choose.policies import policy
from gateway.choose.shadow import Shadow
from gateway.fleet.ledger import Replica
from gateway.request import GenerationRequest, Usage
from gateway.section import SettingsError
from gateway.settings import ChooseSettings
from tests.builders import a_replica, a_request, altered


def asking(prompt: bytes, *, stream: bool = True) -> GenerationRequest:
    return altered(
        a_request(stream=stream, prompt_bytes=len(prompt), prompt_tokens=len(prompt) // 4),
        prompt=prompt,
    )


def a_pair(live: str, other: str, **more: Any) -> tuple[Any, Shadow]:
    chooser = policy(ChooseSettings(policy=live, shadow=other, **more), Random(1))
    assert chooser.shadow is not None
    return chooser, chooser.shadow


def serve(chooser: Any, fleet: list[Replica], prompt: bytes, now: float) -> str:
    """One request from choice to end. The replica's name."""
    request = asking(prompt)
    choice = chooser.choose(request, fleet, now)
    with (
        choice.replica.lease(request.prompt_tokens),
        chooser.dispatched(request, choice, now) as claim,
    ):
        claim.first_byte(now + 0.2)
        claim.answered(Usage(request.prompt_tokens, cached_tokens=0), now + 0.5)
    return str(choice.replica.id)


def test_turns_beside_caches_are_seen_to_be_worse() -> None:
    chooser, shadow = a_pair("round-robin", "cache-aware")
    fleet = [a_replica(name) for name in "abcd"]
    for turn in range(6):
        for conversation in range(5):
            prompt = b"%d" % conversation * 4_000 + b"t" * 800 * turn
            serve(chooser, fleet, prompt, 10.0 * turn + conversation)
    assert shadow.decisions == 30
    assert 0 < shadow.agreements < 25
    assert shadow.shadow.hit_tokens > 2 * shadow.live.hit_tokens
    assert shadow.shadow.predicted_s < shadow.live.predicted_s


def test_a_policy_in_its_own_shadow_agrees_with_itself() -> None:
    chooser, shadow = a_pair("cache-aware", "cache-aware")
    fleet = [a_replica(name) for name in "ab"]
    first = serve(chooser, fleet, b"x" * 4_000, 0.0)
    shadow.decisions = shadow.agreements = 0
    for number in range(20):
        assert serve(chooser, fleet, b"x" * (4_000 + 800 * number), 1.0 + number) == first
    # Both follow what they have cached, and either may have begun at another replica.
    assert shadow.agreements in (0, 20)
    assert shadow.live.hit_tokens == shadow.shadow.hit_tokens > 0
    assert shadow.live.predicted_s == pytest.approx(shadow.shadow.predicted_s, rel=0.2)


def test_one_replica_is_no_decision() -> None:
    chooser, shadow = a_pair("least-loaded", "round-robin")
    serve(chooser, [a_replica("a")], b"x" * 400, 0.0)
    assert (shadow.decisions, shadow.agreements) == (0, 0)


def test_a_name_that_does_not_exist_is_said_to_be_the_shadow_s() -> None:
    with pytest.raises(SettingsError, match=r"choose.shadow: no policy 'best'"):
        policy(ChooseSettings(shadow="best"), Random(1))


@pytest.mark.parametrize("other", ["cache-aware", "round-robin", "consistent-hash"])
def test_a_shadow_changes_no_choice(other: str) -> None:
    def sent(**shadow: str) -> list[str]:
        chooser = policy(ChooseSettings.of({"policy": "least-work", **shadow}), Random(5))
        fleet = [a_replica(name, requests=i) for i, name in enumerate("abc")]
        return [serve(chooser, fleet, b"%d" % (n % 3) * 2_000, float(n)) for n in range(30)]

    assert sent(shadow=other) == sent()


EVENTS = st.lists(
    st.tuples(st.sampled_from(["send", "unary", "first", "end", "forget"]), st.integers(0, 5)),
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.sampled_from(["cache-aware", "least-loaded", "power-of-two"]))
def test_when_all_has_ended_nothing_is_in_flight_on_either_side(
    events: list[tuple[str, int]], other: str
) -> None:
    chooser, shadow = a_pair("round-robin", other)
    fleet = [a_replica(name) for name in "abc"]
    running: list[Claim] = []
    now = 0.0
    for what, which in events:
        now += 0.1
        if what in ("send", "unary"):
            request = asking(b"%d" % which * 1_000, stream=what == "send")
            choice = chooser.choose(request, fleet, now)
            running.append(chooser.dispatched(request, choice, now).__enter__())
        elif what == "forget":
            chooser.forget(fleet[which % 3].id)
        elif running:
            claim = running[which % len(running)]
            claim.first_byte(now)
            if what == "end":
                claim.__exit__(None, None, None)
                running.remove(claim)
        for side in (shadow.live, shadow.shadow):
            assert sum(ghost.inflight_requests for ghost in side.ghosts.values()) <= len(running)
    for claim in running:
        claim.__exit__(None, None, None)
    chooser.tidy(now + 100.0)
    for side in (shadow.live, shadow.shadow):
        assert side.busiest == 0
        for ghost in side.ghosts.values():
            assert ghost.inflight_prompt_tokens == 0
            target = side.mark.target(ghost.id)
            assert (target.pace.owed, target.footprint.tokens) == (0, 0)
