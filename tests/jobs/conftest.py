"""A gateway beside the test, and Spark on this machine. `make jobs` installs what these need."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import RunningHouse, a_sim, loop_factory, running_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[RunningHouse]:
    """A real gateway with two simulated replicas, on an event loop in another thread."""
    settings = {"batch": {"folder": str(tmp_path / "kept")}}
    ready, leave = threading.Event(), asyncio.Event()
    found: list[RunningHouse] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        async with running_house(settings, [a_sim(), a_sim()]) as house:
            found.append(house)
            loops.append(asyncio.get_running_loop())
            ready.set()
            await leave.wait()

    def target() -> None:
        with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
            runner.run(serve())

    thread = threading.Thread(target=target)
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loops[0].call_soon_threadsafe(leave.set)
    thread.join(20)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Spark with two cores of this machine."""
    sql = pytest.importorskip("pyspark.sql", reason="`make jobs` installs it")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("no Java for Spark: 17 or later, on the path or at JAVA_HOME")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("PYSPARK_PYTHON", sys.executable)
        environ.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        session = (
            sql.SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.driver.extraJavaOptions", "-Duser.timezone=UTC")
            .config("spark.sql.session.timeZone", "UTC")
            .getOrCreate()
        )
        yield session
        session.stop()
