"""A gateway that asks for keys, and those who have them: for tests of tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from tests.house import Behind, RunningHouse, running_house

SECRET = "a-secret-of-which-salts-are-made-"
ACME = new_key(bytes(range(ID_BYTES + SECRET_BYTES)))
OTHER = new_key(bytes(range(1, ID_BYTES + SECRET_BYTES + 1)))


def a_document(acme: dict[str, Any] | None = None, *others: dict[str, Any]) -> str:
    names = ["acme", *(each["name"] for each in others)]
    document = {
        "salt_secret": SECRET,
        "tenants": [{"name": "acme", **(acme or {})}, *others],
        "keys": [
            {"id": made.id, "tenant": name, "sha256": digest(made.key.encode()).hex()}
            for made, name in zip((ACME, OTHER), names, strict=False)
        ],
    }
    return yaml.safe_dump(document)


@asynccontextmanager
async def keyed_house(
    folder: Path,
    document: str,
    replicas: Sequence[Behind] | None = None,
    *,
    access_log: str = "off",
    with_batches: bool = False,
    policy: str = "least-work",
    **tenants: Any,
) -> AsyncIterator[RunningHouse]:
    path = folder / "tenants.yaml"
    path.write_text(document)
    settings = {
        "tenants": {"path": str(path), "reload_every_s": 0.05, **tenants},
        "account": {"access_log": access_log},
        "choose": {"policy": policy},
        "batch": {"folder": str(folder / "batches")} if with_batches else {},
    }
    async with running_house(settings, replicas) as running:
        yield running
        await running.until_quiet()


@asynccontextmanager
async def a_client(running: RunningHouse, key: str = ACME.key) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=running.url + "/v1",
        api_key=key,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


def bearing(key: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {key}"), *more]
