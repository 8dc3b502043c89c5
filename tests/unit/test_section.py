"""What settings look like to whoever looks at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.section import without_passwords


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("postgresql://me:s3cret@db:5432/name", "postgresql://me:***@db:5432/name"),
        ("postgresql+psycopg://me:s3/cr:et@db/name", "postgresql+psycopg://me:***@db/name"),
        (
            "postgresql://db/name?user=me&password=s3cret",
            "postgresql://db/name?user=me&password=***",
        ),
        ("postgresql://db/name?sslpassword=s3cret#x", "postgresql://db/name?sslpassword=***#x"),
        ("s3://:s3cret@bucket/path", "s3://:***@bucket/path"),
        ("postgresql://me@db/name", "postgresql://me@db/name"),
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ("sqlite:////var/lib/batches.db", "sqlite:////var/lib/batches.db"),
        (["http://a:b@c", 3, None], ["http://a:***@c", 3, None]),
    ],
)
def test_passwords_are_not_shown(written: object, shown: object) -> None:
    assert without_passwords({"knob": written}) == {"knob": shown}


def test_check_settings_prints_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY__BATCH__STORE", "postgresql://me:s3cret@db/name")
    file = tmp_path / "settings.yaml"
    file.write_text("batch: {files: s3://bucket/path}\n", encoding="utf-8")
    assert main(["check-settings", str(file)]) == 0
    assert "store: postgresql://me:***@db/name\n" in (said := capsys.readouterr().out)
    assert "s3cret" not in said
