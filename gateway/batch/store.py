"""The store: files, batches and lines in a database that several gateways may share.

Laws. A batch is worked on by whoever holds its lease; every claim raises its fence by one, and
every write of a worker names the fence it was given, so one whose lease has run out changes nothing
any more (`Fenced`). A line gets one result, ever. What is counted is what is stored. Each method is
one transaction: a crash is before it or after it.

Leases are timed by the gateways' own clocks: a wrong clock costs repeated work, nothing else.
All of it blocks: it is called from threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, delete, func, insert, select, tuple_, update

from gateway.batch.nouns import LIVE, Batch, BatchLine, Claim, File, Problem, Status
from gateway.batch.schema import ONLY_READS, batches, files, lines, open_database
from gateway.errors import BatchEnded, FileInUse, UnknownBatch, UnknownFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, CursorResult, Row, Select, Table

    from gateway.batch.nouns import Result


class Fenced(Exception):
    """The batch is somebody else's by now: nothing was written."""


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: up to `limit` after the one called `after`, by age."""

    after: str | None
    limit: int
    ascending: bool = False


class Store:
    """One database."""

    def __init__(self, url: str) -> None:
        """Opens it. Raises SQLAlchemyError, ModuleNotFoundError or OSError."""
        self._engine = open_database(url)
        self._reader = self._engine.execution_options(**{ONLY_READS: True})

    def __repr__(self) -> str:
        return f"<Store {self._engine.url.render_as_string(hide_password=True)}>"

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # Files

    def add_file(self, file: File) -> None:
        """Keep what is known of a file that is stored whole."""
        with self._engine.begin() as connection:
            _put_file(connection, file)

    def file(self, tenant: str, file_id: str) -> File:
        """Raises UnknownFile, for another tenant's too."""
        with self._reader.begin() as connection:
            return _file(connection, tenant, file_id)

    def files(self, tenant: str, purpose: str | None, page: Page) -> list[File]:
        """Some of a tenant's. Raises UnknownFile if there is none called `page.after`."""
        query = select(files).where(files.c.tenant == tenant)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self._reader.begin() as connection:
            cursor = None if page.after is None else _file(connection, tenant, page.after)
            query = _paged(query, files, cursor, page)
            return [File(**row._mapping) for row in connection.execute(query)]

    def remove_file(self, tenant: str, file_id: str) -> None:
        """Forget a file. Raises UnknownFile, or FileInUse while a batch needs it."""
        with self._engine.begin() as connection:
            _file(connection, tenant, file_id)
            needed = select(batches.c.id).where(
                batches.c.input_file_id == file_id, batches.c.status.in_(LIVE)
            )
            if connection.execute(needed.limit(1)).first() is not None:
                raise FileInUse
            connection.execute(delete(files).where(files.c.id == file_id))

    # Batches, as clients see them

    def add_batch(self, batch: Batch) -> None:
        """A new one. Raises UnknownFile if its input is not there."""
        with self._engine.begin() as connection:
            _file(connection, batch.tenant, batch.input_file_id)
            fields = msgspec.structs.asdict(batch)
            fields["metadata"] = _json(batch.metadata)
            fields["problems"] = _json(batch.problems)
            connection.execute(insert(batches).values(**fields, fence=0, lease_until=0.0))

    def batch(self, tenant: str, batch_id: str) -> Batch:
        """Raises UnknownBatch, for another tenant's too."""
        with self._reader.begin() as connection:
            return _batch(connection, tenant, batch_id)

    def batches(self, tenant: str, page: Page) -> list[Batch]:
        """Some of a tenant's. Raises UnknownBatch if there is none called `page.after`."""
        query = select(batches).where(batches.c.tenant == tenant)
        with self._reader.begin() as connection:
            cursor = None if page.after is None else _batch(connection, tenant, page.after)
            query = _paged(query, batches, cursor, page)
            return [_as_batch(row) for row in connection.execute(query)]

    def cancel(self, tenant: str, batch_id: str, now: float) -> Batch:
        """Ask that it be cancelled; again, and nothing changes. Raises UnknownBatch, BatchEnded."""
        with self._engine.begin() as connection:
            connection.execute(
                update(batches)
                .where(
                    batches.c.id == batch_id,
                    batches.c.tenant == tenant,
                    batches.c.status.in_((Status.VALIDATING, Status.IN_PROGRESS)),
                )
                .values(status=Status.CANCELLING, cancelling_at=now)
            )
            batch = _batch(connection, tenant, batch_id)
            if batch.status is not Status.CANCELLING:
                raise BatchEnded(f"The batch is {batch.status} and can no longer be cancelled.")
            return batch

    def census(self) -> dict[Status, int]:
        """How many batches stand where."""
        query = select(batches.c.status, func.count()).group_by(batches.c.status)
        with self._reader.begin() as connection:
            return {Status(status): count for status, count in connection.execute(query)}

    # Work, under a lease

    def claim(self, now: float, lease_s: float) -> Claim | None:
        """Take the oldest batch that needs work and is nobody's, for `lease_s`."""
        free = and_(batches.c.status.in_(LIVE), batches.c.lease_until <= now)
        with self._engine.begin() as connection:
            found = connection.execute(
                select(batches.c.id)
                .where(free)
                .order_by(batches.c.created_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).scalar()
            if found is None:
                return None
            row = connection.execute(
                update(batches)
                .where(batches.c.id == found, free)
                .values(fence=batches.c.fence + 1, lease_until=now + lease_s)
                .returning(batches)
            ).first()
            return None if row is None else Claim(_as_batch(row), row._mapping["fence"])

    def renew(self, claim: Claim, now: float, lease_s: float) -> Status:
        """Hold on to it; tells where it stands, for a client may have cancelled it."""
        with self._engine.begin() as connection:
            return _held(connection, claim, lease_until=now + lease_s)

    def release(self, claim: Claim) -> None:
        """Let another have it at once."""
        with self._engine.begin() as connection:
            _held(connection, claim, lease_until=0.0)

    def begin_validation(self, claim: Claim) -> None:
        """Forget the lines that were taken down before a crash."""
        with self._engine.begin() as connection:
            _held(connection, claim)
            connection.execute(delete(lines).where(lines.c.batch_id == claim.batch.id))

    def add_lines(self, claim: Claim, found: Sequence[BatchLine]) -> Status:
        """Take down some lines of the input."""
        rows = [{"batch_id": claim.batch.id, **msgspec.structs.asdict(line)} for line in found]
        with self._engine.begin() as connection:
            status = _held(connection, claim)
            if rows and status is Status.VALIDATING:
                connection.execute(insert(lines), rows)
            return status

    def validated(self, claim: Claim, total: int, now: float) -> Status:
        """All lines are taken down, and good."""
        with self._engine.begin() as connection:
            if _held(connection, claim) is Status.VALIDATING:
                _held(connection, claim, status=Status.IN_PROGRESS, in_progress_at=now, total=total)
            return _held(connection, claim)

    def refused(self, claim: Claim, problems: Sequence[Problem], now: float) -> None:
        """The input cannot be worked on. Nothing, if it was cancelled meanwhile."""
        with self._engine.begin() as connection:
            if _held(connection, claim) is Status.VALIDATING:
                _held(
                    connection,
                    claim,
                    status=Status.FAILED,
                    failed_at=now,
                    problems=_json(problems),
                    lease_until=0.0,
                )
                connection.execute(delete(lines).where(lines.c.batch_id == claim.batch.id))

    def pending(self, claim: Claim) -> list[BatchLine]:
        """Lines without a result, in the order of work. Their `prefix` is left out."""
        query = (
            select(*[lines.c[n] for n in ("number", "custom_id", "model", "start", "length")])
            .where(lines.c.batch_id == claim.batch.id, lines.c.succeeded.is_(None))
            .order_by(lines.c.model, lines.c.prefix, lines.c.number)
        )
        with self._engine.begin() as connection:
            _held(connection, claim)
            return [BatchLine(*row) for row in connection.execute(query)]

    def commit(self, claim: Claim, results: Sequence[Result], now: float, lease_s: float) -> Status:
        """Write results down and hold on to the batch. A line that has one keeps it."""
        with self._engine.begin() as connection:
            _held(connection, claim)  # from here on nobody else can take it
            counts = {True: 0, False: 0}
            for result in results:
                done: CursorResult[Any] = connection.execute(
                    update(lines)
                    .where(
                        lines.c.batch_id == claim.batch.id,
                        lines.c.number == result.number,
                        lines.c.succeeded.is_(None),
                    )
                    .values(succeeded=result.succeeded, document=result.document)
                )
                counts[result.succeeded] += done.rowcount
            return _held(
                connection,
                claim,
                completed=batches.c.completed + counts[True],
                failed=batches.c.failed + counts[False],
                lease_until=now + lease_s,
            )

    def finalize(self, claim: Claim, now: float) -> Status:
        """No further line will be worked on; one that is being cancelled stays so."""
        with self._engine.begin() as connection:
            if _held(connection, claim) is Status.IN_PROGRESS:
                _held(connection, claim, status=Status.FINALIZING, finalizing_at=now)
            return _held(connection, claim)

    def outcomes(
        self, claim: Claim, after: int, limit: int
    ) -> list[tuple[int, str, bool | None, bytes | None]]:
        """(number, custom_id, succeeded, document) of up to `limit` lines, in input order."""
        query = (
            select(lines.c.number, lines.c.custom_id, lines.c.succeeded, lines.c.document)
            .where(lines.c.batch_id == claim.batch.id, lines.c.number > after)
            .order_by(lines.c.number)
            .limit(limit)
        )
        with self._engine.begin() as connection:
            _held(connection, claim)
            return [tuple(row) for row in connection.execute(query)]

    def finish(
        self, claim: Claim, status: Status, output: File | None, error: File | None, now: float
    ) -> None:
        """It has ended as `status`, with these files; its lines are in them and nowhere else."""
        with self._engine.begin() as connection:
            _held(
                connection,
                claim,
                status=status,
                lease_until=0.0,
                output_file_id=output and output.id,
                error_file_id=error and error.id,
                **{f"{status}_at": now},
            )
            for file in (output, error):
                if file is not None:
                    _put_file(connection, file)
            connection.execute(delete(lines).where(lines.c.batch_id == claim.batch.id))


def _held(connection: Connection, claim: Claim, **values: Any) -> Status:
    """Write `values` to a batch that is still ours, and keep it locked to the transaction's end.

    Raises Fenced if it is not ours.
    """
    status = connection.execute(
        update(batches)
        .where(batches.c.id == claim.batch.id, batches.c.fence == claim.fence)
        .values(values or {"fence": claim.fence})
        .returning(batches.c.status)
    ).scalar()
    if status is None:
        raise Fenced
    return Status(status)


def _put_file(connection: Connection, file: File) -> None:
    connection.execute(insert(files).values(**msgspec.structs.asdict(file)))


def _file(connection: Connection, tenant: str, file_id: str) -> File:
    query = select(files).where(files.c.id == file_id, files.c.tenant == tenant)
    row = connection.execute(query).first()
    if row is None:
        raise UnknownFile(f"There is no file `{file_id[:100]}`.")
    return File(**row._mapping)


def _batch(connection: Connection, tenant: str, batch_id: str) -> Batch:
    query = select(batches).where(batches.c.id == batch_id, batches.c.tenant == tenant)
    row = connection.execute(query).first()
    if row is None:
        raise UnknownBatch(f"There is no batch `{batch_id[:100]}`.")
    return _as_batch(row)


def _as_batch(row: Row[Any]) -> Batch:
    fields = dict(row._mapping)
    del fields["fence"], fields["lease_until"]
    fields["status"] = Status(fields["status"])
    fields["metadata"] = fields["metadata"] and msgspec.json.decode(fields["metadata"])
    fields["problems"] = msgspec.json.decode(fields["problems"], type=tuple[Problem, ...])
    return Batch(**fields)


def _paged(
    query: Select[Any], table: Table, cursor: File | Batch | None, page: Page
) -> Select[Any]:
    """By age, then by id; from the one after `cursor` on."""
    key = (table.c.created_at, table.c.id)
    if cursor is not None:
        ours, theirs = tuple_(*key), (cursor.created_at, cursor.id)
        query = query.where(ours > theirs if page.ascending else ours < theirs)
    order = [each.asc() if page.ascending else each.desc() for each in key]
    return query.order_by(*order).limit(page.limit)


def _json(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
