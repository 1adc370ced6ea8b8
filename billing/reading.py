"""Reading the journal: chunks of a segment, parsed here or ahead of time in a process beside this one."""

from __future__ import annotations

import gc
import marshal
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, tzinfo
from pathlib import Path
from select import select
from typing import IO, Any, NamedTuple, Protocol, cast
from zoneinfo import ZoneInfo

from billing.events import EventReader, EventRow
from billing.parsing import Parsed, Poison, parse, read_act
from tallybook.segments import DamagedSegmentError, Line, read_segment

CHUNK_BYTES = 4 << 20  # read at a time: some six thousand events a transaction
# From here on a process of its own pays, which takes half a second to start.
WORTH_A_PROCESS_BYTES = 4 * CHUNK_BYTES


class Chunk(NamedTuple):
    """What a part of a segment held, its torn last line if any, and the offset to go on from."""

    parsed: Parsed
    torn: Line | None
    next_offset: int


class Parser(Protocol):
    """Reads one chunk while the one before is stored: ask first, fetch the answer later."""

    def ask(self, segment: Path, offset: int) -> None:
        """Begin to read a segment from here; what was asked for before was answered."""

    def answer(self) -> Chunk:
        """What was asked for. Raises: DamagedSegmentError; OSError."""


@contextmanager
def parser(zone: tzinfo, waiting_bytes: int, *, for_copy: bool) -> Iterator[Parser]:
    """A parser for so much that waits: a large journal is read in a process beside this one.

    `for_copy`: rows are wanted as lines, else as values; rows of the other process have nothing else.
    """
    if (
        waiting_bytes < WORTH_A_PROCESS_BYTES
        or not isinstance(zone, ZoneInfo)
        or len(os.sched_getaffinity(0)) < 2
    ):
        with without_collection():
            yield _Here(zone)
        return
    command = [sys.executable, "-m", "billing.reading", zone.key, "lines" if for_copy else "values"]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(  # noqa: S603 -- this program itself
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        try:
            with without_collection():
                yield _Beside(process, _Here(zone))
        finally:
            process.kill()  # it holds nothing, and may be in the midst of an answer that nobody wants


class _Here:
    def __init__(self, zone: tzinfo) -> None:
        self._reader = EventReader(zone)
        self._asked = (Path(), 0)

    def ask(self, segment: Path, offset: int) -> None:
        self._asked = (segment, offset)

    def answer(self) -> Chunk:
        return _read(*self._asked, self._reader)


class _Beside:
    """Reads here until the other process has started."""

    def __init__(self, process: subprocess.Popen[bytes], here: _Here) -> None:
        self._to = cast(IO[bytes], process.stdin)
        self._from = cast(IO[bytes], process.stdout)
        self._here: _Here | None = here

    def ask(self, segment: Path, offset: int) -> None:
        if self._here is not None and select([self._from], [], [], 0)[0]:
            _receive(self._from)  # it has started
            self._here = None
        if self._here is None:
            _send(self._to, (os.fspath(segment), offset))
        else:
            self._here.ask(segment, offset)

    def answer(self) -> Chunk:
        if self._here is not None:
            return self._here.answer()
        told = _receive(self._from)
        if told is None:
            raise OSError("the process that reads the journal has ended")
        kind, content = told
        if kind == "damaged":
            raise DamagedSegmentError(content)
        if kind == "error":
            raise OSError(*content)
        return _unpacked(content)


def serve(zone: tzinfo, *, for_copy: bool) -> None:
    """Answer on standard output what is asked on standard input, until that ends."""
    reader = EventReader(zone)
    gc.disable()
    answer: tuple[Any, ...] = ("started",)
    _send(sys.stdout.buffer, answer)
    while (asked := _receive(sys.stdin.buffer)) is not None:
        segment, offset = asked
        try:
            answer = ("chunk", _packed(_read(Path(segment), offset, reader), for_copy=for_copy))
        except DamagedSegmentError as error:
            answer = ("damaged", str(error))
        except OSError as error:
            answer = ("error", (error.errno, error.strerror, error.filename))
        _send(sys.stdout.buffer, answer)


def _read(segment: Path, offset: int, reader: EventReader) -> Chunk:
    extract = read_segment(segment, offset, CHUNK_BYTES)
    return Chunk(parse(extract.lines, reader), extract.torn, extract.next_offset)


def _packed(chunk: Chunk, *, for_copy: bool) -> tuple[Any, ...]:
    """A chunk as plain values, column by column, without what its database does not take."""
    parsed = chunk.parsed
    rows = [
        (line.offset, line.raw, row.id, row.day.toordinal(), row.hour, row.context_band, row.content_sha256,
         row.tokens, row.line if for_copy else row.said)
        for line, row in parsed.rows
    ]  # fmt: skip
    poison = [(tuple(each.line), each.code, each.message) for each in parsed.poison]
    acts = [tuple(line) for line, _ in parsed.acts]
    return rows, acts, poison, chunk.torn and tuple(chunk.torn), chunk.next_offset, for_copy


def _unpacked(content: tuple[Any, ...]) -> Chunk:
    rows, acts, poison, torn, next_offset, for_copy = content
    days = {number: date.fromordinal(number) for number in {row[3] for row in rows}}
    read = []
    for offset, raw, event_id, day, hour, band, digest, tokens, told in rows:
        said, line = ((), told) if for_copy else (told, b"")
        row = EventRow(event_id, days[day], hour, band, digest, tokens, said, line)
        read.append((Line(offset, raw), row))
    told_acts = [(Line(*line), act) for line in acts if (act := read_act(line[1])) is not None]
    return Chunk(
        Parsed(read, [Poison(Line(*line), code, message) for line, code, message in poison], told_acts),
        torn and Line(*torn),
        next_offset,
    )


def _send(pipe: IO[bytes], message: tuple[Any, ...]) -> None:
    told = marshal.dumps(message, 2)
    pipe.write(len(told).to_bytes(8, "big"))
    pipe.write(told)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[Any, ...] | None:
    """None: the other side has ended."""
    size = int.from_bytes(pipe.read(8), "big")
    told = pipe.read(size)
    return marshal.loads(told) if size and len(told) == size else None  # noqa: S302 -- our own process


@contextmanager
def without_collection() -> Iterator[None]:
    """Spare the garbage collector: what is read here makes no cycles, and it would look at all of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # whom we read for has been killed
        serve(ZoneInfo(sys.argv[1]), for_copy=sys.argv[2] == "lines")
