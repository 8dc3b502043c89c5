"""One claimed batch, from where it stands to its end.

    validating --lines taken down--> in progress --every line has a result--> files written --> end

Every step is written down before the next begins, so whoever takes a batch over goes on where it
stands: half a list of lines is taken down anew, results that were committed stay, and the files are
made from them once, in the order of the input.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from gateway.batch.documents import answered, unanswered
from gateway.batch.lines import ENDPOINTS, body_of
from gateway.batch.nouns import Batch, BatchLine, Claim, File, Result, Status
from gateway.batch.store import Fenced
from gateway.batch.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from gateway.batch.dispatch import Answer, Dispatcher
    from gateway.batch.files import Draft, Files
    from gateway.batch.store import Store
    from gateway.settings import BatchSettings
    from gateway.vocabulary import Route

COMMIT_EVERY_S: Final = 0.1  # results wait no longer than this to be written down
MOST_RESULTS: Final = 100  # that are not yet written down: what a crash makes us do again
RENEW_EVERY_S: Final = 1.0  # how soon a cancellation is noticed
PAGE_LINES: Final = 200  # read back at a time, for the files


class Desk(Protocol):
    """What all works share."""

    settings: BatchSettings
    store: Store
    files: Files
    dispatcher: Dispatcher
    wall: Callable[[], float]

    def models(self) -> Container[str]:
        """What can be asked for now."""

    def blocking(self, work: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run it in a thread of the room."""


