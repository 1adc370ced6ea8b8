"""Reading the journal: chunks of a segment, parsed here or ahead of time in a process beside this one."""

from __future__ import annotations

import fcntl
import gc
import marshal
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, timezone, tzinfo
from pathlib import Path
from select import select
from typing import IO, Any, NamedTuple, Protocol, cast
from zoneinfo import ZoneInfo

from billing.events import EventReader
from billing.packing import DayPack, Packed, pack_if_each_once
from billing.parsing import Parsed, Poison, parse, read_act
from tallybook.segments import DamagedSegmentError, Line, read_segment, reread_segment

CHUNK_BYTES = 8 << 20  # read at a time: some twelve thousand events a transaction
# From here on a process of its own pays, which takes half a second to start.
WORTH_A_PROCESS_BYTES = 2 * CHUNK_BYTES
_PIPE_BYTES = 1 << 20  # so that a chunk changes hands in few turns


class Chunk(NamedTuple):
    """What a part of a segment held, its torn last line if any, and the offset to go on from.

    `packed` are its rows, ready to be stored, where no id is there twice. A chunk that came from the other
    process has them in no other form: see `Parser.again`.
    """

    parsed: Parsed
    packed: Packed | None
    torn: Line | None
    next_offset: int
    read_at: datetime


class Parser(Protocol):
    """Reads one chunk while the one before is stored: ask first, fetch the answer later."""

    def ask(self, segment: Path, offset: int) -> None:
        """Begin to read a segment from here; what was asked for before was answered."""

    def answer(self) -> Chunk:
        """What was asked for. Raises: DamagedSegmentError; OSError."""

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        """All of a chunk that was read from here, its rows one by one. Raises: the same."""


@contextmanager
def parser(zone: tzinfo, waiting_bytes: int, *, for_copy: bool) -> Iterator[Parser]:
    """A parser for so much that waits: a large journal is read in a process beside this one.

    `for_copy`: rows are packed as lines, else as values.
    """
    if (
        waiting_bytes < WORTH_A_PROCESS_BYTES
        or not isinstance(zone, ZoneInfo)
        or len(os.sched_getaffinity(0)) < 2
    ):
        with without_collection():
            yield _Here(zone, for_copy=for_copy)
        return
    command = [sys.executable, "-m", "billing.reading", zone.key, "lines" if for_copy else "values"]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(  # noqa: S603 -- this program itself
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        with suppress(AttributeError, OSError):  # of more than 64 KiB, where the system has it to give
            fcntl.fcntl(cast(IO[bytes], process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            with without_collection():
                yield _Beside(process, _Here(zone, for_copy=for_copy))
        finally:
            process.kill()  # it holds nothing, and may be in the midst of an answer that nobody wants


class _Here:
    def __init__(self, zone: tzinfo, *, for_copy: bool) -> None:
        self._reader = EventReader(zone, for_copy=for_copy)
        self._for_copy = for_copy
        self._asked = (Path(), 0)

    def ask(self, segment: Path, offset: int) -> None:
        self._asked = (segment, offset)

    def answer(self) -> Chunk:
        segment, offset = self._asked
        # Values take several times the memory of lines: SQLite is faster with fewer of them at once.
        extract = read_segment(segment, offset, CHUNK_BYTES if self._for_copy else CHUNK_BYTES // 2)
        now = datetime.now(timezone.utc)
        parsed = parse(extract.lines, self._reader, now)
        packed = pack_if_each_once([row for _, row in parsed.rows], for_copy=self._for_copy)
        return Chunk(parsed, packed, extract.torn, extract.next_offset, now)

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        if chunk.parsed.rows or (chunk.packed and not chunk.packed.days):
            return chunk.parsed
        return parse(reread_segment(segment, offset, chunk.next_offset), self._reader, chunk.read_at)


class _Beside:
    """Reads here until the other process has started."""

    def __init__(self, process: subprocess.Popen[bytes], here: _Here) -> None:
        self._to = cast(IO[bytes], process.stdin)
        self._from = cast(IO[bytes], process.stdout)
        self._here = here
        self._started = False

    def ask(self, segment: Path, offset: int) -> None:
        if not self._started and select([self._from], [], [], 0)[0]:
            _receive(self._from)
            self._started = True
        if self._started:
            _send(self._to, (os.fspath(segment), offset))
        else:
            self._here.ask(segment, offset)

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        return self._here.again(segment, offset, chunk)

    def answer(self) -> Chunk:
        if not self._started:
            return self._here.answer()
        told = _receive(self._from)
        if told is None:
            raise OSError("the process that reads the journal has ended")
        kind, content = told
        if kind == "damaged":
            raise DamagedSegmentError(content)
        if kind == "error":
            raise OSError(*content)
        return _unplain(content)


def serve(zone: tzinfo, *, for_copy: bool) -> None:
    """Answer on standard output what is asked on standard input, until that ends."""
    here = _Here(zone, for_copy=for_copy)
    gc.disable()
    answer: tuple[Any, ...] = ("started",)
    _send(sys.stdout.buffer, answer)
    while (asked := _receive(sys.stdin.buffer)) is not None:
        segment, offset = asked
        here.ask(Path(segment), offset)
        try:
            answer = ("chunk", _plain(here.answer()))
        except DamagedSegmentError as error:
            answer = ("damaged", str(error))
        except OSError as error:
            answer = ("error", (error.errno, error.strerror, error.filename))
        _send(sys.stdout.buffer, answer)


def _plain(chunk: Chunk) -> tuple[Any, ...]:
    """A chunk as plain values, without its rows one by one."""
    packed: tuple[Any, ...] | None = None
    if chunk.packed:
        days = [(day.toordinal(), *rest) for day, *rest in map(tuple[Any, ...], chunk.packed.days)]
        packed = (chunk.packed.ids, days)
    poison = [(tuple(each.line), each.code, each.message) for each in chunk.parsed.poison]
    acts = [tuple(line) for line, _ in chunk.parsed.acts]
    return (
        packed,
        poison,
        acts,
        chunk.torn and tuple(chunk.torn),
        chunk.next_offset,
        chunk.read_at.isoformat(),
    )


def _unplain(content: tuple[Any, ...]) -> Chunk:
    packed, poison, acts, torn, next_offset, read_at = content
    if packed:
        ids, days = packed
        packed = Packed(ids, [DayPack(date.fromordinal(day), *rest) for day, *rest in days])
    told_acts = [(Line(*line), act) for line in acts if (act := read_act(line[1])) is not None]
    parsed = Parsed([], [Poison(Line(*line), code, message) for line, code, message in poison], told_acts)
    return Chunk(parsed, packed, torn and Line(*torn), next_offset, datetime.fromisoformat(read_at))


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
