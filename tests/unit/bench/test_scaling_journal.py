"""A benchmark that was stopped goes on where it was, if it is still the same benchmark."""

from __future__ import annotations

from pathlib import Path

from tests.bench.scaling.journal import Journal, Trial
from tests.bench.scaling.report import Outcome

TRIAL = Trial("flash", "n_target", 1.0, 2)
OUTCOME = Outcome(0.98, 7.25, 3, 12.5)


def test_what_has_ended_is_known_again_at_the_same_commit_and_at_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, "abc")
    assert not first.outcomes
    first.add(TRIAL, OUTCOME, 12.0)
    again = Journal(path, "abc")
    assert again.outcomes == {TRIAL: OUTCOME}
    assert again.cpu_s == 12.0
    assert not Journal(path, "abd").outcomes
    Journal(path, "abc-changed").add(TRIAL, OUTCOME, 1.0)
    assert not Journal(path, "abc-changed").outcomes, "changed since, perhaps"
    Journal(None, "abc").add(TRIAL, OUTCOME, 1.0)
