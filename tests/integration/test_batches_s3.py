"""Files in an object store: S3 as moto serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from gateway.batch.files import Files
from tests.house import a_sim, run, running_house
from tests.integration.test_batches import a_batch, a_client, a_file, a_line, ended, lines_of

BUCKET = "s3://kept"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An object store with an empty bucket; gives the file system over it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environ:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }.items():
            environ.setenv(name, value)
        kept = fsspec.get_filesystem_class("s3")
        kept.clear_instance_cache()  # file systems are kept with the address they were made for
        system = fsspec.filesystem("s3")
        system.mkdir(BUCKET)
        yield system
        system.rm(BUCKET, recursive=True)  # what moto keeps is the process's, not the server's
        kept.clear_instance_cache()
    server.stop()


def test_a_batch_whose_files_are_in_an_object_store(tmp_path: Path, s3: Any) -> None:
    async def law() -> None:
        knobs = {"store": f"sqlite:///{tmp_path}/b.db", "files": f"{BUCKET}/headrace"}
        async with (
            running_house({"batch": knobs}, [a_sim()]) as house,
            a_client(house) as client,
        ):
            ids = [f"{number}" for number in range(40)]
            batch = await ended(client, await a_batch(client, a_file(map(a_line, ids))))
            assert batch.status == "completed"
            output = await lines_of(client, batch.output_file_id)
            assert [line["custom_id"] for line in output] == ids
            await client.files.delete(batch.input_file_id)

    run(law())
    s3.invalidate_cache()
    assert len(s3.ls(f"{BUCKET}/headrace")) == 1


def test_what_is_discarded_leaves_nothing(s3: Any) -> None:
    files = Files(f"{BUCKET}/some")
    small, large, kept = files.draft("small"), files.draft("large"), files.draft("kept")
    small.write([b"x"])
    large.write([b"x" * 12_000_000])
    small.discard()
    large.discard()
    kept.write([b"x" * 100, b"y"])
    kept.keep()
    s3.invalidate_cache()
    assert s3.ls(f"{BUCKET}/some") == ["kept/some/kept"]
    assert files.open("kept").read() == b"x" * 100 + b"y"
    kept.discard()
    with pytest.raises(FileNotFoundError):
        files.open("kept")
    files.remove("kept")
