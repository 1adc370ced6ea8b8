"""The segment that this process writes: made, committed to, cut back after a failure, closed.

`tallybook.segments` says what the lines mean to a reader. This file is the other half of that contract.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from tallybook.files import sync_folder
from tallybook.segments import REFUSED, SUFFIX, committed

_ROOM_BYTES = 64 * 1024  # a new segment must have at least so much room, or it is not begun


class SegmentWriter:
    """One append-only file, locked while this object lives. Not for use by several threads at once."""

    def __init__(self, directory: Path) -> None:
        """Make a segment with a name of its own that has proved to be writable.

        It gets its name only when it is locked, so no reader ever takes it for one whose writer has gone.
        Raises: OSError: the folder or the disk can't take events.
        """
        directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc)
        name = f"{now:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = directory / (name + SUFFIX)
        unborn = directory / (name + ".opening")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(unborn, flags, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(self._file, bytes(_ROOM_BYTES))
            os.fdatasync(self._file)
            os.ftruncate(self._file, 0)
            os.fdatasync(self._file)
            unborn.rename(self.path)
            sync_folder(directory)
        except BaseException:
            os.close(self._file)
            for leftover in (unborn, self.path):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            raise
        self._end = 0
        self._worn = False

    @property
    def size_bytes(self) -> int:
        """How much of the file is believed."""
        return self._end

    @property
    def worn(self) -> bool:
        """Whether the marker behind the last batch could not be written: close, and go on in another."""
        return self._worn

    def commit(self, lines: Sequence[bytes]) -> None:
        """Make these lines durable, each with its line end. All of them are, or an OSError is raised.

        After an OSError call `retract` before anything else, and nothing after it but `close`.
        """
        data = b"".join(lines)
        _write(self._file, data)
        os.fdatasync(self._file)
        if os.fstat(self._file).st_nlink == 0:
            raise FileNotFoundError(
                errno.ENOENT, "the segment was removed while it was written", str(self.path)
            )
        self._end += len(data)
        marker = committed(len(lines))
        try:
            _write(self._file, marker)
        except OSError:
            # The events are durable; without a marker they are believed once this segment is closed.
            self._worn = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
        else:
            self._end += len(marker)

    def retract(self) -> None:
        """Make sure that the lines whose commit failed are never believed, not even after a crash.

        Raises: OSError: that can't be made sure now. Try again, and keep the segment open until it works:
            no reader believes what follows the last marker while the lock is held.
        """
        try:
            os.ftruncate(self._file, self._end)
            os.fdatasync(self._file)
        except OSError:
            _write(self._file, b"\n" + REFUSED)
            os.fdatasync(self._file)

    def close(self) -> None:
        """Release the lock. A segment that nothing was written to is removed."""
        if self._end == 0:
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_size == 0:
                    self.path.unlink()
        with contextlib.suppress(OSError):  # every byte that counts was synced
            os.close(self._file)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
