"""List-then-watch beside a server too simple to be wrong, under every order of trouble."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.fleet.watching import (
    BACK_OFF_MAX_S,
    HOPELESS_S,
    Key,
    List,
    Wait,
    Watch,
    Watching,
)

RESYNC_S = 100.0
NAMES = st.sampled_from([Key("n", name) for name in "abcde"])


class WatchingMachine(RuleBasedStateMachine):
    """The machine's steps are carried out against a server whose whole past is kept."""

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.watching = Watching[int](RESYNC_S, Random(seed).random)
        self.now = 0.0
        self.version = 1
        some = {Key("n", name): 0 for name in "abc"}
        self.past: dict[int, dict[Key, int]] = {1: some}  # version -> what there was
        self.compacted = 0
        self.page: tuple[int, list[tuple[Key, int]]] | None = None  # of a list under way
        self.told = 1  # the version up to which the watch has told
        self.lost: set[Key] = set()  # whose last change no watch has told
        self.step: List | Watch | Wait = self.watching.step(self.now)
        self.began_at = self.now
        self.listed_at: float | None = None

    def there(self) -> dict[Key, int]:
        return self.past[self.version]

    # The cluster

    @rule(key=NAMES)
    def write(self, key: Key) -> None:
        self.version += 1
        self.past[self.version] = {**self.past[self.version - 1], key: self.version}

    @rule(key=NAMES)
    def delete(self, key: Key) -> None:
        was = self.there()
        if key in was:
            self.version += 1
            self.past[self.version] = {name: at for name, at in was.items() if name != key}

    @rule()
    def compact(self) -> None:
        self.compacted = self.version

    # What comes of a step

    @rule(size=st.integers(1, 3), goes=st.sampled_from(["well", "429", "dropped", "410"]))
    def list_a_page(self, size: int, goes: str) -> None:
        if not isinstance(self.step, List):
            return
        if self.step.continue_from is None:
            self.page = (self.version, sorted(self.there().items()))
        assert self.page is not None
        version, left = self.page
        if goes == "410" or (self.step.continue_from is not None and version < self.compacted):
            self.watching.refused(410, 0.0, self.now)
        elif goes == "429":
            self.watching.refused(429, 7.0, self.now)
        elif goes == "dropped":
            self.watching.dropped(self.now)
        else:
            page, rest = left[:size], left[size:]
            self.page = (version, rest)
            following = str(len(rest)) if rest else None
            self.watching.listed(dict(page), str(version), following, self.now)
            if not rest:
                self.told, self.listed_at, self.lost = version, self.now, set()
        self.next()

    @rule(count=st.integers(0, 5), ends=st.sampled_from(["open", "well", "dropped", "500", "lost"]))
    def watch_on(self, count: int, ends: str) -> None:
        if not isinstance(self.step, Watch):
            return
        if self.told < self.compacted:
            self.watching.refused(410, 0.0, self.now)
            self.next()
            return
        for _ in range(min(count, self.version - self.told)):
            was, now = self.past[self.told], self.past[self.told + 1]
            self.told += 1
            for key in was.keys() | now.keys():
                if was.get(key) == now.get(key):
                    continue
                if ends == "lost":
                    self.lost.add(key)
                elif key in now:
                    self.watching.put(key, now[key], str(self.told))
                    self.lost.discard(key)
                else:
                    self.watching.deleted(key, str(self.told))
                    self.lost.discard(key)
        if ends in ("open", "lost"):
            self.watching.marked(str(self.told))
            return
        if ends == "well":
            self.watching.ended(self.now)
        elif ends == "dropped":
            self.watching.dropped(self.now)
        else:
            self.watching.refused(500, 0.0, self.now)
        self.next()

    @rule(seconds=st.floats(0.01, 150))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if isinstance(self.step, Wait):
            self.next()
        elif isinstance(self.step, Watch) and self.now - self.began_at > self.step.lasting_s:
            self.watching.ended(self.now)
            self.next()

    def next(self) -> None:
        self.step = self.watching.step(self.now)
        self.began_at = self.now
        if isinstance(self.step, Watch):
            assert self.step.version == str(self.told)
            assert 0 < self.step.lasting_s <= 1.25 * RESYNC_S
        if isinstance(self.step, Wait):
            assert 0 < self.step.lasting_s <= 1.1 * max(BACK_OFF_MAX_S, HOPELESS_S)

    # Laws

    @invariant()
    def what_is_held_is_what_the_server_had_where_the_watch_has_told(self) -> None:
        held = {key: at for key, at in self.watching.objects.items() if key not in self.lost}
        if self.listed_at is None:
            assert not held
        else:
            had = self.past[self.told]
            assert held == {key: at for key, at in had.items() if key not in self.lost}

    @invariant()
    def nothing_lost_stays_lost_for_longer_than_a_list_is_good(self) -> None:
        if isinstance(self.step, Watch) and self.listed_at is not None:
            ends_at = self.began_at + self.step.lasting_s
            assert ends_at - self.listed_at <= 1.25 * RESYNC_S + 1e-6

    def teardown(self) -> None:
        """Once there is no more trouble, the truth is held after one list."""
        for _ in range(60):
            if isinstance(self.step, Wait):
                self.now += self.step.lasting_s
                self.next()
            elif isinstance(self.step, List):
                self.list_a_page(4, "well")
            else:
                self.watch_on(len(self.past), "open")
                if isinstance(self.step, Watch):
                    if not self.lost and self.told == self.version:
                        break
                    self.time_passes(self.step.lasting_s + 1.0)
        assert dict(self.watching.objects) == self.there()


