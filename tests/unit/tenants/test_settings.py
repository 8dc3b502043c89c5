"""Nobody is let in from outside unless that is said."""

from __future__ import annotations

import pytest

from gateway.section import SettingsError
from gateway.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_nobody_needs_a_key(host: str) -> None:
    assert Settings.load(f"accept: {{host: '{host}'}}", {}).tenants.path is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway", "", "::ffff:10.0.0.1"])
def test_elsewhere_the_settings_say_who_may_come_in(host: str) -> None:
    listening = f"accept: {{host: '{host}'}}\n"
    with pytest.raises(SettingsError, match=r"tenants\.path"):
        Settings.load(listening, {})
    Settings.load(listening + "tenants: {path: keys.yaml}", {})
    Settings.load(listening + "tenants: {anonymous: true}", {})
    Settings.load(listening, {"GATEWAY__TENANTS__ANONYMOUS": "true"})


def test_everybody_and_those_with_keys_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        Settings.load("tenants: {anonymous: true, path: keys.yaml}", {})
