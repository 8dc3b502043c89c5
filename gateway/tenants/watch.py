"""The tenants' file or folder: read at the start, and again whenever it has changed.

It is read whole (it is small), so every way of changing it is seen: in place, by renaming another
over it, or by the symbolic links of a mounted Secret. A content counts only when it reads the same
twice, `SETTLE_S` apart, and only when it is valid: a mistake must not lock everybody out.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.apart import apart
from gateway.section import SettingsError
from gateway.tenants.document import read_documents
from gateway.tenants.tenancy import Strangers, Tenancy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.clock import Clock
    from gateway.settings import TenantsSettings

MAX_BYTES: Final = 8 * 1024 * 1024
SETTLE_S: Final = 0.05

log = logging.getLogger(__name__)


def tenancy(
    settings: TenantsSettings, clock: Clock, wall: Clock
) -> tuple[Tenancy | Strangers, TenantsWatch | None]:
    """Who may ask, and who keeps that up to date; nobody where there are no keys."""
    if settings.path is None:
        return Strangers(), None
    made = Tenancy(clock, wall, settings.assumed_output_tokens)
    return made, TenantsWatch(settings.path, settings, made)


class TenantsWatch:
    """Keeps a tenancy up to date with what is at a path."""

    def __init__(self, path: str, settings: TenantsSettings, tenancy: Tenancy) -> None:
        self._path = Path(path)
        self._every_s = settings.reload_every_s
        self._tenancy = tenancy
        self._seen: Mapping[str, bytes] | None = None
        self._wrong = ""

    def __repr__(self) -> str:
        return f"<TenantsWatch of {self._path}>"

    def load(self) -> None:
        """For the start. Raises OSError or SettingsError: without tenants there is no serving."""
        files = read_files(self._path)
        self._tenancy.adopt(apart(read_documents, files))
        self._seen = files
        self._tell()

    async def run(self) -> None:
        """Look, adopt, wait, for ever."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._look()
            except Exception:
                log.exception("the tenants' watch has a bug")

    async def _look(self) -> None:
        try:
            files = await asyncio.to_thread(read_files, self._path)
            if files == self._seen:
                self._wrong = ""  # taken back
                return
            await asyncio.sleep(SETTLE_S)
            if await asyncio.to_thread(read_files, self._path) != files:
                return  # somebody is writing; the next look will see
            document = await asyncio.to_thread(apart, read_documents, files)
        except (OSError, SettingsError) as error:
            self._complain(str(error))
            return
        self._tenancy.adopt(document)
        self._seen = files
        self._wrong = ""
        self._tell()

    def _complain(self, wrong: str) -> None:
        if wrong != self._wrong:
            self._wrong = wrong
            self._tenancy.reload_failures += 1
            log.error("the new tenants cannot be used, the old ones stay: %s", wrong)

    def _tell(self) -> None:
        log.info("%s: %r", self._path, self._tenancy)


def read_files(path: Path) -> dict[str, bytes]:
    """The file by its name, or the files of a folder by theirs; hidden ones are not of them.

    Raises OSError.
    """
    found = {each.name: each for each in sorted(path.iterdir())} if path.is_dir() else None
    if found is None:
        return {path.name: _read(path)}
    return {
        name: _read(each)
        for name, each in found.items()
        if not name.startswith(".") and not name.endswith("~") and each.is_file()
    }


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"{path} is larger than {MAX_BYTES} bytes")
    return content
