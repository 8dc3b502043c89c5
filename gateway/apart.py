"""Calls in a process of their own, which ends with them: what they load is not kept.

A gateway reads documents when it starts and when one has changed. What that takes, pydantic with
the schemas of all our sections and YAML, are 12 MB that nobody has use for meanwhile.
`python -m gateway.apart` is the other process: it is handed a function of a module and its
arguments, and hands back what comes of it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from traceback import format_tb
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What the call returns, or raises. What goes in and comes out must be what pickle can carry.

    Takes some tenths of a second. Raises OSError where there is no room for another process.
    """
    path = os.pathsep.join(each or os.curdir for each in sys.path)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gateway.apart"],
        env={**os.environ, "PYTHONPATH": path},  # it finds the same modules as we do
        input=pickle.dumps((call, args, named)),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise OSError(f"{call.__qualname__} apart: the process ended with {done.returncode}")
    came: T | Exception = pickle.loads(done.stdout)
    if isinstance(came, Exception):
        raise came
    return came


def _main() -> None:
    call, args, named = pickle.loads(sys.stdin.buffer.read())
    came: Any
    try:
        came = call(*args, **named)
    except Exception as error:  # the caller's to handle
        error.add_note("".join(format_tb(error.__traceback__)))  # which pickle leaves behind
        came = error
    sys.stdout.buffer.write(pickle.dumps(came))


if __name__ == "__main__":
    _main()