TestWatching = WatchingMachine.TestCase
TestWatching.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(failures=st.integers(1, 40), seed=st.integers(0, 99))
def test_failures_in_a_row_are_met_with_ever_more_patience(failures: int, seed: int) -> None:
    watching = Watching[int](RESYNC_S, Random(seed).random)
    now, longest = 0.0, 0.0
    for nth in range(failures):
        watching.dropped(now)
        step = watching.step(now)
        assert isinstance(step, Wait)
        assert 0.125 * 2 ** min(nth, 7) * 0.9 <= step.lasting_s <= BACK_OFF_MAX_S
        longest = max(longest, step.lasting_s)
        now += step.lasting_s
        assert isinstance(watching.step(now), List)


def test_after_a_dropped_watch_everything_is_listed_whatever_its_version_could_still_tell() -> None:
    watching = Watching[int](RESYNC_S, lambda: 0.5)
    watching.listed({Key("n", "a"): 1}, "1", None, 0.0)
    assert isinstance(watching.step(0.0), Watch)
    watching.put(Key("n", "b"), 2, "2")
    watching.dropped(5.0)
    assert isinstance(wait := watching.step(5.0), Wait)
    assert watching.step(5.0 + wait.lasting_s) == List(None)
    assert watching.listed({Key("n", "b"): 2}, "3", None, 6.0)
    assert dict(watching.objects) == {Key("n", "b"): 2}


def test_a_list_that_is_always_410_is_not_asked_for_without_a_pause() -> None:
    watching = Watching[int](RESYNC_S, lambda: 0.5)
    watching.refused(410, 0.0, 0.0)
    assert watching.step(0.0) == List(None)
    watching.listed({Key("n", "a"): 1}, "1", "more", 0.0)
    watching.refused(410, 0.0, 0.0)
    assert isinstance(watching.step(0.0), Wait)


def test_a_list_begun_anew_keeps_nothing_of_the_one_before() -> None:
    watching = Watching[int](RESYNC_S, lambda: 0.5)
    watching.listed({Key("n", "a"): 1}, "1", "more", 0.0)
    assert watching.step(0.0) == List("more")
    watching.refused(410, 0.0, 0.0)
    assert watching.step(0.0) == List(None)
    watching.listed({Key("n", "b"): 2}, "2", None, 0.0)
    assert dict(watching.objects) == {Key("n", "b"): 2}


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_a_pause() -> None:
    watching = Watching[int](RESYNC_S, lambda: 0.5)
    watching.listed({}, "1", None, 0.0)
    assert isinstance(watching.step(0.0), Watch)
    watching.ended(0.0)
    assert isinstance(watching.step(0.0), Wait)


def test_a_server_that_has_always_just_compacted_is_not_asked_without_a_pause() -> None:
    watching = Watching[int](RESYNC_S, lambda: 0.5)
    watching.listed({}, "1", None, 0.0)
    watching.refused(410, 0.0, 10.0)
    assert isinstance(watching.step(10.0), List)  # once there is no reason to wait
    watching.listed({}, "2", None, 10.0)
    watching.refused(410, 0.0, 10.0)
    assert isinstance(watching.step(10.0), Wait)
