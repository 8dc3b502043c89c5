"""The doctor examines real replicas: there is nothing to change."""

from __future__ import annotations

import httpx

from gateway.doctor.checks import Verdict, findings
from gateway.doctor.examine import examine, reader
from tests.e2e.conftest import Stack


def test_the_replicas_of_headrace_up_are_well(stack: Stack) -> None:
    for replica in stack.chat_replicas:
        listed = httpx.get(f"{replica.url}/v1/models", trust_env=False).json()
        folder = listed["data"][0]["root"]
        found = findings(examine(replica.url, reader(folder)))
        for each in found:
            print(f"{each.verdict}: {each.check}: {each.says}")
        assert [each for each in found if each.verdict is not Verdict.GOOD] == []


def test_replicas_that_publish_nothing_are_told_what_to_change(stack: Stack) -> None:
    embeddings = stack.processes()["replica-3"]
    found = {each.check: each for each in findings(examine(embeddings.url))}
    assert found["reachable"].verdict is Verdict.GOOD
    assert found["KV events"].verdict is Verdict.BAD
    assert "--kv-events-config" in found["KV events"].says
