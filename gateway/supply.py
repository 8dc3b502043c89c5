"""What the demand signal asks of the other rooms: replicas by model, their speed, their starts.

An adapter needs a replica of the model it was made for, and is counted as that model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scale.demands import Standing
from gateway.scale.loading import Loading
from gateway.vocabulary import Health, ModelName

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.choose.chooser import Chooser
    from gateway.clock import Clock
    from gateway.fleet.ledger import Replica
    from gateway.fleet.roster import Roster
    from gateway.hold.cold import ColdHold
    from gateway.hold.gate import Gate
    from gateway.vocabulary import ReplicaId, Seconds, Tokens


class Supply:
    """A `scale.demands.Supply`, and a listener of the roster's: it sees who is on the way."""

    def __init__(
        self,
        roster: Roster,
        chooser: Chooser,
        gate: Gate,
        cold: ColdHold,
        load_deadline_s: Seconds,
        clock: Clock,
    ) -> None:
        self._roster = roster
        self._chooser = chooser
        self._gate = gate
        self._cold = cold
        self._loading: Loading[ReplicaId] = Loading(load_deadline_s)
        self._placing: Loading[str] = Loading(load_deadline_s)
        self._clock = clock
        roster.subscribe(self)

    def models(self) -> Collection[ModelName]:
        """Those that replicas in any state are known to serve, and those that are declared.
        O(replicas + what each serves)."""
        cards = dict(self._roster.known_models())
        for replica in self._roster.replicas:
            for name, card in replica.models.items():
                cards.setdefault(name, card)
        return {ModelName(card.parent or name): None for name, card in cards.items()}

    def base(self, model: ModelName) -> ModelName | None:
        """Itself, or the model that an adapter was made for; None: nobody knows it."""
        card = self._roster.known_models().get(model)
        for replica in self._roster.replicas if card is None else ():
            card = card or replica.models.get(model)
        return None if card is None else ModelName(card.parent or model)

    def standing(self, model: ModelName, now: Seconds) -> Standing:
        """What there is. O(replicas)."""
        ready = self._roster.serving(model)
        rates = [rate for each in ready if (rate := self._rate_per_s(each.id)) is not None]
        caches = [size for each in ready if (size := each.facts.cache_tokens) is not None]
        return Standing(
            ready=len(ready),
            loading=self._on_the_way(model, now) + self._unplaced(model, now),
            cold_start_s=self._cold.starts(model).remaining_s(0.0),
            prefill_per_s=sum(rates) / len(rates) if rates else None,
            cache_tokens=sum(caches) // len(caches) if caches else None,
            sequences=self._gate.max_sequences,
        )

    def _rate_per_s(self, replica: ReplicaId) -> float | None:
        """As the policy has learnt it; else as first bytes have shown to those who wait."""
        rate = self._chooser.rate_per_s(replica)
        return self._gate.rate_per_s(replica) if rate is None else rate

    def _unplaced(self, model: ModelName, now: Seconds) -> int:
        """Those that have no address yet: an autoscaler has asked for them already."""
        unplaced, placing = self._roster.unplaced, self._placing
        for name in placing.names - unplaced.keys():
            placing.over(name)
        for name in unplaced:
            placing.joined(name, now)
        counts_silent = not all(unplaced.values()) and self._is_only_one()
        return sum(
            placing(name, now)
            for name, models in unplaced.items()
            if model in models or (counts_silent and not models)
        )

    def _on_the_way(self, model: ModelName, now: Seconds) -> int:
        """Those that have an address, and do not serve yet."""
        replicas = self._roster.replicas
        counts_silent = not all(each.models for each in replicas) and self._is_only_one()
        return sum(
            self._loading(each.id, now)
            for each in replicas
            if model in each.models or (counts_silent and not each.models)
        )

    def _is_only_one(self) -> bool:
        """Who has not said yet what it is for is the only model's, where there is but one."""
        return len(self.models()) == 1

    def work(self, prompt_tokens: Tokens, uncached: Tokens) -> float:
        """As the policy counts it."""
        return self._chooser.work(prompt_tokens, uncached)

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Call it the moment a request is held for a model that has no replica."""
        self._cold.on_activation(listener)

    # A `RosterListener`

    def joined(self, replica: Replica) -> None:
        """It loads, or is about to say that it does not."""
        self._loading.joined(replica.id, self._clock())

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """It has come to serve, or is told to go."""
        if now is Health.JOINING:
            self._loading.joined(replica.id, self._clock())
        else:
            self._loading.over(replica.id)

    def left(self, replica: Replica) -> None:
        """It is there no more."""
        self._loading.over(replica.id)
