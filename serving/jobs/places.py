"""Where a job's files are: paths of this machine, or URLs of whatever fsspec can open.

What is written appears whole or not at all: here by a rename, elsewhere as object stores have it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import PurePosixPath
from typing import IO, Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_COPIED_BYTES: Final = 1024 * 1024


def beside(place: str, word: str) -> str:
    """The place of another file about it: `out.jsonl` and `errors` make `out.errors.jsonl`."""
    name = PurePosixPath(place).name
    stem, dot, suffix = name.rpartition(".")
    other = f"{stem}.{word}.{suffix}" if dot and stem else f"{name}.{word}"
    return place[: len(place) - len(name)] + other


def fetched(place: str) -> IO[bytes]:
    """A nameless copy of it on this machine, at its start; the caller closes it.

    Raises OSError, and ValueError or ImportError for a URL that cannot be opened here.
    """
    system, path = url_to_fs(place)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # handed to the caller
    try:
        with system.open(path, "rb") as source:
            shutil.copyfileobj(source, copy, _COPIED_BYTES)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def checked(place: str) -> None:
    """Can something be written there, as far as can be seen before? Raises what `fetched` does."""
    system, path = url_to_fs(place)
    if isinstance(system, LocalFileSystem):
        if system.isdir(path):
            raise IsADirectoryError(f"{place} is a folder")
        with tempfile.TemporaryFile(dir=PurePosixPath(path).parent):
            pass


def written(place: str, content: IO[bytes]) -> None:
    """Put all of `content` there, in place of what was. Raises what `fetched` does."""
    system, path = url_to_fs(place)
    content.seek(0)
    if not isinstance(system, LocalFileSystem):
        _copied(content, system, path)
        return
    draft = f"{path}.partial"
    _copied(content, system, draft)
    system.mv(draft, path)


def removed(place: str) -> None:
    """It shall not be there. Raises what `fetched` does."""
    system, path = url_to_fs(place)
    if system.exists(path):
        system.rm_file(path)


def _copied(content: IO[bytes], system: Any, path: str) -> None:
    target = system.open(path, "wb")
    try:
        shutil.copyfileobj(content, target, _COPIED_BYTES)
    except BaseException:
        if hasattr(target, "discard"):
            target.discard()  # an upload that is not completed leaves nothing
            target.closed = True
        raise
    target.close()
