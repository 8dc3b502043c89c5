"""One file, sent through a gateway as one batch, however often the sender is interrupted.

The state is the gateway's, not ours: a batch carries the job's key in its metadata, and the key is
a digest of what is asked. Whoever starts the same job looks for its batch before making one, so
nothing need be kept beside the input, and a pod may die anywhere.

Two that start at once may both find nothing and make one each. So whoever has made one looks once
more, and all take the oldest: the gateway's list has one order for all who read it. The others are
cancelled by whoever sees them.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol
from urllib.parse import quote

from serving.jobs import places
from serving.jobs.calls import LATER, Answer, Away, Calls
from serving.jobs.pace import backoff_s

LABEL: Final = "headrace_job"  # in a batch's metadata
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_PAGE: Final = 100
_MOST_TOLD: Final = 20

Document = dict[str, Any]


class BadInput(Exception):
    """The file, or what is asked about it, cannot be worked on; asking again will not help."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked."""

    source: str
    target: str
    window: str = "24h"
    name: str = ""
    """Tells this run of a file from earlier ones."""
    poll_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a batch has ended, and what was written of it."""

    status: str
    total: int
    answered: int
    failed: int
    """In the file of errors; those that were never executed are among them."""

    @property
    def is_whole(self) -> bool:
        """Every line was answered. A batch that was cancelled before it was read has no lines."""
        return self.status == "completed" and self.answered == self.total


class Tells(Protocol):
    """What a run says on its way."""

    def step(self, text: str) -> None:
        """Something has happened."""

    def progress(self, done: int, total: int) -> None:
        """So many lines have ended."""

    def away(self, why: str, wait_s: float) -> None:
        """The gateway cannot be had now, and will be asked again."""


@dataclass(frozen=True, slots=True)
class _Input:
    """A file of lines, on this machine."""

    content: IO[bytes]
    size: int
    digest: str
    endpoint: str
    """`url` of its first line, which all must have."""

    def key(self, job: Job) -> str:
        """The same for the same work, asked under the same name."""
        told = json.dumps([job.name, self.endpoint, self.digest])
        return hashlib.sha256(told.encode()).hexdigest()[:32]


def run_batch(job: Job, calls: Calls, tells: Tells) -> Ended:
    """Send it, or find it sent; wait for its end; write what came of it.

    Waits without an end where the gateway is away. Raises BadInput; what `places` raises.
    """
    places.checked(job.target)
    with places.fetched(job.source) as content:
        given = _read(job.source, content)
        desk = _Desk(calls, tells)
        batch = _attached(desk, job, given)
        batch = _waited(desk, job, batch)
        if batch["status"] == "failed":
            raise BadInput(f"the gateway refuses the file:\n{_problems(batch)}")
        return _kept(desk, job, given, batch)


def _read(source: str, content: IO[bytes]) -> _Input:
    digest, size, endpoint = hashlib.sha256(), 0, ""
    for line in content:
        digest.update(line)
        size += len(line)
        if not endpoint and line.strip():
            endpoint = _url(source, line)
    if not endpoint:
        raise BadInput(f"{source} has no lines")
    return _Input(content, size, digest.hexdigest(), endpoint)


def _url(source: str, line: bytes) -> str:
    try:
        url = json.loads(line)["url"]
    except (ValueError, TypeError, KeyError):
        url = None
    if not isinstance(url, str) or not url:
        example = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}'
        raise BadInput(f"the first line of {source} is no line of a batch, such as {example}")
    return url


class _Desk:
    """The gateway's Batch API, asked until it answers."""

    def __init__(self, calls: Calls, tells: Tells) -> None:
        self._calls = calls
        self.tells = tells

    def ask(self, call: Callable[[Calls], Answer]) -> Answer:
        """An answer with 200. Makes the call again while the gateway is away; raises BadInput."""
        failures = 0
        while True:
            try:
                answer = call(self._calls)
            except Away as away:
                why, wait_s = str(away), None
            else:
                if answer.status == 200:
                    return answer
                if answer.status not in LATER and answer.status != 500:
                    raise BadInput(refusal(answer))
                why, wait_s = f"{answer.status}: {answer.message()}", answer.retry_after_s
            failures += 1
            wait_s = max(wait_s or 0.0, backoff_s(failures, random.random()))
            self.tells.away(why, wait_s)
            self.rest(wait_s)

    def get(self, path: str) -> Answer:
        """Raises BadInput."""
        return self.ask(lambda calls: calls.get(path))

    def rest(self, wait_s: float) -> None:
        """Wait, without a connection: one that was idle for long may be gone when it is wanted."""
        self._calls.close()
        time.sleep(wait_s)

    def pages(self, path: str) -> Iterator[Document]:
        """All that a list holds, newest first."""
        after = ""
        while True:
            page = self.get(f"{path}?limit={_PAGE}{after}").json()
            yield from page["data"]
            if not page["has_more"]:
                return
            after = f"&after={quote(page['last_id'])}"

    def batch(self, key: str) -> Document | None:
        """The job's: the oldest that was not refused. Younger ones are cancelled."""
        mine = [
            each
            for each in self.pages("/v1/batches")
            if (each["metadata"] or {}).get(LABEL) == key and each["status"] != "failed"
        ]
        for twin in mine[:-1]:
            if twin["status"] not in ENDED and twin["status"] != "cancelling":
                self._cancel(twin["id"])
        return mine[-1] if mine else None

    def _cancel(self, batch_id: str) -> None:
        def call(calls: Calls) -> Answer:
            answer = calls.post(f"/v1/batches/{batch_id}/cancel", b"")
            return Answer(200, b"") if answer.status == 409 else answer  # it has ended meanwhile

        self.ask(call)

    def file(self, given: _Input, name: str) -> str:
        """The id of the input at the gateway; it is sent where an earlier run has not done so."""
        for each in self.pages("/v1/files"):
            if each["filename"] == name and each["bytes"] == given.size:
                return str(each["id"])
        self.tells.step(f"sending {given.size} bytes")

        def call(calls: Calls) -> Answer:
            return calls.upload("/v1/files", name, given.content, given.size)

        return str(self.ask(call).json()["id"])

    def create(self, key: str, body: Document) -> Document:
        """Make the job's batch, once: where no answer came, it may have been made all the same."""
        sent = json.dumps(body).encode()
        is_again = False

        def call(calls: Calls) -> Answer:
            nonlocal is_again
            if is_again and (found := self.batch(key)):
                return Answer(200, json.dumps(found).encode())
            is_again = True
            return calls.post("/v1/batches", sent)

        made: Document = self.ask(call).json()
        return self.batch(key) or made


