"""Databases for tests: SQLite in a file, and a real PostgreSQL where one is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from gateway.batch.schema import metadata, open_database

KINDS = ("sqlite", "postgresql")


def _binaries() -> Path | None:
    """Where `initdb` and `postgres` are; the newest, if there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server of our own on a Unix socket; gives its URL. Skips the test where there is none."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        identity = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    initdb = [f"{binaries}/initdb", "-D", f"{data}", "-U", "headrace", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, cwd="/", stdout=subprocess.DEVNULL, **identity)
    options = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off")
    command = [f"{binaries}/postgres", "-D", f"{data}", *(f"--{option}" for option in options)]
    server: subprocess.Popen[bytes] = subprocess.Popen(
        command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity
    )
    try:
        url = f"postgresql://headrace@/postgres?host={folder}"
        _until_it_answers(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
        server.wait(30)
        shutil.rmtree(folder)


def _until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            open_database(url).dispose()
        except Exception:
            assert server.poll() is None, "PostgreSQL has ended"
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)
        else:
            return


def emptied(url: str) -> str:
    """The same database without a row."""
    engine = open_database(url)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    engine.dispose()
    return url


@contextmanager
def a_database_in(server_url: str) -> Iterator[str]:
    """A database of its own at a PostgreSQL server."""
    name = f"t{time.monotonic_ns()}"
    engine = create_engine(
        server_url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield server_url.replace("/postgres?", f"/{name}?")
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
