"""A policy in the shadow of the live one, from settings to metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.builders import a_chat, a_post
from tests.house import a_sim, run, running_house

SHADOWED = {"choose": {"policy": "round-robin", "shadow": "cache-aware"}}


def test_turns_are_taken_and_the_shadow_says_what_they_cost() -> None:
    async def law() -> None:
        async with running_house(SHADOWED, replicas=[a_sim(), a_sim()]) as running:
            for number in range(6):
                body = a_chat("the same beginning " * 200 + str(number))
                assert (await running.ask(a_post(body))).status == 200
            page = (await running.ask(b"GET /metrics HTTP/1.1\r\nHost: g\r\n\r\n")).body.decode()
            found = {
                (sample.name, sample.labels.get("side")): sample.value
                for family in text_string_to_metric_families(page)
                for sample in family.samples
                if "shadow" in sample.name
            }
            assert found["gateway_shadow_decisions_total", None] == 6
            assert 1 <= found["gateway_shadow_agreements_total", None] <= 5
            hits = "gateway_shadow_hit_tokens_total"
            assert found[hits, "shadow"] > found[hits, "live"] > 0
            assert found["gateway_shadow_busiest_inflight_requests", "live"] == 0

    run(law())
