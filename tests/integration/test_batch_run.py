"""`headrace batch run`, a process, before a real gateway with simulated replicas."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from serving.jobs.batch_run import LABEL
from tests.builders import a_get, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.integration.test_batches import a_file, a_line
from tests.integration.test_batches_s3 import BUCKET, s3

__all__ = ["s3"]  # a fixture

pytestmark = pytest.mark.timeout(180)  # each test starts several processes

Done = tuple[int, str, str]


@asynccontextmanager
async def batches_at(folder: Path, **sim: Any) -> AsyncIterator[RunningHouse]:
    """A gateway with the Batch API on."""
    settings = {"batch": {"folder": str(folder / "kept")}}
    async with running_house(settings, [a_sim(**sim), a_sim(**sim)]) as house:
        yield house


async def started(*words: object, verb: str = "run") -> asyncio.subprocess.Process:
    """The command, as whoever types it starts it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.jobs.command", verb, *map(str, words)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def done(process: asyncio.subprocess.Process) -> Done:
    """Its exit code, and what it said where."""
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def ran(house: RunningHouse, source: object, target: object, *more: object) -> Done:
    words = ["--output", target, "--endpoint", house.url, "--poll", "0.05", *more]
    return await done(await started(source, *words))


async def batches_of(house: RunningHouse) -> list[dict[str, Any]]:
    return list((await house.ask(a_get("/v1/batches?limit=100"))).json()["data"])


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def written(folder: Path) -> list[str]:
    """Files of the output's name."""
    return sorted(path.name for path in folder.glob("out*"))


