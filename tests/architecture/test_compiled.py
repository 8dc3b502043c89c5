"""What is listed for mypyc can be compiled, and means the same when it is: ADR 32."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from gateway.account.accounts import Ending
from gateway.hold.capacity import Part
from gateway.record import Node, Value
from gateway.tenants.limits import Reservation

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILED = [
    ROOT / f"{name.replace('.', '/')}.py" for name in PROJECT["tool"]["headrace"]["compiled"]
]
RECORDS = {base.__name__ for base in (Node, Value)}


def test_what_is_to_be_compiled_is_there() -> None:
    assert sorted(set(COMPILED)) == COMPILED
    assert not [path for path in COMPILED if not path.is_file()]


def test_records_that_are_compiled_have_their_options_from_a_base_that_is_not() -> None:
    """mypyc drops the keywords of a class, without a word."""
    wrong = [
        f"{path.relative_to(ROOT)}: {one.name}"
        for path in COMPILED
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(one, ast.ClassDef)
        and one.keywords
        and ([each.arg for each in one.keywords] != ["frozen"] or not RECORDS & _names(one))
    ]
    assert not wrong


def _names(of: ast.ClassDef) -> set[str]:
    return {base.id for base in of.bases if isinstance(base, ast.Name)}


def test_records_are_what_they_say() -> None:
    """Compiled or not."""
    assert len({Ending("a", "b", "c", "d"), Ending("a", "b", "c", "d")}) == 1
    assert Ending.__struct_config__.frozen
    assert Part(1) == Part(1)
    assert not Reservation.__struct_config__.eq
    assert not Reservation.__struct_config__.gc


def test_what_derives_from_a_compiled_class_is_compiled() -> None:
    """Anything else is refused when the class is made or first used."""
    compiled = set(PROJECT["tool"]["headrace"]["compiled"])
    wrong = [
        f"{module}: {one.name}({base.id})"
        for path in (ROOT / "gateway").rglob("*.py")
        if (module := ".".join(path.relative_to(ROOT).with_suffix("").parts)) not in compiled
        for tree in (ast.parse(path.read_text(encoding="utf-8")),)
        for one in ast.walk(tree)
        if isinstance(one, ast.ClassDef)
        for base in one.bases
        if isinstance(base, ast.Name) and _origin(tree, base.id) in compiled
    ]
    assert not wrong


def _origin(tree: ast.Module, name: str) -> str | None:
    """The module that a name was imported from."""
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and any(one.name == name for one in each.names):
            return each.module
    return None
