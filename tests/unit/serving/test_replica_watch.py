"""What the supervisor decides by: deaths, signs of life, warm-up, and the lines of a log."""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st

from serving.replica.endurance import MOST_PAUSE_S, Endurance
from serving.replica.logs import LONGEST, Lines, LogSink, read_line
from serving.replica.settings import Supervision
from serving.replica.vitals import Load, Vitals, read_load

PAGE = b"""\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+03
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
"""


def test_an_engines_load_is_the_sum_over_its_ranks() -> None:
    assert read_load(PAGE) == Load(requests=7.0, tokens=1520.0)


def test_sglang_says_it_in_other_words() -> None:
    page = (
        b'sglang:num_running_reqs{model_name="m"} 3.0\n'
        b'sglang:num_queue_reqs{model_name="m"} 2.0\n'
        b'sglang:generation_tokens_total{model_name="m"} 9.0\n'
    )
    assert read_load(page) == Load(requests=5.0, tokens=9.0)


@given(st.binary())
def test_any_page_has_a_load(page: bytes) -> None:
    assert read_load(page).requests >= 0.0


def test_requests_without_tokens_are_no_life_and_neither_is_silence() -> None:
    vitals = Vitals(0.0)
    assert vitals.look(Load(0, 5), 10.0) == 0.0, "nothing owed"
    assert vitals.look(Load(1, 5), 12.0) == 2.0
    assert vitals.look(Load(1, 6), 14.0) == 0.0, "a token"
    assert vitals.look(Load(1, 6), 17.0) == 3.0
    assert vitals.look(None, 20.0) == 6.0
    assert vitals.look(Load(0, 6), 21.0) == 0.0


@given(
    st.lists(st.none() | st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30)
)
def test_silence_is_counted_from_the_last_sign_of_life(
    looks: list[tuple[int, int] | None],
) -> None:
    vitals, moved_at, tokens = Vitals(0.0), 0, -1
    for now, seen in enumerate(looks, start=1):
        if seen is not None and (seen[0] == 0 or seen[1] != tokens):
            moved_at, tokens = now, seen[1]
        load = None if seen is None else Load(*map(float, seen))
        assert vitals.look(load, float(now)) == now - moved_at


def test_pauses_double_and_then_it_is_enough() -> None:
    endurance = Endurance(Supervision(restarts=3, pause_s=1.0))
    assert [endurance.died(10.0) for _ in range(4)] == [1.0, 2.0, 4.0, None]


def test_what_never_was_ready_is_not_started_again_but_after_a_death_it_is() -> None:
    assert Endurance(Supervision()).died(None) is None
    endurance = Endurance(Supervision(restarts=2))
    assert [endurance.died(5.0), endurance.died(None), endurance.died(None)] == [1.0, 2.0, None]


def test_a_long_life_earns_the_restarts_back() -> None:
    endurance = Endurance(Supervision(restarts=1, stable_s=60.0))
    assert [endurance.died(60.0) for _ in range(5)] == [1.0] * 5


def test_no_restarts_means_that_the_first_death_is_the_end() -> None:
    assert Endurance(Supervision(restarts=0)).died(1e9) is None


@given(st.integers(0, 20), st.lists(st.floats(0.0, 299.0), max_size=30))
def test_no_more_pauses_than_restarts_none_shrinks_none_is_long(
    restarts: int, lives: list[float]
) -> None:
    endurance = Endurance(Supervision(restarts=restarts))
    pauses = [pause for life in lives if (pause := endurance.died(life)) is not None]
    assert len(pauses) == min(restarts, len(lives))
    assert pauses == sorted(pauses)
    assert all(pause <= MOST_PAUSE_S for pause in pauses)


def test_an_engines_line_is_taken_apart() -> None:
    line = "(EngineCore pid=412) WARNING 11-26 14:20:03 [cpu_worker.py:97] NUMA is not known."
    assert read_line(line) == {
        "process": "EngineCore",
        "pid": 412,
        "level": "warning",
        "where": "cpu_worker.py:97",
        "message": "NUMA is not known.",
    }
    assert read_line("ERROR:    Exception in ASGI application") == {
        "level": "error",
        "message": "Exception in ASGI application",
    }
    assert read_line("Loading: 40%") == {"level": "info", "message": "Loading: 40%"}


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_lines_do_not_depend_on_how_they_arrive(parts: list[bytes]) -> None:
    whole, piecemeal = Lines(), Lines()
    heard = b"".join(parts) + b"\n"
    said = [line for part in [*parts, b"\n"] for line in piecemeal.feed(part)]
    assert said == whole.feed(heard)


def test_a_line_without_end_is_cut() -> None:
    lines = Lines().feed(b"x" * (2 * LONGEST + 1) + b"\n")
    assert sum(map(len, lines)) == 2 * LONGEST + 1


@given(st.binary())
def test_every_line_of_a_json_log_is_json(heard: bytes) -> None:
    stream = io.StringIO()
    sink = LogSink(stream, is_json=True, wall=lambda: 0.0)
    sink.hear(heard + b"\n")
    sink.say("so")
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    read = [json.loads(line) for line in lines]
    assert all(line["at"] == "1970-01-01T00:00:00.000+00:00" for line in read)
    assert read[-1]["source"] == "headrace"


def test_a_plain_log_is_as_it_came() -> None:
    stream = io.StringIO()
    sink = LogSink(stream, is_json=False, wall=lambda: 0.0)
    sink.hear(b"INFO 11-26 [a] b\nha")
    sink.hear(b"lf\n")
    assert stream.getvalue() == "INFO 11-26 [a] b\nhalf\n"
