"""Processes that tests start run the gateway that is tested: where that is compiled, so are they
(`make test-compiled`, ADR 32)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gateway.hold.gate
import loadtest
import serving
import tests
from gateway.__main__ import version_line

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import gateway.hold.gate, json, loadtest, serving, tests
from gateway.__main__ import version_line
places = [gateway.hold.gate.__file__, loadtest.__file__, serving.__file__, *tests.__path__]
print(json.dumps([version_line(), *places]))
"""


def a_child(*words: str) -> str:
    """What it says. Started from the checkout, as tests are."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_they_run_what_is_tested() -> None:
    """Whatever lies where they are started; and what tests have made for them is found."""
    is_compiled = Path(sys.prefix).name == ".venv-compiled"
    assert version_line().endswith(" (compiled)") == is_compiled
    line, *places = json.loads(a_child("-c", LOOK))
    assert line == version_line()
    ours = [gateway.hold.gate.__file__, loadtest.__file__, serving.__file__, *tests.__path__]
    assert {Path(each).resolve() for each in places} == {Path(str(each)).resolve() for each in ours}
    assert a_child("-m", "gateway", "--version").strip() == version_line()
