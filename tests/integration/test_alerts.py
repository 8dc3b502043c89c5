"""Alerts: what promtool says of them, and what they say of themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus import binary

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts/gateway/rules/alerts.yaml"
TESTS = ROOT / "tests/rules/alerts.yaml"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=[each["alert"] for each in ALERTS])


def promtool(*words: str) -> tuple[int, str]:
    done = subprocess.run([binary("promtool"), *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_they_fire_when_they_should_and_only_then() -> None:
    for words in (("check", "rules", str(RULES)), ("test", "rules", str(TESTS))):
        code, said = promtool(*words)
        assert code == 0, said


@pytest.mark.parametrize("instead", ["vector(1)", "vector(1) > 1"], ids=["always", "never"])
def test_those_that_fire_always_or_never_are_found_out(instead: str, tmp_path: Path) -> None:
    document = yaml.safe_load(RULES.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule |= {"expr": instead, "for": "0s"}
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(document))
    tests = yaml.safe_load(TESTS.read_text()) | {"rule_files": ["alerts.yaml"]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    code, said = promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert code != 0
    assert not [alert["alert"] for alert in ALERTS if alert["alert"] not in said]


@each_alert
def test_it_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    page = (ROOT / notes["runbook_url"]).read_text(encoding="utf-8")
    assert alert["alert"] in page
    for heading in ("**What it means.**", "**What to look at**", "**What to do**"):
        assert heading in page


def test_every_page_is_some_alert_s() -> None:
    named = {ROOT / alert["annotations"]["runbook_url"] for alert in ALERTS}
    assert named == set((ROOT / "docs/runbooks").glob("*.md"))
