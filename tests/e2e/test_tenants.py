"""A real engine's prefix cache, shared by two tenants or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import a_chat, a_post
from tests.e2e.conftest import CHAT, Stack
from tests.house import run, until
from tests.keyed import ACME, OTHER, a_document, bearing, keyed_house


@pytest.mark.parametrize("isolate", [False, True])
def test_isolated_tenants_find_nothing_of_each_other_in_the_cache(
    stack: Stack, tmp_path: Path, isolate: bool
) -> None:
    words = "one of two tenants who are kept apart " if isolate else "one of two who are not "
    body = a_chat(words * 30, CHAT, max_tokens=2)
    document = a_document({"isolate_cache": isolate}, {"name": "other", "isolate_cache": isolate})
    cached = []

    async def law() -> None:
        async with keyed_house(tmp_path, document, [stack.chat_replicas[0].url]) as running:
            await until(lambda: running.house.is_ready)
            for made in (ACME, ACME, OTHER, OTHER):
                answer = await running.ask(a_post(body, headers=bearing(made.key)))
                assert answer.status == 200, answer.body
                usage = answer.json()["usage"]
                cached.append(usage["prompt_tokens_details"]["cached_tokens"])

    run(law())
    first, again, other_s, other_s_again = cached
    assert first == 0
    assert again > 100
    assert other_s_again == again
    assert other_s == (0 if isolate else again)
