"""pytest itself, with two processes, on files that say when they were run, and by whom."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.side_by_side import ALONE

ROOT = Path(__file__).parents[2]
BODY = """
import json, os, time, pytest

@pytest.mark.parametrize("nth", range(3))
def test(nth):
    began_at = time.monotonic()
    time.sleep(0.05)
    line = [__file__, nth, os.getpid(), began_at, time.monotonic()]
    with open({notes!r}, "a") as notes:
        notes.write(json.dumps(line) + "\\n")
"""


def test_those_that_are_listed_are_there() -> None:
    assert [name for name in ALONE if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("shared", "alone"), [(6, 3), (1, 1), (0, 2)])
def test_what_wants_to_be_alone_is(shared: int, alone: int, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    for kind, count in (("unit", shared), ("e2e", alone)):
        for number in range(count):
            path = tmp_path / "tests" / kind / f"test_{kind}_{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(BODY.format(notes=str(notes)))
    words = ["-n", "2", "-p", "tests.side_by_side", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *words, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    ran = [json.loads(line) for line in notes.read_text().splitlines()]
    assert len({(name, nth) for name, nth, *_ in ran}) == len(ran) == 3 * (shared + alone)
    for name in {each[0] for each in ran}:
        assert len({pid for one, _, pid, *_ in ran if one == name}) == 1, "a file is not divided"
    for one, other in combinations(ran, 2):
        if "/e2e/" in one[0] + other[0]:
            assert one[4] <= other[3] or other[4] <= one[3], (one, other)
    if shared > 1:
        assert len({pid for name, _, pid, *_ in ran if "/unit/" in name}) == 2