def an_input(folder: Path, lines: Sequence[dict[str, Any]], name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(a_file(lines))
    return path


def test_all_lines_are_answered_and_asked_once_however_often_it_is_run(tmp_path: Path) -> None:
    ids = [f"{number}" for number in range(40)]
    source, target = an_input(tmp_path, [a_line(each) for each in ids]), tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            code, out, err = await ran(house, source, target)
            assert (code, out) == (0, f"40 of 40 lines answered: {target}\n"), err
            assert ids_in(target) == ids
            target.unlink()
            code, _, err = await ran(house, source, target)
            assert code == 0
            assert "going on with it" in err
            assert ids_in(target) == ids
            assert len(await batches_of(house)) == 1
            assert house.house.accounts.received == 40
            assert written(tmp_path) == ["out.jsonl"]
            code, _, _ = await ran(house, source, target, "--name", "again")
            assert code == 0
            assert len(await batches_of(house)) == 2

    run(law(), within_s=150)


def test_lines_that_fail_are_written_to_be_asked_again(tmp_path: Path) -> None:
    lines = [a_line("good"), a_line("bad", max_tokens=-1), a_line("fine")]
    source, target = an_input(tmp_path, lines), tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            code, out, _ = await ran(house, source, target)
            assert code == 1
            assert out.startswith(f"2 of 3 lines answered: {target}\n1 not;")
            again = tmp_path / "out.again.jsonl"
            assert f"headrace batch run {again} --output" in out
            assert ids_in(target) == ["good", "fine"]
            assert ids_in(tmp_path / "out.errors.jsonl") == ["bad"]
            assert again.read_bytes() == a_file([lines[1]])
            code, _, _ = await ran(house, an_input(tmp_path, [a_line("x")]), target)
            assert code == 0
            assert written(tmp_path) == ["out.jsonl"]

    run(law(), within_s=150)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no lines"),
        (b"hello\n", "the first line of"),
        (a_file([a_line("a"), a_line("a")]), "line 2: Another line has this `custom_id`."),
        (a_file([{**a_line("a"), "url": "/v1/rerank"}]), "`endpoint` is one of"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_worked_on_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_bytes(content)

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            code, out, err = await ran(house, source, tmp_path / "out.jsonl")
            assert (code, out) == (2, "")
            assert said in err
            assert "Traceback" not in err
            assert not written(tmp_path)

    run(law(), within_s=150)


def test_a_file_that_was_refused_is_sent_again_once_it_can_be_taken(tmp_path: Path) -> None:
    source = an_input(tmp_path, [a_line("a", model="later")])

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            assert (await ran(house, source, tmp_path / "out.jsonl"))[0] == 2
        async with batches_at(tmp_path, models=("later",)) as house:
            code, _, err = await ran(house, source, tmp_path / "out.jsonl")
            assert (code, "sending" in err) == (0, False)  # the file itself is there

    run(law(), within_s=150)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_goes_on_with_the_same_batch(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    ids = [f"{number}" for number in range(400)]
    source = an_input(tmp_path, [a_line(each, max_tokens=20) for each in ids])
    target = tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            words = [source, "--output", target, "--endpoint", house.url, "--poll", "0.05"]
            for _ in range(3):
                process = await started(*words)
                await asyncio.sleep(chance.uniform(0.2, 1.5))
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                await process.wait()
            code, _, err = await done(await started(*words))
            assert code == 0, err
            assert ids_in(target) == ids
            assert len(await batches_of(house)) == 1
            await house.until_quiet()
            assert house.house.accounts.received == 400

    run(law(), within_s=150)


def test_killed_before_its_answers_are_whole_it_leaves_none(tmp_path: Path) -> None:
    """The middle of a batch, for certain: nothing is written, and the batch goes on by itself."""
    source = an_input(tmp_path, [a_line(f"{n}", max_tokens=60) for n in range(300)])
    target = tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            process = await started(
                source, "--output", target, "--endpoint", house.url, "--poll", 0.05
            )
            await until(lambda: house.house.accounts.received > 20, within_s=20)
            process.kill()
            await process.wait()
            assert not target.exists()
            code, _, err = await ran(house, source, target)
            assert (code, "going on with it" in err) == (0, True)
            assert len(ids_in(target)) == 300
            assert len(await batches_of(house)) == 1

    run(law(), within_s=150)


def test_two_that_start_at_once_end_with_the_same_answers(tmp_path: Path) -> None:
    source = an_input(tmp_path, [a_line(f"{n}", max_tokens=40) for n in range(200)])

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            runs = [ran(house, source, tmp_path / f"{n}.jsonl") for n in range(3)]
            assert [code for code, _, _ in await asyncio.gather(*runs)] == [0, 0, 0]
            answers = {(tmp_path / f"{n}.jsonl").read_bytes() for n in range(3)}
            assert len(answers) == 1
            states = [each["status"] for each in await batches_of(house)]
            assert states.count("completed") == 1
            assert set(states) <= {"completed", "cancelled", "cancelling"}

    run(law(), within_s=150)


def test_it_waits_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    source, target = an_input(tmp_path, [a_line("a"), a_line("b")]), tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            port = int(house.url.rpartition(":")[2])
        process = await started(
            source, "--output", target, "--endpoint", f"127.0.0.1:{port}", "--poll", 0.05
        )
        assert process.stderr is not None
        assert b"for the gateway" in await process.stderr.readline()
        settings: dict[str, dict[str, Any]] = {
            "batch": {"folder": str(tmp_path / "kept")},
            "accept": {"port": port},
        }
        async with running_house(settings, [a_sim()]):
            code, _, err = await done(process)
        assert code == 0, err
        assert ids_in(target) == ["a", "b"]

    run(law(), within_s=150)


def test_a_batch_that_has_expired_gives_what_there_is(tmp_path: Path) -> None:
    source = an_input(
        tmp_path, [a_line(f"{n}", max_tokens=400, ignore_eos=True) for n in range(200)]
    )
    target = tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            keeper = house.house.batches
            assert keeper is not None
            process = await started(
                source, "--output", target, "--endpoint", house.url, "--poll", 0.05
            )
            await until(lambda: house.house.accounts.received > 2, within_s=20)
            now = keeper.wall
            keeper.wall = lambda: now() + 86_401.0
            code, out, _ = await done(process)
            assert code == 1
            assert "the batch is expired" in out
            both = ids_in(target) + ids_in(tmp_path / "out.again.jsonl")
            assert sorted(both) == sorted(f"{n}" for n in range(200))

    run(law(), within_s=150)


def test_a_batch_that_somebody_cancels_is_not_taken_for_answered(tmp_path: Path) -> None:
    source = an_input(tmp_path, [a_line(f"{n}", max_tokens=400) for n in range(100)])
    target = tmp_path / "out.jsonl"

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            process = await started(
                source, "--output", target, "--endpoint", house.url, "--poll", 0.05
            )
            await until(lambda: house.house.accounts.received > 2, within_s=60)
            (batch,) = await batches_of(house)
            path = f"/v1/batches/{batch['id']}/cancel"
            assert (await house.ask(a_post(b"", path=path))).status == 200
            code, out, _ = await done(process)
            assert (code, "the batch is cancelled" in out) == (1, True)
            both = ids_in(target) + ids_in(tmp_path / "out.again.jsonl")
            assert sorted(both) == sorted(f"{n}" for n in range(100))
            assert (await ran(house, source, target))[0] == 1  # it is what it was

    run(law(), within_s=150)


def test_the_key_is_read_from_a_file(tmp_path: Path) -> None:
    made = new_key(bytes(ID_BYTES + SECRET_BYTES))
    key = {"id": made.id, "tenant": "red", "sha256": digest(made.key.encode()).hex()}
    document = {"tenants": [{"name": "red"}], "keys": [key]}
    (tmp_path / "tenants.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "key").write_text(made.key + "\n")
    source, target = an_input(tmp_path, [a_line("a")]), tmp_path / "out.jsonl"
    settings = {
        "batch": {"folder": str(tmp_path / "kept")},
        "tenants": {"path": f"{tmp_path}/tenants.yaml"},
    }

    async def law() -> None:
        async with running_house(settings, [a_sim()]) as house:
            code, _, err = await ran(house, source, target)
            assert (code, "--api-key-file" in err) == (2, True)
            code, _, err = await ran(house, source, target, "--api-key-file", tmp_path / "key")
            assert code == 0
            assert made.key not in err
            access = ["--endpoint", f"{house.url}/v1", "--api-key-file", tmp_path / "key"]
            assert (await done(await started(*access, verb="check")))[0] == 0
            code, _, err = await done(await started(*access[:2], verb="check"))
            assert (code, "401" in err) == (2, True)

    run(law(), within_s=150)


def test_a_gateway_without_the_batch_api_is_told_apart(tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house({}, [a_sim()]) as house:
            code, _, err = await ran(
                house, an_input(tmp_path, [a_line("a")]), tmp_path / "out.jsonl"
            )
            assert (code, "is the Batch API on?" in err) == (2, True)

    run(law(), within_s=150)


def test_input_and_output_may_be_in_an_object_store(tmp_path: Path, s3: Any) -> None:
    ids = [f"{number}" for number in range(5)]
    s3.pipe(f"{BUCKET}/in.jsonl", a_file(map(a_line, ids)) + a_file([a_line("x", max_tokens=-1)]))

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            target = f"{BUCKET}/job/out.jsonl"
            code, out, err = await ran(house, f"{BUCKET}/in.jsonl", target)
            assert code == 1, err
            assert f"{BUCKET}/job/out.again.jsonl --output" in out

    run(law(), within_s=150)
    s3.invalidate_cache()
    answers = s3.cat(f"{BUCKET}/job/out.jsonl").decode().splitlines()
    assert [json.loads(line)["custom_id"] for line in answers] == ids
    assert s3.cat(f"{BUCKET}/job/out.again.jsonl") == a_file([a_line("x", max_tokens=-1)])


def test_the_batch_says_whose_job_it_is(tmp_path: Path) -> None:
    async def law() -> None:
        async with batches_at(tmp_path) as house:
            source = an_input(tmp_path, [a_line("a")])
            await ran(house, source, tmp_path / "out.jsonl", "--name", "nightly")
            (batch,) = await batches_of(house)
            assert batch["metadata"]["name"] == "nightly"
            assert len(batch["metadata"][LABEL]) == 32

    run(law(), within_s=150)


def test_what_the_page_shows_works(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/batch-jobs.md"
    (command,) = re.findall(r"\$ headrace batch run (.*)", page.read_text(encoding="utf-8"))
    an_input(tmp_path, [a_line("a"), a_line("b", max_tokens=-1)], "requests.jsonl")

    async def law() -> None:
        async with batches_at(tmp_path) as house:
            words = command.replace("http://127.0.0.1:8000", house.url).split()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "batch", "run", *words), cwd=tmp_path
            )
            assert await process.wait() == 1

    run(law(), within_s=150)
    for name in ("answers.jsonl", "answers.errors.jsonl", "answers.again.jsonl"):
        assert (tmp_path / name).read_bytes().count(b"\n") == 1
