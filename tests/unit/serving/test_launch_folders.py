"""What is kept in the user's cache folder, and made there once."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from serving.folders import CommandFailed, cache_root, made_once, run_saying

HOME = Path("home")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, HOME / ".cache" / "headrace"),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/headrace")),
        ({"XDG_CACHE_HOME": "relative"}, HOME / ".cache" / "headrace"),
        ({"XDG_CACHE_HOME": ""}, HOME / ".cache" / "headrace"),
        ({"XDG_CACHE_HOME": "/xdg", "HEADRACE_CACHE": "/mine"}, Path("/mine")),
    ],
)
def test_the_cache_lies_where_the_user_says(environ: dict[str, str], expected: Path) -> None:
    assert cache_root(environ, HOME) == expected


def _ignore(line: str) -> None:
    assert line


def test_what_an_interrupted_run_left_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "thing"

    def interrupted(where: Path) -> None:
        (where / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(folder, interrupted, _ignore)

    def whole(where: Path) -> None:
        (where / "whole").touch()

    made_once(folder, whole, _ignore)
    assert not (folder / "half").exists()
    assert (folder / "whole").exists()


def test_of_two_at_once_one_makes_and_the_other_waits_and_says_so(tmp_path: Path) -> None:
    making, may_end = threading.Event(), threading.Event()
    made: list[str] = []
    said: list[str] = []

    def slowly(where: Path) -> None:
        making.set()
        assert may_end.wait(10)
        made.append(where.name)

    def say(line: str) -> None:
        said.append(line)
        may_end.set()  # the second waits: the first may go on

    first = threading.Thread(target=made_once, args=(tmp_path / "thing", slowly, _ignore))
    first.start()
    assert making.wait(10)
    made_once(tmp_path / "thing", slowly, say)
    first.join(10)
    assert made == ["thing"]
    assert said == ["waiting for another headrace that is making thing"]


def test_a_failed_command_tells_its_last_lines() -> None:
    lines: list[str] = []
    script = "print('one'); print('two'); raise SystemExit(3)"
    with pytest.raises(CommandFailed, match=r"(?s)failed \(3\).*one\ntwo"):
        run_saying([sys.executable, "-c", script], lines.append)
    assert lines == ["one", "two"]


def test_a_command_sees_what_is_added_to_our_environment() -> None:
    lines: list[str] = []
    script = "import os; print(os.environ['ADDED'])"
    run_saying([sys.executable, "-c", script], lines.append, {"ADDED": "yes"})
    assert lines == ["yes"]


def test_a_command_does_not_outlive_an_interruption() -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    script = "import time; print('started', flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_saying([sys.executable, "-c", script], interrupt)
