"""Functions fit a screen, files a sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "serving", "loadtest")
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
LONGEST_FILE = 400
P90_FUNCTION = 30

# An exception is a line here, with its reason.
LONGER_FILES: dict[str, str] = {}
LONGER_FUNCTIONS: dict[str, str] = {}
MORE_PARAMETERS = {"gateway/request.py:__init__": "a record but for its speed: one for each field"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("package", PACKAGES)
def test_files_can_be_read_in_a_sitting(package: str) -> None:
    too_long = {
        str(path.relative_to(ROOT)): count
        for path in sources(package)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert set(too_long) == set(LONGER_FILES) & set(too_long), too_long


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_fit_a_screen(package: str) -> None:
    too_long = {
        f"{path.relative_to(ROOT)}:{function.name}": count
        for path in sources(package)
        for function in functions(path)
        if (count := lines_of(function)) > LONGEST_FUNCTION
    }
    assert set(too_long) == set(LONGER_FUNCTIONS) & set(too_long), too_long


@pytest.mark.parametrize("package", PACKAGES)
def test_most_functions_are_short(package: str) -> None:
    counts = sorted(lines_of(each) for path in sources(package) for each in functions(path))
    assert counts[len(counts) * 9 // 10] <= P90_FUNCTION


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_take_few_parameters(package: str) -> None:
    crowded = {}
    for path in sources(package):
        for function in functions(path):
            names = [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MOST_PARAMETERS:
                crowded[f"{path.relative_to(ROOT)}:{function.name}"] = count
    assert set(crowded) == set(MORE_PARAMETERS) & set(crowded), crowded
