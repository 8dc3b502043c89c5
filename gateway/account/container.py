"""What the container we run in may use, as its control group says."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FILES: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of version 2 and version 1, below the mount point."""

UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 says so by a number that no machine has."""


def memory_limit_bytes(mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """None where nothing is set, or nothing can be read."""
    for name in FILES:
        try:
            said = (mount / name).read_text().strip()
        except OSError:
            continue
        if said.isdigit() and int(said) < UNLIMITED_BYTES:
            return int(said)
    return None
