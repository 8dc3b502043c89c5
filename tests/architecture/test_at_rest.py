"""A gateway at rest is small, for it does not load what nobody has asked it for."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

STARTED = """
import sys
from gateway import __main__, workers
from gateway.accept import lane
from gateway.apart import apart
from gateway.app import House
from gateway.settings import Settings
House(apart(Settings.of, {})).server()
print(*sys.modules)
"""

# By who would have to ask for it.
UNASKED = {
    "a settings file": ["yaml"],
    "another command": ["gateway.doctor", "gateway.tenants.command", "importlib.metadata"],
    "another package of ours": ["serving", "loadtest"],
    "batch.folder": ["gateway.batch", "sqlalchemy", "sqlite3", "fsspec"],
    "tokens.folder": ["tokenizers", "huggingface_hub"],
    "replicas that publish KV events": ["zmq"],
    "fleet.kubernetes": ["gateway.fleet.kubernetes", "kubernetes"],
    "scale.keda": ["grpc", "google"],
    "trust.spiffe": ["spiffe", "cryptography"],
    "account.traces": ["opentelemetry"],
    "whoever has read the settings for it": ["pydantic", "pydantic_core"],
    "nobody": ["httpx", "httpx2", "jinja2", "unittest", "doctest", "pdb"],
}


@cache
def loaded() -> frozenset[str]:
    """What a gateway has loaded that is about to listen, with the settings it has by itself."""
    told = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, check=True, timeout=60
    )
    return frozenset(told.stdout.split())


def test_what_serves_is_loaded() -> None:
    assert {"gateway.life", "gateway.accept.lane", "uvicorn.server"} <= loaded()


@pytest.mark.parametrize("asking", UNASKED)
def test_what_nobody_asks_for_is_not_loaded(asking: str) -> None:
    parts = {".".join(name.split(".")[:n]) for name in loaded() for n in range(1, 5)}
    assert not parts & set(UNASKED[asking])