class Work:
    """One batch being worked on. A `dispatch.Owner`."""

    def __init__(self, desk: Desk, claim: Claim) -> None:
        self._desk = desk
        self._claim = claim
        self._results: list[Result] = []
        self._committing = 0  # results that are being written down
        self._left = 0  # lines without a result
        self._input = -1  # a descriptor of the input file
        self._broken: Exception | None = None
        self.is_stopping = False

    def __repr__(self) -> str:
        return f"<Work on {self._claim.batch.id}, {self._left} lines left>"

    @property
    def batch(self) -> Batch:
        """As it was claimed."""
        return self._claim.batch

    @property
    def route(self) -> Route:
        """Where its lines go."""
        return ENDPOINTS[self.batch.endpoint]

    @property
    def tenant(self) -> str:
        """On whose account."""
        return self.batch.tenant

    @property
    def is_behind(self) -> bool:
        """More results than are allowed to be lost."""
        return len(self._results) + self._committing >= MOST_RESULTS

    async def run(self) -> None:
        """Go on with it, to its end or until `is_stopping`.

        Raises store.Fenced if it has become another's; SQLAlchemyError, OSError.
        """
        keeping = asyncio.create_task(self._keep(), name=f"lease of {self.batch.id}")
        try:
            await self._run()
        finally:
            keeping.cancel()

    async def _keep(self) -> None:
        """Renew the lease while a step takes long. That it is lost is for the next write to say."""
        desk = self._desk
        while True:
            await asyncio.sleep(desk.settings.lease_s / 3)
            try:
                await self._store("renew", self._claim, desk.wall(), desk.settings.lease_s)
            except Fenced:
                return
            except SQLAlchemyError:
                continue

    async def _run(self) -> None:
        status = self.batch.status
        if status is Status.VALIDATING:
            status = await self._validate()
        if status is Status.IN_PROGRESS:
            status = await self._execute()
        if self.is_stopping:
            await self._store("release", self._claim)
        elif status in (Status.FINALIZING, Status.CANCELLING):
            await self._assemble()

    async def _store(self, name: str, *args: Any) -> Any:
        return await self._desk.blocking(getattr(self._desk.store, name), *args)

    # Validating

    async def _validate(self) -> Status:
        desk, claim = self._desk, self._claim
        validation = Validation(self.batch.endpoint, desk.models(), desk.settings)
        await self._store("begin_validation", claim)
        handle = await desk.blocking(desk.files.open, self.batch.input_file_id)
        try:
            chunks = validation.chunks(handle)
            while (chunk := await desk.blocking(next, chunks, None)) is not None:
                if self.is_stopping:
                    return Status.VALIDATING
                status: Status = await self._store("add_lines", claim, chunk)
                if status is not Status.VALIDATING:
                    return status
        finally:
            await desk.blocking(handle.close)
        if validation.problems:
            await self._store("refused", claim, validation.problems, desk.wall())
            return Status.FAILED
        status = await self._store("validated", claim, validation.total, desk.wall())
        return status

    # In progress

    async def body(self, line: BatchLine) -> bytes:
        """The request body of a line."""
        raw: bytes = await self._desk.blocking(os.pread, self._input, line.length, line.start)
        return body_of(raw)

    def answered(self, line: BatchLine, answer: Answer) -> None:
        """A line has its result; it counts once it is committed."""
        self._results.append(answered(line, answer.status, answer.request_id, answer.body))
        self._left -= 1

    def broke(self, error: Exception) -> None:
        """A line could not be read."""
        self._broken = error

    async def _execute(self) -> Status:
        desk, claim = self._desk, self._claim
        self._input = await desk.blocking(desk.files.at_hand, self.batch.input_file_id)
        try:
            pending: list[BatchLine] = await self._store("pending", claim)
            self._left = len(pending)
            desk.dispatcher.add(self, pending)
            status = await self._until_answered()
        finally:
            await desk.dispatcher.withdraw(self)
            os.close(self._input)
        if status is Status.IN_PROGRESS:  # what was answered while we stopped counts too
            status = await self._commit()
        if status is Status.IN_PROGRESS and not self.is_stopping:
            status = await self._store("finalize", claim, desk.wall())
        return status

    async def _until_answered(self) -> Status:
        """Commit results as they come, until there is nothing to wait for."""
        desk = self._desk
        committed_at = desk.wall()
        status = Status.IN_PROGRESS
        while self._left and not self.is_stopping and desk.wall() < self.batch.expires_at:
            await asyncio.sleep(COMMIT_EVERY_S)
            if self._broken is not None:
                raise self._broken
            if self._results or not 0 <= desk.wall() - committed_at < RENEW_EVERY_S:
                status = await self._commit()
                committed_at = desk.wall()
                if status is not Status.IN_PROGRESS:
                    break
        return status

    async def _commit(self) -> Status:
        results, self._results = self._results, []
        self._committing = len(results)
        status: Status = await self._store(
            "commit", self._claim, results, self._desk.wall(), self._desk.settings.lease_s
        )
        self._committing = 0
        return status

    # Finalizing

    async def _assemble(self) -> None:
        """Write the output file and the error file, and end."""
        desk, claim = self._desk, self._claim
        for fence in range(1, claim.fence):  # what a crash may have left
            for kind in ("output", "error"):
                await desk.blocking(desk.files.remove, self._file_id(kind, fence))
        batch: Batch = await self._store("batch", claim.batch.tenant, claim.batch.id)
        is_cancelled = batch.status is Status.CANCELLING
        drafts: dict[str, Draft] = {}
        left, is_whole = 0, False
        try:
            if batch.in_progress_at is not None:
                left = await self._write(drafts, is_cancelled=is_cancelled)
            for draft in drafts.values():
                await desk.blocking(draft.keep)
            is_whole = True
        finally:
            for draft in () if is_whole else drafts.values():
                await desk.blocking(draft.discard)
        now = desk.wall()
        made = {
            kind: File(
                draft.file_id,
                now,
                draft.size,
                f"{batch.id}_{kind}.jsonl",
                "batch_output",
                batch.tenant,
            )
            for kind, draft in drafts.items()
        }
        end = Status.EXPIRED if left else Status.COMPLETED
        if is_cancelled:
            end = Status.CANCELLED
        await self._store("finish", claim, end, made.get("output"), made.get("error"), now)

    def _file_id(self, kind: str, fence: int) -> str:
        """Nobody else writes to it, a gateway that has lost the batch included."""
        return f"file-{self.batch.id.removeprefix('batch_')}-{fence}{kind[0]}"

    async def _write(self, drafts: dict[str, Draft], *, is_cancelled: bool) -> int:
        """Write the lines in the order of the input. Returns how many had no result."""
        desk, left, after = self._desk, 0, 0
        while rows := await self._store("outcomes", self._claim, after, PAGE_LINES):
            pieces: dict[str, list[bytes]] = {"output": [], "error": []}
            for number, custom_id, succeeded, document in rows:
                if document is None:
                    left += 1
                pieces["output" if succeeded else "error"].append(
                    document or unanswered(self.batch, number, custom_id, is_cancelled=is_cancelled)
                )
            after = rows[-1][0]
            for kind, some in pieces.items():
                if some and kind not in drafts:
                    file_id = self._file_id(kind, self._claim.fence)
                    drafts[kind] = await desk.blocking(desk.files.draft, file_id)
                if some:
                    await desk.blocking(drafts[kind].write, some)
        return left
