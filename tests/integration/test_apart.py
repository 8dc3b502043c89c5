"""What is read by a process of its own comes back whole, and so does what is wrong with it."""

from __future__ import annotations

import sys

import pytest

from gateway.apart import apart
from gateway.fleet.listing import Listing, read_listing
from gateway.section import SectionError, SettingsError
from gateway.settings import AcceptSettings, Settings
from gateway.tenants.document import read_documents

LISTING = b"replicas:\n- http://a:8000\n- {url: 'https://b:1', role: prefill, kv_events: {endpoint: 'tcp://b:2'}}"
TENANTS = b"tenants: [{name: acme, class: batch, weight: 2.5}]"


def test_documents_come_back_as_they_are_read_here() -> None:
    knobs = {"accept": {"port": 1}, "choose": {"prefill_rates": {"a:1": 2.5}}}
    assert apart(Settings.of, knobs) == Settings.of(knobs)
    assert apart(read_listing, LISTING) == read_listing(LISTING)
    assert apart(read_documents, {"one": TENANTS}) == read_documents({"one": TENANTS})


def test_errors_come_back_with_all_they_say() -> None:
    with pytest.raises(SettingsError) as here:
        Settings.of({"accept": {"port": -1}, "nope": 1})
    with pytest.raises(SettingsError) as there:
        apart(Settings.of, {"accept": {"port": -1}, "nope": 1})
    assert str(there.value) == str(here.value)
    assert "in of\n" in there.value.__notes__[0]  # where it was raised
    with pytest.raises(SectionError) as section:
        apart(AcceptSettings.of, {"port": -1})
    assert [each.where for each in section.value.problems] == ["port"]


def test_a_process_that_ends_early_is_an_error() -> None:
    with pytest.raises(OSError, match="ended with 3"):
        apart(sys.exit, 3)


def test_who_asks_another_process_does_not_load_what_reads() -> None:
    given = apart(_loaded_after_reading)
    assert isinstance(given, set)
    assert "gateway.settings" in given
    assert not {"pydantic", "yaml"} & given


def _loaded_after_reading() -> set[str]:
    assert isinstance(apart(read_listing, LISTING), Listing)
    assert apart(Settings.load, "accept: {port: 7}", {}).accept.port == 7
    return set(sys.modules)
