"""The tables of the store, the same for SQLite and PostgreSQL, and how a database is opened.

Instants are seconds since the epoch, by the clock of the gateway that wrote them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    text,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_BUSY_S: Final = 20.0  # how long a writer waits for another, in SQLite
_LOCK: Final = 0x48726163  # an advisory lock of our own, so that two gateways make no table twice

ONLY_READS: Final = "headrace_only_reads"

metadata: Final = MetaData()

files: Final = Table(
    "headrace_files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("tenant", Text, nullable=False),
)

batches: Final = Table(
    "headrace_batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("metadata", Text),  # JSON
    Column("status", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("failed_at", Double),
    Column("expired_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    Column("problems", Text, nullable=False),  # JSON
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),  # goes up by one with every claim
    Column("lease_until", Double, nullable=False),
    Index("headrace_batches_by_status", "status", "created_at"),
)

lines: Final = Table(
    "headrace_lines",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("prefix", LargeBinary, nullable=False),
    Column("succeeded", Boolean),  # NULL until it has a result
    Column("document", LargeBinary),
)


def open_database(url: str) -> Engine:
    """Open, and make what tables are missing. Raises SQLAlchemyError, ModuleNotFoundError where
    the driver is not installed, OSError."""
    if url.startswith("postgres"):
        url = "postgresql+psycopg://" + url.partition("://")[2]
    engine = create_engine(url, pool_pre_ping=True, pool_size=4, max_overflow=4)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", _sqlite_begins)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        metadata.create_all(connection)
    return engine


def _sqlite_connected(connection: Any, _: Any) -> None:
    """Readers beside one writer, who waits for another; a commit is on the disk when it returns."""
    connection.isolation_level = None  # we begin transactions ourselves
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={int(_BUSY_S * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begins(connection: Connection) -> None:
    """What reads before it writes must be the writer from the start, or may be refused midway."""
    only_reads = connection.get_execution_options().get(ONLY_READS)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