def _attached(desk: _Desk, job: Job, given: _Input) -> Document:
    """The job's batch."""
    key = given.key(job)
    if found := desk.batch(key):
        desk.tells.step(f"{found['id']} is this job's already: going on with it")
        return found
    body = {
        "input_file_id": desk.file(given, f"headrace-job-{key}.jsonl"),
        "endpoint": given.endpoint,
        "completion_window": job.window,
        "metadata": {LABEL: key, **({"name": job.name[:512]} if job.name else {})},
    }
    made = desk.create(key, body)
    desk.tells.step(f"{made['id']} is on its way")
    return made


def _waited(desk: _Desk, job: Job, batch: Document) -> Document:
    while batch["status"] not in ENDED:
        counts = batch["request_counts"]
        desk.tells.progress(counts["completed"] + counts["failed"], counts["total"])
        desk.rest(job.poll_s)
        batch = desk.get(f"/v1/batches/{batch['id']}").json()
    counts = batch["request_counts"]
    desk.tells.progress(counts["completed"] + counts["failed"], counts["total"])
    return batch


def _kept(desk: _Desk, job: Job, given: _Input, batch: Document) -> Ended:
    """Write answers, errors, and the lines to ask again; the answers last, for they say all is."""
    errors, again = places.beside(job.target, "errors"), places.beside(job.target, "again")
    failed: set[str] = set()
    with tempfile.TemporaryFile() as content:
        if batch["error_file_id"]:
            _downloaded(desk, batch["error_file_id"], content)
            content.seek(0)
            failed = {json.loads(line)["custom_id"] for line in content}
            places.written(errors, content)
    if failed:
        with tempfile.TemporaryFile() as content:
            given.content.seek(0)
            content.writelines(_lines_of(given.content, failed))
            places.written(again, content)
    else:
        places.removed(errors)
        places.removed(again)
    with tempfile.TemporaryFile() as content:
        if batch["output_file_id"]:
            _downloaded(desk, batch["output_file_id"], content)
        places.written(job.target, content)
    counts = batch["request_counts"]
    return Ended(batch["status"], counts["total"], counts["completed"], len(failed))


def _downloaded(desk: _Desk, file_id: str, content: IO[bytes]) -> None:
    desk.ask(lambda calls: calls.download(f"/v1/files/{file_id}/content", content))


def _lines_of(content: IO[bytes], wanted: set[str]) -> Iterator[bytes]:
    """Lines of the input by their custom_id, each with its end."""
    for line in content:
        if line.strip() and json.loads(line)["custom_id"] in wanted:
            yield line if line.endswith(b"\n") else line + b"\n"


def _problems(batch: Document) -> str:
    problems = (batch["errors"] or {}).get("data", [])
    told = [
        f"  line {each['line']}: {each['message']}" if each["line"] else f"  {each['message']}"
        for each in problems[:_MOST_TOLD]
    ]
    if len(problems) > _MOST_TOLD:
        told.append(f"  and {len(problems) - _MOST_TOLD} more")
    return "\n".join(told)


def refusal(answer: Answer) -> str:
    """What it says, and what to do about it."""
    advice = {
        401: "name a file with a key: --api-key-file FILE",
        403: "the key is not good for this",
        404: "is the Batch API on? headrace gateway --batch-folder FOLDER",
        413: "make several files of it, or raise batch.max_file_bytes of the gateway",
    }.get(answer.status)
    said = f"the gateway says {answer.status}: {answer.message()}"
    return f"{said} ({advice})" if advice else said
