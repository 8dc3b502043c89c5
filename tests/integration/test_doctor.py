"""The doctor's visit to simulated replicas, well and unwell."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.__main__ import main
from gateway.doctor.checks import Finding, Verdict, findings
from gateway.doctor.examine import Limits, examine
from serving.sim.block_hash import HashAlgorithm
from serving.sim.server import KvEventSettings, running_sim
from serving.sim.settings import SimSettings
from tests.house import a_sim, run

EVENTS = KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
QUICK = Limits(answer_s=10.0, listen_s=1.0)


def visited(settings: SimSettings) -> dict[str, Finding]:
    found: dict[str, Finding] = {}

    async def law() -> None:
        async with running_sim(settings) as sim:
            seen = await asyncio.to_thread(examine, sim.url, None, QUICK)
            found.update({each.check: each for each in findings(seen)})

    run(law())
    return found


def test_a_replica_that_is_well_has_nothing_to_change() -> None:
    found = visited(a_sim(kv_events=EVENTS))
    unknown = [name for name, each in found.items() if each.verdict is not Verdict.GOOD]
    assert unknown == ["tokenizer"], [found[name] for name in unknown]  # there is none here
    assert "sha256, reproduced" in found["hash algorithm"].says


def test_another_hash_is_told_apart() -> None:
    found = visited(a_sim(kv_events=EVENTS, hash_algorithm=HashAlgorithm.SHA256_CBOR))
    assert "sha256_cbor, reproduced" in found["hash algorithm"].says


def test_what_is_off_is_said_with_what_to_do() -> None:
    found = visited(a_sim(prompt_tokens_details=False))
    assert found["KV events"].verdict is Verdict.BAD
    assert "--kv-events-config" in found["KV events"].says
    assert found["cached_tokens"].verdict is Verdict.BAD
    assert "--enable-prompt-tokens-details" in found["cached_tokens"].says
    quiet = visited(a_sim(kv_events=KvEventSettings("tcp://127.0.0.1:*", None)))
    assert quiet["KV events"].verdict is Verdict.GOOD
    assert quiet["replay"].verdict is Verdict.BAD


def test_the_command_says_it_in_lines_or_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = "http://127.0.0.1:1"
    assert main(["doctor", nobody]) == 1
    said = capsys.readouterr().out
    assert nobody in said
    assert "1 thing to change" in said
    assert main(["doctor", "--json", nobody]) == 1
    (finding,) = json.loads(capsys.readouterr().out)[nobody]
    assert finding["verdict"] == "change"
    assert main(["doctor", "--tokenizer", "/nowhere", nobody]) == 2
    assert "--tokenizer /nowhere" in capsys.readouterr().err
