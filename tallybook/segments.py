"""A journal segment: JSON lines, one usage event each, and which of them a reader may believe.

The writer groups events into batches. It writes a batch, syncs it, and only then writes the marker line
`{"journal":"committed","events":N}` and lets the answers leave. If a batch can't be made durable, the
writer cuts the file back to where the batch began; where even that fails, it writes the marker
`{"journal":"refused"}`: what stands between the last marker and this one was never billed.

While the writer lives it holds an exclusive `flock` on the segment. So a reader

- believes the lines before a committed marker, always;
- never believes the lines before a refused marker;
- believes whole lines after the last marker only when the writer is gone, that is when it can take the
  lock: they were written by requests that may have been answered in the moment of the crash;
- sets a last line without an end aside: its request was never answered.

A file of event lines without markers and without a writer reads as what it says. The standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
from functools import lru_cache
from io import SEEK_END
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

SUFFIX = ".jsonl"
REFUSED = b'{"journal":"refused"}\n'
_MARKER = b'{"journal":'
_BLOCK_BYTES = 1 << 20


class DamagedSegmentError(ValueError):
    """A segment whose markers don't agree with its lines: it was altered after it was written."""


class Line(NamedTuple):
    """The bytes of a line without its end, and where in the segment it starts."""

    offset: int
    raw: bytes


class Extract(NamedTuple):
    """The believed lines from an offset on, the torn last line if any, and the offset to go on from."""

    lines: list[Line]
    torn: Line | None
    next_offset: int


def committed(events: int) -> bytes:
    """The marker line behind a durable batch of so many events."""
    return b'{"journal":"committed","events":%d}\n' % events


def read_segment(segment: Path, offset: int, about_bytes: int = 1 << 20) -> Extract:
    """What a reader that has reached `offset` may believe now, up to about so many bytes.

    `offset` is 0 or the `next_offset` of an earlier call. Nothing new gives no lines and the same offset.
    Raises: DamagedSegmentError; OSError.
    """
    with segment.open("rb") as file:
        gone = _writer_is_gone(file.fileno())  # asked before reading: what comes later is the next call's
        if file.seek(0, SEEK_END) < offset:
            raise _shortened(file.tell(), offset)
        file.seek(offset)
        data = b""
        while True:
            chunk = file.read(about_bytes)
            data = data + chunk if data else chunk
            at_end = len(chunk) < about_bytes
            extract = believed_lines(data, offset, to_the_end=gone and at_end)
            if extract.next_offset > offset or at_end:
                return extract
            # A batch may be longer than what was asked for: go on until its marker. Where none is to come,
            # every line is believed, and need not wait for the end.
            whole = data.rfind(b"\n") + 1
            if gone and whole and _last_marker(segment, _state_of(file)) < offset + whole:
                return believed_lines(data[:whole], offset, to_the_end=True)
            file.seek(offset + len(data))
            about_bytes *= 2  # so that parsing again stays linear in what is read


def reread_segment(segment: Path, offset: int, next_offset: int) -> list[Line]:
    """The lines that `read_segment` has believed between two offsets that it gave.

    Raises: DamagedSegmentError; OSError.
    """
    with segment.open("rb") as file:
        file.seek(offset)
        data = file.read(next_offset - offset)
    if offset + len(data) < next_offset:
        raise _shortened(offset + len(data), next_offset)
    # What follows the last marker was believed then, or it would lie behind `next_offset`.
    return believed_lines(data, offset, to_the_end=True).lines


def believed_lines(data: bytes, offset: int, *, to_the_end: bool) -> Extract:
    """The same for bytes in memory that start at `offset`, just behind a marker or at the segment's start.

    `to_the_end`: nothing follows `data`, and nothing ever will.
    Raises: DamagedSegmentError.
    """
    *whole, rest = data.split(b"\n")
    starts = list(accumulate((len(raw) + 1 for raw in whole), initial=offset))
    believed: list[Line] = []
    done = 0  # lines up to here are decided
    for number, raw in enumerate(whole):
        if raw.startswith(_MARKER):
            if _is_committed(raw, number - done, starts[number]):
                believed += map(Line, starts[done:number], whole[done:number])
            done = number + 1
    if not to_the_end:
        return Extract(believed, None, starts[done])
    believed += map(Line, starts[done:], whole[done:])
    torn = Line(starts[-1], rest) if rest and not rest.startswith(_MARKER) else None
    return Extract(believed, torn, starts[-1] + len(rest))


@lru_cache(maxsize=16)  # each of a plain file's chunks asks
def _last_marker(segment: Path, _state: tuple[int, ...]) -> int:
    """Where the last marker of a file in this state starts, or -1; it mostly is at the end."""
    with segment.open("rb") as file:
        end = file.seek(0, SEEK_END)
        behind = b""
        while end:
            start = max(end - _BLOCK_BYTES, 0)
            file.seek(start)
            block = file.read(end - start) + behind
            found = block.rfind(b"\n" + _MARKER)
            if found >= 0:
                return start + found + 1
            behind, end = block[: len(_MARKER)], start
    return 0 if behind == _MARKER else -1


def _state_of(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _shortened(end: int, before: int) -> DamagedSegmentError:
    return DamagedSegmentError(f"it ends at byte {end}, and had {before} before")


def _is_committed(raw: bytes, pending: int, offset: int) -> bool:
    """Whether this marker commits the pending lines; false if it refuses them."""
    try:
        marker = json.loads(raw)
    except ValueError:
        raise DamagedSegmentError(f"the marker at byte {offset} is not JSON") from None
    if marker == {"journal": "refused"}:
        return False
    if marker == {"journal": "committed", "events": pending}:
        return True
    raise DamagedSegmentError(f"the marker at byte {offset} follows {pending} lines but says {marker}")


def _writer_is_gone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
