"""The roster and its ledger under any order of events, beside a model too simple to be wrong."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from gateway.errors import NoReplica, UnknownModel
from gateway.fleet.health import Sign
from gateway.fleet.ledger import Lease, Replica
from gateway.fleet.roster import Roster
from gateway.settings import FleetSettings, ModelSettings
from gateway.vocabulary import Health, ModelCard, ModelName, ReplicaAddress

URLS = [f"{scheme}://{host}:1" for scheme in ("http", "https") for host in "abc"]
MODELS = [ModelName(name) for name in "mnop"]
SOURCES = ["static", "kubernetes", "dns:x", "file:y"]
SOME_MODELS = st.lists(st.sampled_from(MODELS), unique=True, max_size=3).map(tuple)
ADDRESSES = st.lists(
    st.builds(
        ReplicaAddress,
        st.sampled_from(URLS),
        SOME_MODELS,
        expected=SOME_MODELS,
        is_awaited=st.booleans(),
    ),
    max_size=6,
)


class Listener:
    """Keeps its own list, from what it is told alone."""

    def __init__(self) -> None:
        self.health: dict[Replica, Health] = {}

    def joined(self, replica: Replica) -> None:
        assert replica not in self.health
        self.health[replica] = Health.JOINING

    def left(self, replica: Replica) -> None:
        assert self.health.pop(replica) is Health.DRAINING
        assert replica.inflight_requests == 0

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        assert self.health[replica] is was
        self.health[replica] = now


class RosterMachine(RuleBasedStateMachine):
    open_leases = Bundle("open_leases")

    @initialize(failures=st.integers(1, 3))
    def begin(self, failures: int) -> None:
        self.roster = Roster(FleetSettings(failures_to_eject=failures))
        self.listener = Listener()
        self.roster.subscribe(self.listener)
        self.declared: dict[str, tuple[ModelName, ...]] = {}
        self.named: dict[str, set[str]] = {source: set() for source in SOURCES}
        self.leases: dict[Lease, tuple[ExitStack, Replica, int]] = {}
        self.now = 0.0

    @rule(addresses=ADDRESSES, source=st.sampled_from(SOURCES))
    def apply(self, addresses: list[ReplicaAddress], source: str) -> None:
        self.roster.apply(addresses, source)
        self.named[source] = {address.url for address in addresses}

    @rule(nth=st.integers(0, 9), sign=st.sampled_from(Sign), seconds=st.floats(0, 100))
    def sign(self, nth: int, sign: Sign, seconds: float) -> None:
        self.now += seconds
        if self.roster.replicas:
            replica = self.roster.replicas[nth % len(self.roster.replicas)]
            self.roster.sign(replica, sign, self.now)

    @rule(nth=st.integers(0, 9), names=SOME_MODELS)
    def observe(self, nth: int, names: tuple[ModelName, ...]) -> None:
        if self.roster.replicas:
            replica = self.roster.replicas[nth % len(self.roster.replicas)]
            self.roster.observe_models(replica, [ModelCard(name) for name in names])

    @rule(source=st.sampled_from(["settings", "kubernetes"]), names=SOME_MODELS)
    def declare(self, source: str, names: tuple[ModelName, ...]) -> None:
        self.declared[source] = names
        self.roster.declare([ModelSettings(name=name) for name in names], source)

    @rule(target=open_leases, model=st.sampled_from(MODELS), tokens=st.integers(0, 9))
    def take(self, model: ModelName, tokens: int) -> Lease | None:
        try:
            replica = self.roster.candidates(model)[0]
        except (NoReplica, UnknownModel):
            return None
        lease, stack = replica.lease(tokens), ExitStack()
        stack.enter_context(lease)
        self.leases[lease] = (stack, replica, tokens)
        return lease

    @rule(lease=open_leases)
    def prefilled(self, lease: Lease | None) -> None:
        if lease in self.leases:
            lease.prefilled()
            stack, replica, _ = self.leases[lease]
            self.leases[lease] = (stack, replica, 0)

    @rule(lease=consumes(open_leases))
    def give_back(self, lease: Lease | None) -> None:
        if lease in self.leases:
            self.leases.pop(lease)[0].close()

    @invariant()
    def the_counters_are_those_of_the_open_leases(self) -> None:
        for replica in self.roster.replicas:
            held = [tokens for _, on, tokens in self.leases.values() if on is replica]
            assert replica.inflight_requests == len(held)
            assert replica.inflight_prompt_tokens == sum(held)

    @invariant()
    def the_list_is_what_is_named_and_what_still_holds_leases(self) -> None:
        named = set().union(*self.named.values())
        held = {on for _, on, _ in self.leases.values()}
        assert len({replica.id for replica in self.roster.replicas}) == len(self.roster.replicas)
        assert named <= {replica.address.url for replica in self.roster.replicas}
        for replica in self.roster.replicas:
            if replica.address.url not in named:
                assert replica in held
                assert replica.health is Health.DRAINING
        assert held <= set(self.roster.replicas)

    @invariant()
    def the_index_is_a_scan(self) -> None:
        replicas = self.roster.replicas
        at_zero = {name for names in self.declared.values() for name in names}
        for replica in replicas:
            if replica.health is Health.ASLEEP:
                at_zero.update(replica.models)
        for model in MODELS:
            serving = [replica for replica in replicas if model in replica.models]
            fit = tuple(replica for replica in serving if replica.takes_work)
            unsure = not replicas or any(
                replica.health is Health.JOINING and not replica.address.models
                for replica in replicas
            )
            try:
                assert self.roster.candidates(model) == fit
            except NoReplica as error:
                assert not fit
                assert serving or unsure or model in at_zero
                assert error.retry_after_s  # noqa: PT017
            except UnknownModel:
                assert not serving
                assert not unsure
                assert model not in at_zero
            assert (model in self.roster.known_models()) == (bool(fit) or model in at_zero)
            assert (self.roster.known_at_zero(model) is not None) == (model in at_zero)
        assert self.roster.is_ready == (
            bool(at_zero) or any(replica.takes_work for replica in replicas)
        )

    @invariant()
    def who_is_awaited_takes_no_work(self) -> None:
        for replica in self.roster.replicas:
            if replica.address.is_awaited:
                assert not replica.takes_work
            if replica.takes_work:
                assert replica.health in (Health.HEALTHY, Health.SUSPECT)

    @invariant()
    def pins_are_obeyed(self) -> None:
        for replica in self.roster.replicas:
            if replica.address.models:
                assert set(replica.models) == set(replica.address.models)

    @invariant()
    def a_listener_knows_what_the_roster_knows(self) -> None:
        assert self.listener.health == {replica: replica.health for replica in self.roster.replicas}

    def teardown(self) -> None:
        if not hasattr(self, "roster"):
            return
        replicas = self.roster.replicas
        for source in SOURCES:
            self.roster.apply([], source)
        for stack, _, _ in self.leases.values():
            stack.close()
        assert not self.roster.replicas, "with no source and no lease there is nothing left"
        for replica in replicas:
            assert (replica.inflight_requests, replica.inflight_prompt_tokens) == (0, 0)


TestRoster = RosterMachine.TestCase
TestRoster.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
