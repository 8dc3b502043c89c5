"""The policies, by the names they have in settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Chooser
from gateway.choose.filters import Decodes
from gateway.choose.pickers import Cheapest, InTurn
from gateway.choose.scorers import ExpectedWork, Indifferent
from gateway.settings import ChooseSettings, SettingsError

if TYPE_CHECKING:
    from random import Random

Factory = Callable[[ChooseSettings, "Random"], Chooser]


def _least_work(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), ExpectedWork(settings.request_overhead_tokens), Cheapest(rng))


def _round_robin(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), Indifferent(), InTurn())


def _random(settings: ChooseSettings, rng: Random) -> Chooser:
    return Chooser((Decodes(),), Indifferent(), Cheapest(rng))


def _cache_aware(settings: ChooseSettings, rng: Random) -> Chooser:
    scorer = CacheAware(settings.request_overhead_tokens, settings.cache_tokens)
    return Chooser((Decodes(),), scorer, Cheapest(rng), memory=scorer)


POLICIES: Final[Mapping[str, Factory]] = MappingProxyType(
    {
        "least-work": _least_work,
        "cache-aware": _cache_aware,
        "round-robin": _round_robin,
        "random": _random,
    }
)


def policy(settings: ChooseSettings, rng: Random) -> Chooser:
    """The chooser `settings.policy` names. Raises SettingsError listing the names there are."""
    factory = POLICIES.get(settings.policy)
    if factory is None:
        names = ", ".join(sorted(POLICIES))
        raise SettingsError(f"choose.policy: no policy {settings.policy!r}; there are {names}")
    return factory(settings, rng)
