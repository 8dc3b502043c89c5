"""Who is told of what becomes of replicas."""

from __future__ import annotations

import asyncio

import pytest

from gateway.app import House
from gateway.fleet.health import Sign
from gateway.hold.turn import ChooseAgain
from gateway.settings import Settings
from gateway.vocabulary import Health
from tests.builders import MODEL, a_request
from tests.house import run

SETTINGS = {
    "account": {"access_log": "off"},
    "hold": {"commit_tokens": 1000},
    "choose": {"policy": "round-robin"},
}


class Client:
    """Somebody."""

    received_at = 0.0
    body = b""

    def keep_waiting(self) -> None:
        """It does."""


def test_who_waits_chooses_again_for_one_that_comes_back_not_for_one_that_flickers() -> None:
    async def law() -> None:
        house = House(Settings.of(SETTINGS))
        urls = [{"url": f"http://{name}:8000", "models": [MODEL]} for name in ("r1", "r2")]
        fleet = Settings.of({"fleet": {"replicas": urls}}).fleet
        house.roster.apply([at for each in fleet.replicas for at in each.addresses()], "static")
        busy, other = house.roster.replicas
        for each in (busy, other):
            house.roster.sign(each, Sign.SUCCESS, 0.0)
        request = a_request(prompt_tokens=5000, stream=True)
        await house.gate.turn(request, busy.id, None, Client())
        waiting = asyncio.create_task(house.gate.turn(request, busy.id, None, Client()))
        await asyncio.sleep(0)
        for sign, health in ((Sign.FAILURE, Health.SUSPECT), (Sign.SUCCESS, Health.HEALTHY)):
            house.roster.sign(other, sign, 0.0)
            assert other.health is health
            await asyncio.sleep(0)
            assert house.gate.crowd.count.requests == 1
        while other.health is not Health.EJECTED:
            house.roster.sign(other, Sign.FAILURE, 0.0)
        for sign in (Sign.COOLED_DOWN, Sign.PROBE_SUCCESS):
            house.roster.sign(other, sign, 0.0)
        with pytest.raises(ChooseAgain):
            await waiting

    run(law())
