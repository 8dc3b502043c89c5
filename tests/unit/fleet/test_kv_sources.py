"""Where a replica says that it tells of its cache, and what its engine is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.fleet.exposition import read_facts, read_fingerprint
from gateway.fleet.kv_sources import read_sources, usual_source
from gateway.kv_cache import EngineFacts
from gateway.section import SettingsError
from gateway.settings import KvEventSettings, Settings
from gateway.vocabulary import EventSource


def config(**fields: Any) -> dict[str, Any]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": None,
        "topic": "",
        **fields,
    }


@pytest.mark.parametrize(
    ("endpoint", "url", "reached"),
    [
        ("tcp://*:5557", "http://10.0.0.7:8000", "tcp://10.0.0.7:5557"),
        ("tcp://0.0.0.0:5557", "https://pod.svc:8000", "tcp://pod.svc:5557"),
        ("tcp://[::]:5557", "http://[fd00::7]:8000", "tcp://[fd00::7]:5557"),
        ("tcp://:::5557", "http://[fd00::7]:8000", "tcp://[fd00::7]:5557"),
        ("tcp://127.0.0.1:5557", "http://localhost:8000", "tcp://127.0.0.1:5557"),
        ("ipc://@headrace-5557", "http://127.0.0.1:8000", "ipc://@headrace-5557"),
    ],
)
def test_an_endpoint_on_every_address_is_at_the_replicas_host(
    endpoint: str, url: str, reached: str
) -> None:
    body = json.dumps({"0": config(endpoint=endpoint, replay_endpoint=endpoint, topic="kv@")})
    assert read_sources(body.encode(), url) == {0: EventSource(reached, reached, "kv@")}


def test_a_source_for_each_rank_that_publishes() -> None:
    ranks = {
        "0": config(),
        "1": config(endpoint="tcp://*:5558", replay_endpoint="tcp://*:5658", hwm=100_000),
        "2": config(enable_kv_cache_events=False, endpoint=""),
        "3": config(publisher="null"),
    }
    assert read_sources(json.dumps(ranks).encode(), "http://a:1") == {
        0: EventSource("tcp://a:5557"),
        1: EventSource("tcp://a:5558", "tcp://a:5658"),
    }
    assert read_sources(b"{}", "http://a:1") == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"0": 1}', b'{"x": {"enable_kv_cache_events": true, "endpoint": "tcp://a:1"}}']
    + [
        json.dumps({"0": config(endpoint=endpoint)}).encode()
        for endpoint in ("", "ipc:///tmp/a", "tcp://a", "tcp://a:0", "tcp://a:99999", "tcp://:1")
    ],
)
def test_what_is_no_such_list_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"event sources|reached|literal"):
        read_sources(body, "http://a:1")


def test_the_settings_speak_for_replicas_that_do_not() -> None:
    url = "http://[::1]:8000"
    assert usual_source(KvEventSettings(), url) is None
    assert usual_source(KvEventSettings(port=5557), url) == EventSource("tcp://[::1]:5557")
    both = KvEventSettings(port=5557, replay_port=5558)
    assert usual_source(both, url) == EventSource("tcp://[::1]:5557", "tcp://[::1]:5558")
    text = "fleet: {replicas: [{url: 'http://a:1', kv_events: {endpoint: 'tcp://b:2'}}]}"
    (replica,) = Settings.load(text, {}).fleet.replicas
    assert [each.kv_events for each in replica.addresses()] == [EventSource("tcp://b:2")]
    with pytest.raises(SettingsError, match="endpoint"):
        Settings.load(text.replace("tcp://b:2", "ipc://b"), {})


def test_ranks_behind_one_url_are_replicas_of_their_own() -> None:
    text = "fleet: {replicas: [{url: 'http://a:1', data_parallel_size: 2, EVENTS}]}"
    told = "kv_events: {endpoint: 'tcp://b:10', replay_endpoint: 'tcp://b:20', topic: kv}"
    (replica,) = Settings.load(text.replace("EVENTS", told), {}).fleet.replicas
    first, second = replica.addresses()
    assert (first.id, second.id) == ("a:1#0", "a:1#1")
    assert first.url == second.url == "http://a:1"
    assert first.kv_events == EventSource("tcp://b:10", "tcp://b:20", "kv")
    assert second.kv_events == EventSource("tcp://b:11", "tcp://b:21", "kv")
    assert second.fields == b"host: a:1\r\nx-data-parallel-rank: 1\r\n"
    (plain,) = Settings.load("fleet: {replicas: ['http://a:1']}", {}).fleet.replicas
    assert [(each.id, each.fields) for each in plain.addresses()] == [("a:1", b"host: a:1\r\n")]


PAGE = b"""# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",enable_prefix_caching="True",\
num_gpu_blocks="9000",odd="a\\"b,block_size=\\"1\\"",prefix_caching_hash_algo="sha256"} 1.0
vllm:cache_config_info{block_size="32",engine="1",num_gpu_blocks="1"} 1.0
"""


def test_the_facts_of_a_cache() -> None:
    facts = EngineFacts(
        block_size=16, cache_tokens=144_000, prefix_caching=True, hash_algorithm="sha256"
    )
    assert read_facts(PAGE) == facts
    assert read_facts(PAGE, rank=1) == EngineFacts(block_size=32, cache_tokens=32)
    assert read_facts(PAGE, rank=2) == EngineFacts()
    unsaid = PAGE.replace(b'"9000"', b'"None"').replace(b'"True"', b'"False"')
    assert read_facts(unsaid.replace(b'"sha256"', b'"None"')) == EngineFacts(
        block_size=16, prefix_caching=False
    )
    assert read_facts(b'vllm:cache_config_info{block_size="0x10"} 1') == EngineFacts()
    assert read_facts(b"vllm:num_requests_running 3\n") == EngineFacts()


def test_sglang_says_how_large_its_cache_is() -> None:
    page = (
        b'sglang:max_total_num_tokens{model_name="m",engine_type="unified"} 471258.0\n'
        b'sglang:page_size{model_name="m"} 64.0\n'
        b'sglang:num_running_reqs{model_name="m"} 2.0\n'
    )
    assert read_facts(page) == EngineFacts(block_size=64, cache_tokens=471258)


@pytest.mark.parametrize(
    ("fingerprint", "facts"),
    [
        ("vllm-0.32.0-0a1b2c3d", EngineFacts("0.32.0", tensor_parallel=1, pipeline_parallel=1)),
        (
            "vllm-0.32.1.dev3+g12ab-tp8-pp2-dp4-ep-0a1b2c3d",
            EngineFacts("0.32.1.dev3+g12ab", tensor_parallel=8, pipeline_parallel=2),
        ),
        (
            "vllm-0.32.0-tp4-ep-0a1b2c3d",
            EngineFacts("0.32.0", tensor_parallel=4, pipeline_parallel=1),
        ),
        ("fp_44709d6fcb", EngineFacts()),
        ("vllm-", EngineFacts()),
    ],
)
def test_the_facts_of_a_fingerprint(fingerprint: str, facts: EngineFacts) -> None:
    assert read_fingerprint(fingerprint) == facts
