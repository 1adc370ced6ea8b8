"""Files that others read: whole or not there, never half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(file: Path, content: bytes) -> None:
    """Write the whole file or none, and keep it through a power cut."""
    with whole_file(file) as out:
        out.write(content)


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """A stream that becomes the whole file at the end, kept through a power cut; on an error, none of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, so that a new name outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
