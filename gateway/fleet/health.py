"""Is a replica well? A table of states, and the counting that feeds it.

Asked: given what we believed and one sign, what do we believe now? Pure: `after` takes a
`Standing` and returns one, the same object when nothing has changed.

             first success            failure            failures_to_eject in a row
    JOINING ---------------> HEALTHY ---------> SUSPECT ---------------------------> EJECTED
                                ^  <----------- success                              |    ^
                                |                                        cooled down |    | a probe
                                +---------------- any success --------------- PROBING ----+ fails

An engine that is found asleep is ASLEEP, wherever it stood before, until a probe finds it awake
(HEALTHY) or does not find it (EJECTED).

Invariants.
- Only HEALTHY and SUSPECT take work. Nothing leaves DRAINING by a sign.
- HEALTHY means no failure is on record; SUSPECT, at least one and fewer than `failures_to_eject`.
- A probe asks little of a replica, so its success forgives failed probes, but a failed request only
  when that is `cool_down_max_s` old: an engine whose /health answers while its requests fail is
  ejected all the same. A request that succeeds forgives everything.
- The nth ejection without a recovery lasts cool_down_s * 2^(n-1), at most `cool_down_max_s`. A
  recovery is a request that succeeded, or being healthy for as long as the last one lasted.
- A probe that fails after a cool-down begins it again and lengthens nothing: what is lengthened is
  the absence of one that comes back and fails its work, not of one that is long in coming back.
- What requests sent before an ejection say of it (failures) neither prolongs nor repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gateway.settings import FleetSettings
from gateway.vocabulary import Health, Seconds


class Sign(StrEnum):
    """News of a replica. Client errors and 429-like answers are no sign."""

    SUCCESS = "success"  # it answered a request as it should
    FAILURE = "failure"  # a request failed through its fault
    PROBE_SUCCESS = "probe_success"
    PROBE_FAILURE = "probe_failure"
    EXHAUSTED = "exhausted"  # made here by counting: the failure that fills the measure
    ASLEEP = "asleep"  # it answers that it sleeps
    COOLED_DOWN = "cooled_down"
    DRAIN = "drain"  # it is to take nothing new


# What is not in the table changes nothing.
TRANSITIONS: Final[Mapping[Health, Mapping[Sign, Health]]] = {
    Health.JOINING: {
        Sign.SUCCESS: Health.HEALTHY,
        Sign.PROBE_SUCCESS: Health.HEALTHY,
        Sign.ASLEEP: Health.ASLEEP,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.HEALTHY: {
        Sign.FAILURE: Health.SUSPECT,
        Sign.PROBE_FAILURE: Health.SUSPECT,
        Sign.EXHAUSTED: Health.EJECTED,
        Sign.ASLEEP: Health.ASLEEP,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.SUSPECT: {
        Sign.SUCCESS: Health.HEALTHY,
        Sign.PROBE_SUCCESS: Health.HEALTHY,  # unless a request's failure is still on record
        Sign.EXHAUSTED: Health.EJECTED,
        Sign.ASLEEP: Health.ASLEEP,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.EJECTED: {
        Sign.COOLED_DOWN: Health.PROBING,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.PROBING: {
        Sign.SUCCESS: Health.HEALTHY,
        Sign.PROBE_SUCCESS: Health.HEALTHY,
        Sign.PROBE_FAILURE: Health.EJECTED,
        Sign.ASLEEP: Health.ASLEEP,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.ASLEEP: {
        Sign.PROBE_SUCCESS: Health.HEALTHY,
        Sign.PROBE_FAILURE: Health.EJECTED,
        Sign.DRAIN: Health.DRAINING,
    },
    Health.DRAINING: {},
}

_HEALTHY: Final = Health.HEALTHY  # found faster by names of our own
_SUCCESS: Final = Sign.SUCCESS

_MAX_DOUBLINGS: Final = 32  # keeps the power small; every sane maximum is reached long before


@dataclass(frozen=True, slots=True)
class Standing:
    """What is believed of one replica, and the counts behind it."""

    health: Health = Health.JOINING
    request_failures: int = 0  # in a row
    probe_failures: int = 0  # in a row
    failed_at: Seconds | None = None  # when a request failed last
    ejections: int = 0  # since it last recovered
    since: Seconds | None = None  # when it came into this state; None: it began in it

    @property
    def failures_in_a_row(self) -> int:
        """Of both kinds; `failures_to_eject` of them eject."""
        return self.request_failures + self.probe_failures

    @property
    def takes_work(self) -> bool:
        """May new requests go there?"""
        return self.health is Health.HEALTHY or self.health is Health.SUSPECT


def cool_down_s(ejections: int, law: FleetSettings) -> Seconds:
    """How long the nth ejection in a row lasts; 0 for none."""
    if not ejections:
        return 0.0
    doubled: float = law.cool_down_s * 2.0 ** min(ejections - 1, _MAX_DOUBLINGS)
    return min(doubled, law.cool_down_max_s)


def cooled_down_at(standing: Standing, law: FleetSettings) -> Seconds:
    """The instant from which an EJECTED replica may be probed again."""
    return (standing.since or 0.0) + cool_down_s(standing.ejections, law)


def after(standing: Standing, sign: Sign, now: Seconds, law: FleetSettings) -> Standing:
    """What is believed once `sign` was seen; `standing` itself if it changes nothing.

    O(1). The commonest case, a success of a healthy replica with a clean record, allocates nothing.
    """
    if sign is _SUCCESS:
        return _forgiven(standing, now)
    if sign is Sign.PROBE_SUCCESS:
        return _after_probe_success(standing, now, law)
    if sign is Sign.FAILURE or sign is Sign.PROBE_FAILURE:
        return _after_failure(standing, sign, now, law)
    return _moved(standing, sign, now)


def _moved(standing: Standing, sign: Sign, now: Seconds) -> Standing:
    """The table, applied; to be EJECTED counts, to be found still out when probed does not."""
    health = TRANSITIONS[standing.health].get(sign, standing.health)
    if health is standing.health:
        return standing
    is_ejection = health is Health.EJECTED and standing.health is not Health.PROBING
    ejections = standing.ejections + is_ejection
    return replace(standing, health=health, since=now, ejections=ejections)


def _forgiven(standing: Standing, now: Seconds) -> Standing:
    """Nothing stays on record of a replica that may take work, or now may."""
    if standing.health is _HEALTHY and not standing.ejections:
        return standing
    moved = _moved(standing, Sign.SUCCESS, now)
    if moved.health is not Health.HEALTHY:
        return standing
    return Standing(Health.HEALTHY, since=moved.since)


def _after_probe_success(standing: Standing, now: Seconds, law: FleetSettings) -> Standing:
    match standing.health:
        case Health.HEALTHY:
            out_s = cool_down_s(standing.ejections, law)
            if standing.ejections and now - (standing.since or 0.0) >= out_s:
                return replace(standing, ejections=0)
            return standing
        case Health.SUSPECT if standing.request_failures and not _is_old(standing, now, law):
            return replace(standing, probe_failures=0) if standing.probe_failures else standing
        case _:
            moved = _moved(standing, Sign.PROBE_SUCCESS, now)
            if moved is standing:
                return standing
            return Standing(Health.HEALTHY, ejections=moved.ejections, since=now)


def _is_old(standing: Standing, now: Seconds, law: FleetSettings) -> bool:
    return standing.failed_at is None or now - standing.failed_at >= law.cool_down_max_s


def _after_failure(standing: Standing, sign: Sign, now: Seconds, law: FleetSettings) -> Standing:
    if not standing.takes_work:
        return _moved(standing, sign, now)
    if sign is Sign.FAILURE:
        counted = replace(standing, request_failures=standing.request_failures + 1, failed_at=now)
    else:
        counted = replace(standing, probe_failures=standing.probe_failures + 1)
    if counted.failures_in_a_row >= law.failures_to_eject:
        sign = Sign.EXHAUSTED
    return _moved(counted, sign, now)
