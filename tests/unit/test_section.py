"""What settings look like to whoever looks at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.section import SectionError, SettingsError, without_passwords
from gateway.settings import (
    AcceptSettings,
    ConsoleSettings,
    Settings,
    TenantsSettings,
    TlsSettings,
)


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


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = """
    accept: {port: x, hots: 1, tls: {key: a}}
    hold: {max_sequences: 0, in_all: {requests: 1, tokens: 2}}
    fleet:
      models: [{}, '']
      replicas: ['ftp://a:1', {url: 'http://a:70000', role: s3cret}]
      kv_events: {listen: s3cret}
    peers: {addresses: [a:1, b, c], workers: 2.5}
    choose: {prefill_rates: {'a:1': 0}}
    merge: [s3cret]
    nope: 1
    """
    with pytest.raises(SettingsError) as caught:
        Settings.load(text, {})
    assert str(caught.value).split("\n  ") == [
        "the settings cannot be used:",
        "accept.port: Input should be a valid integer, unable to parse string as an integer",
        "accept.tls: `key` and `client_ca` need a `certificate`: without, there is no TLS",
        "accept.hots: there is no such knob",
        "hold.max_sequences: Input should be greater than 0",
        "hold.in_all.size_bytes: is missing",
        "choose.prefill_rates.a:1: Input should be greater than 0",
        "merge: must be a mapping",
        "fleet.models.0.name: is missing",
        "fleet.models.1.name: String should have at least 1 character",
        r"fleet.replicas.0.url: String should match pattern "
        r"'^https?://[^/\s?#@]+:[0-9]{1,5}/?$'",
        "fleet.replicas.1.url: the port must be from 1 to 65535",
        "fleet.replicas.1.role: Input should be 'both', 'prefill' or 'decode'",
        "fleet.kv_events.listen: Input should be 'auto' or 'off'",
        "peers.workers: Input should be a valid integer, got a number with a fractional part",
        r"peers.addresses.1: String should match pattern '^[^/\s?#@]+:[0-9]{1,5}$'",
        r"peers.addresses.2: String should match pattern '^[^/\s?#@]+:[0-9]{1,5}$'",
        "nope: there is no such knob",
    ]


def test_numbers_and_truth_may_be_written_as_text() -> None:
    said = AcceptSettings.of({"port": "8001", "keep_alive_s": "7.5", "backlog": 16.0})
    assert (said.port, said.keep_alive_s, said.backlog) == (8001, 7.5, 16)
    assert TenantsSettings.of({"anonymous": "yes"}).anonymous is True
    for text in ("8001 and more", "", "0x10"):
        with pytest.raises(SectionError):
            AcceptSettings.of({"port": text})


def test_a_line_end_is_not_overlooked() -> None:
    """As a pattern's `$` would."""
    with pytest.raises(SectionError):
        ConsoleSettings.of({"admin_key_sha256": "0" * 64 + "\n"})


def test_what_is_secret_is_not_in_how_a_section_looks() -> None:
    shown = repr(ConsoleSettings.of({"admin_key_sha256": "0" * 64}))
    assert "max_watchers=16" in shown
    assert "000" not in shown


def test_a_section_stands_for_its_document_and_does_not_change() -> None:
    tls = TlsSettings(certificate="our.pem")
    accept = AcceptSettings.of({"tls": tls})
    assert accept.tls is tls
    assert AcceptSettings.of(accept.document()) == accept
    with pytest.raises(AttributeError):
        accept.port = 1  # type: ignore[misc]
