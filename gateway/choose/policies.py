"""The policies, by the names they have in settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Chooser
from gateway.choose.filters import Decodes
from gateway.choose.hashing import ConsistentHash
from gateway.choose.pickers import Cheapest, InTurn, TwoChoices
from gateway.choose.scorers import ExpectedWork, Indifferent, RequestsInFlight
from gateway.choose.shadow import Shadow
from gateway.choose.sticky import Sticky
from gateway.section import SettingsError
from gateway.settings import ChooseSettings

if TYPE_CHECKING:
    from random import Random

Factory = Callable[[ChooseSettings, "Random"], Chooser]


def _least_work(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), ExpectedWork(settings.request_overhead_tokens), Cheapest(rng))


def _least_loaded(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), RequestsInFlight(), Cheapest(rng))


def _power_of_two(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), RequestsInFlight(), TwoChoices(rng))


def _consistent_hash(settings: ChooseSettings, rng: Random) -> Chooser:
    scorer = ConsistentHash(settings.bound, settings.hash_prefix_bytes)
    return Chooser((Decodes(),), scorer, Cheapest(rng))


def _round_robin(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), Indifferent(), InTurn())


def _random(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), Indifferent(), Cheapest(rng))


def _cache_aware(settings: ChooseSettings, rng: Random) -> Chooser:
    scorer = CacheAware(settings)
    return Chooser(
        (Decodes(),),
        scorer,
        Cheapest(rng),
        memory=scorer,
        listener=scorer,
        holdings=scorer.holdings,
    )


POLICIES: Final[Mapping[str, Factory]] = MappingProxyType(
    {
        "cache-aware": _cache_aware,
        "consistent-hash": _consistent_hash,
        "least-loaded": _least_loaded,
        "least-work": _least_work,
        "power-of-two": _power_of_two,
        "round-robin": _round_robin,
        "random": _random,
    }
)


def policy(settings: ChooseSettings, rng: Random) -> Chooser:
    """The chooser that `settings` ask for. Raises SettingsError listing the names there are."""
    chooser = _named("policy", settings.policy, settings, rng)
    if settings.shadow is not None:
        other = _named("shadow", settings.shadow, settings, rng)
        chooser = replace(chooser, shadow=Shadow(other, settings))
    return chooser


def _named(knob: str, name: str, settings: ChooseSettings, rng: Random) -> Chooser:
    factory = POLICIES.get(name)
    if factory is None:
        names = ", ".join(sorted(POLICIES))
        raise SettingsError(f"choose.{knob}: no policy {name!r}; there are {names}")
    chooser = factory(settings, rng)
    if settings.sticky_sessions:
        chooser = replace(chooser, sticky=Sticky(settings.bound))
    return chooser
