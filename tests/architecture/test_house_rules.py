"""Rules of the house that a machine can look after."""

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from gateway.errors import GatewayError
from gateway.section import Section
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "serving", "loadtest")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not (names - {"__init__", "__main__"}) & set(sys.stdlib_module_names)


def test_every_package_says_what_it_is_asked() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_every_module_opens_with_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_whatever_is_caught_is_named() -> None:
    """`except Exception` only at the edges: one request, one background loop, one child."""
    allowed = {
        "gateway/accept/door.py": "the edge: one request's bug is one request's 500",
        "gateway/errands.py": "the edge: one errand's bug is one errand's 500",
        "gateway/batch/service.py": "the body of a background loop",
        "gateway/tokens/service.py": "the edge: a library's bare errors are one prompt's",
        "gateway/fleet/probe.py": "the body of a background loop",
        "gateway/fleet/discover.py": "the body of a background loop",
        "gateway/fleet/discover_kubernetes.py": "the body of a background loop",
        "gateway/fleet/pod_prices.py": "the body of a background loop",
        "gateway/fleet/kv_events.py": "the body of a background loop",
        "gateway/loops.py": "the edge of every background loop",
        "gateway/workers.py": "the edge: one child",
        "gateway/apart.py": "the edge: one call, whose errors are its caller's",
        "gateway/tenants/watch.py": "the body of a background loop",
        "gateway/console/broadcast.py": "the body of a background loop",
        "gateway/account/trace_export.py": "the edge: a library's bare errors are one export's",
    }
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"except (Base)?Exception\b|except:", path.read_text(encoding="utf-8"))
        and path.is_relative_to(ROOT / "gateway")
    }
    assert found <= set(allowed)


def sections(section: type[Section], at: str = "") -> list[tuple[str, type[Section]]]:
    found = [(at, section)]
    for name, kind in get_type_hints(section).items():
        if isinstance(kind, type) and issubclass(kind, Section):
            found += sections(kind, f"{at}.{name}")
    return found


@pytest.mark.parametrize(("where", "section"), sections(Settings))
def test_every_section_and_every_knob_is_explained(where: str, section: type[Section]) -> None:
    assert section.__doc__, where
    hints = get_type_hints(section, include_extras=True)
    for knob in fields(section):
        kind = hints[knob.name]
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            said = [each.description for each in getattr(kind, "__metadata__", ())]
            assert knob.metadata.get("description") or any(said), f"{where}.{knob.name}"


def errors(kind: type[GatewayError]) -> list[type[GatewayError]]:
    return [each for one in kind.__subclasses__() for each in (one, *errors(one))]


def test_every_error_says_whose_fault_it_is_and_what_the_client_is_told() -> None:
    concrete = [each for each in errors(GatewayError) if hasattr(each, "reason")]
    assert len(concrete) > 15
    for each in concrete:
        assert each.fault
        assert each.outcome
        assert 400 <= each.status < 600
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", each.reason)
        assert each.message.endswith(".")
    reasons = [each.reason for each in concrete]
    assert len(set(reasons)) == len(reasons)
