"""What pyproject.toml cannot say: with HEADRACE_COMPILE=1 the hot path becomes C extensions.

The modules are listed in pyproject.toml, the reasons in docs/adr/0032. Needs mypy and a C compiler,
and what the gateway runs on beside them (types come from there): no build isolation.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
HAS_A_PLACE_OF_ITS_OWN = "tokens___template.c"  # jinja2's class that is derived from there


def extensions() -> list[Extension]:
    """One group, so that its modules call each other without asking the interpreter."""
    if os.environ.get("HEADRACE_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = project["tool"]["headrace"]["compiled"]
    sources = [name.replace(".", "/") + ".py" for name in modules]
    made: list[Extension] = mypycify(
        sources, group_name="headrace", opt_level="2", debug_level="0", multi_file=True
    )
    for each in made:
        each.extra_compile_args.append("-fvisibility=hidden")  # a smaller table, and straight calls
        for source in each.sources:
            if not source.endswith(HAS_A_PLACE_OF_ITS_OWN):
                _without_weak_references(Path(source))
    return made


def _without_weak_references(source: Path) -> None:
    """mypyc lets what derives from a protocol, or is generic, be referred to weakly, but when such
    an object goes it frees its first weak reference, which is not its own. Refused, as uncompiled:
    nothing of ours has a slot for them."""
    text = source.read_text(encoding="utf-8")
    refused = re.sub(r"^ *\.tp_weaklistoffset = .*\n", "", text, flags=re.MULTILINE)
    if refused != text:
        source.write_text(refused, encoding="utf-8")


setup(ext_modules=extensions())
