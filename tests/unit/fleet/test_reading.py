"""What replicas and files say, read: model lists, lists of replicas, URLs."""

from __future__ import annotations

import pytest

from gateway.fleet.cards import read_cards
from gateway.fleet.listing import read_listing
from gateway.section import SettingsError
from gateway.settings import FleetSettings
from gateway.vocabulary import ModelCard, ModelName, ReplicaAddress, Role

BOTH_REPLICAS = (
    ReplicaAddress("http://a:8000"),
    ReplicaAddress("https://b:8000", (ModelName("m"),), Role.PREFILL),
)


def test_a_model_list_of_an_engine_is_read_adapters_included() -> None:
    body = b"""{"object": "list", "data": [
        {"id": "base", "object": "model", "created": 1700000000, "owned_by": "vllm",
         "root": "/models/base", "parent": null, "max_model_len": 2048, "permission": [{}]},
        {"id": "lora", "root": "/lora", "parent": "base"}]}"""
    assert read_cards(body) == (
        ModelCard(ModelName("base"), None, "/models/base", 2048, 1700000000, "vllm"),
        ModelCard(ModelName("lora"), "base", "/lora", None, 0, "unknown"),
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": [{}]}',
        b'{"data": [{"id": ""}]}',
        b'{"data": [{"id": 3}]}',
        b'{"data": [{"id": "m", "max_model_len": "long"}]}',
        b'{"data": [{"id": "\xff"}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_model_list_is_a_value_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a model list"):
        read_cards(body)


@pytest.mark.parametrize(
    "content",
    [
        b"replicas:\n- http://a:8000/\n- {url: 'https://B:8000', models: [m], role: prefill}\n",
        b'{\t"replicas": ["http://a:8000",\n\t{"url":"https://b:08000","models":["m"],'
        b'"role":"prefill"}]}',
    ],
)
def test_a_file_lists_replicas_in_yaml_or_json_tabs_and_all(content: bytes) -> None:
    assert read_listing(content).addresses() == BOTH_REPLICAS


def test_an_empty_list_is_a_list() -> None:
    assert read_listing(b"replicas: []").addresses() == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the whole: "),
        (b"replicas:", "replicas: "),
        (b"replicas: [ftp://a:1]", "replicas.0.url: "),
        (b"replicas: ['http://a:1', {url: 'http://a:70000'}]", "replicas.1.url: .*65535"),
        (b"replicas: ['http://a:1']\nother: 1", "other: "),
        (b"replicas: [", "neither YAML nor JSON: "),
        (b"\xff\xfe\x00", "neither YAML nor JSON: "),
        (b"[" * 10_000, "neither YAML nor JSON: "),
    ],
)
def test_a_bad_file_is_told_in_one_line_that_says_where(content: bytes, said: str) -> None:
    with pytest.raises(SettingsError, match=f"^{said}") as caught:
        read_listing(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://a:65535", "http://a:65535"),
        (" http://A.Example:08000/ ", "http://a.example:8000"),
        ("https://[::1]:8000", "https://[::1]:8000"),
    ],
)
def test_a_replica_has_one_spelling(url: str, canonical: str) -> None:
    assert FleetSettings.of({"replicas": [url]}).replicas[0].url == canonical


@pytest.mark.parametrize(
    "url",
    ["http://a:65536", "http://a:0", "http://::1:8000", "http://[zz]:1", "http://u@a:1", "a:1"],
)
def test_a_url_that_names_no_replica_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^replicas\.0\.url: "):
        FleetSettings.of({"replicas": [url]})
