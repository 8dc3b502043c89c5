"""Where the bytes of files are: a folder, or an object store by URL (fsspec).

A file is written once, as a draft that is kept or discarded whole, under an id of its own; the
store learns of it when it is complete, so a crash in the middle leaves bytes that nobody can name.
All of it blocks: it is called from threads.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_BYTES: Final = 1024 * 1024


class Files:
    """A folder of files, here or elsewhere."""

    def __init__(self, url: str) -> None:
        """Raises ValueError or ImportError for a URL that fsspec cannot serve, OSError."""
        self._fs, self._root = url_to_fs(url)
        if self.is_local:
            self._fs.makedirs(self._root, exist_ok=True)

    def __repr__(self) -> str:
        return f"<Files {self._root}>"

    @property
    def is_local(self) -> bool:
        """A folder of this machine."""
        return isinstance(self._fs, LocalFileSystem)

    def _path(self, file_id: str) -> str:
        return f"{self._root}/{file_id}"

    def draft(self, file_id: str) -> Draft:
        """Begin to write a file."""
        return Draft(self, file_id, self._fs.open(self._path(file_id), "wb"))

    def open(self, file_id: str) -> IO[bytes]:
        """Read a file from its beginning; the caller closes it. Raises FileNotFoundError."""
        handle: Any = self._fs.open(self._path(file_id), "rb")
        if self.is_local:
            local: IO[bytes] = handle
            return local
        return io.BufferedReader(handle, _READ_BYTES)  # fsspec's own `readline` knows no limit

    def at_hand(self, file_id: str) -> int:
        """A descriptor of the file, or of a nameless copy on this machine, for reading anywhere in
        it; the caller closes it. Raises FileNotFoundError."""
        if self.is_local:
            return os.open(self._path(file_id), os.O_RDONLY)
        with tempfile.TemporaryFile() as copy, self.open(file_id) as handle:
            shutil.copyfileobj(handle, copy, _READ_BYTES)
            copy.flush()
            return os.dup(copy.fileno())

    def remove(self, file_id: str) -> None:
        """Remove it, if it is there."""
        try:
            self._fs.rm_file(self._path(file_id))
        except FileNotFoundError:
            return


class Draft:
    """A file that is being written. Ends by `keep` or by `discard`."""

    def __init__(self, files: Files, file_id: str, handle: Any) -> None:
        self._files = files
        self._handle = handle
        self.file_id = file_id
        self.size = 0  # bytes written

    def __repr__(self) -> str:
        return f"<Draft {self.file_id}: {self.size} bytes>"

    def write(self, pieces: Sequence[bytes]) -> None:
        """Write some more."""
        data = b"".join(pieces)
        self._handle.write(data)
        self.size += len(data)

    def keep(self) -> None:
        """It is complete, and on the disk (or wherever it goes) when this returns."""
        if self._files.is_local:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        self._handle.close()

    def discard(self) -> None:
        """It shall not be."""
        if self._files.is_local:
            self._handle.close()
            self._files.remove(self.file_id)
        elif self._handle.closed:
            self._files.remove(self.file_id)
        else:
            self._handle.discard()  # an upload that is not completed leaves nothing
            self._handle.closed = True  # or it would be completed when it is collected
