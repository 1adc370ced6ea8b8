"""Reading the journal: here, or ahead of time in processes beside this one."""

from __future__ import annotations

import fcntl
import gc
import marshal
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import date, datetime, tzinfo
from io import BufferedReader, RawIOBase
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory, gettempdir
from typing import IO, Any, Protocol, cast
from zoneinfo import ZoneInfo

from billing.chunks import CHUNK_BYTES, Chunk, ChunkReader
from billing.packing import DayPack, Lines, Packed, Staged, Values
from billing.parsing import Parsed, Poison, read_act
from billing.staging import stage
from tallybook.segments import DamagedSegmentError, Line

# From here on processes of their own pay, which take half a second to start.
WORTH_A_PROCESS_BYTES = 2 * CHUNK_BYTES
_PROCESSES = 2  # what they read, one process can store
_FORMS = {form.__name__: form for form in (Lines, Values, Staged)}
_PIPE_BYTES = 1 << 20  # so that a chunk changes hands in few turns


class Reader(Protocol):
    """Reads segments, chunk after chunk; the next may be read while one is stored."""

    def chunks(self, segment: Path, offset: int) -> Generator[Chunk, None, None]:
        """A segment's chunks from here on; to be closed before others are asked for.

        Raises: DamagedSegmentError; OSError.
        """

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        """All of a chunk that began here, its rows one by one. Raises: the same."""


@contextmanager
def reader(zone: tzinfo, waiting_bytes: int, *, for_copy: bool) -> Iterator[Reader]:
    """A reader for so much that waits: a large journal is read in processes beside this one.

    `for_copy`: rows are packed as lines, else as values or staged.
    Raises: OSError: there is no temporary folder, in which they are staged.
    """
    here = ChunkReader(zone, for_copy=for_copy)
    with ExitStack() as open_ones, _without_collection():
        if (
            waiting_bytes < WORTH_A_PROCESS_BYTES
            or not isinstance(zone, ZoneInfo)
            or len(os.sched_getaffinity(0)) < 2
        ):
            yield here
        else:
            if not for_copy:
                gettempdir()  # raises here what would only end the processes
            processes = [
                _Process(open_ones.enter_context(_started(zone, for_copy=for_copy)))
                for _ in range(_PROCESSES)
            ]
            yield _Beside(processes, here)


@contextmanager
def _started(zone: ZoneInfo, *, for_copy: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads; it ends when its pipes are closed, whatever it is in the midst of."""
    command = [sys.executable, "-m", "billing.reading", zone.key, "lines" if for_copy else "values"]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(  # noqa: S603 -- this program itself
        command,
        bufsize=0,  # what a process that has ended was not told is not told again when its pipe is closed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        with suppress(AttributeError, OSError):  # of more than 64 KiB, where the system has it to give
            fcntl.fcntl(cast(IO[bytes], process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield process


class _Process:
    """One at the other end of two pipes: asked for a chunk, it first tells how far that reaches."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._to = cast(IO[bytes], process.stdin)
        self._from = BufferedReader(cast(RawIOBase, process.stdout))
        self._started = False

    def has_started(self) -> bool:
        """Whether it can be asked by now."""
        if not self._started and select([self._from], [], [], 0)[0]:
            self._receive()
            self._started = True
        return self._started

    def ask(self, segment: Path, offset: int) -> int:
        """Let it read the chunk that begins here; the offset behind it, or the same if there is none.

        Raises: OSError: it has ended.
        """
        with suppress(BrokenPipeError):  # which would be taken for our own output's: nobody would be told
            _send(self._to, (os.fspath(segment), offset))
        return cast(int, self._receive())

    def answer(self) -> Chunk:
        """What was asked for. Raises: DamagedSegmentError; OSError."""
        kind, content = self._receive()
        if kind == "damaged":
            raise DamagedSegmentError(content)
        if kind == "error":
            raise OSError(*content)
        return _unplain(content)

    def _receive(self) -> Any:
        told = _receive(self._from)
        if told is None:
            raise OSError("a process that reads the journal has ended")
        return told


class _Beside:
    """Lets processes read ahead in turns, each a chunk; reads here until the first of them has started."""

    def __init__(self, processes: list[_Process], here: ChunkReader) -> None:
        self._processes = processes
        self._here = here
        self._asked: deque[_Process] = deque()  # whose chunks come next, in this order
        self._segment, self._reached, self._at_end = Path(), 0, False

    def chunks(self, segment: Path, offset: int) -> Generator[Chunk, None, None]:
        self._segment, self._reached, self._at_end = segment, offset, False
        try:
            self._ask_ahead()
            while (chunk := self._next()).next_offset != offset:
                offset = chunk.next_offset
                self._ask_ahead()
                yield chunk
        finally:
            while self._asked:  # what nobody wants any more
                with suppress(DamagedSegmentError, OSError):
                    self._asked.popleft().answer()

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        return self._here.again(segment, offset, chunk)

    def _ask_ahead(self) -> None:
        for process in self._processes:
            if not self._at_end and process not in self._asked and process.has_started():
                reaches = process.ask(self._segment, self._reached)
                self._asked.append(process)
                self._at_end, self._reached = reaches == self._reached, reaches

    def _next(self) -> Chunk:
        if self._asked:
            return self._asked.popleft().answer()
        extract = self._here.read(self._segment, self._reached)
        self._reached = extract.next_offset
        return self._here.parse(extract)


def serve(zone: tzinfo, *, for_copy: bool) -> None:
    """Answer on standard output what is asked on standard input, until that ends."""
    here = ChunkReader(zone, for_copy=for_copy)
    gc.disable()
    # With PYTHONUNBUFFERED, `sys.stdout.buffer` may write a part of an answer and leave it at that.
    with (
        open(sys.stdout.fileno(), "wb", closefd=False) as answers,
        nullcontext("") if for_copy else TemporaryDirectory(prefix="tallybook-") as folder,
    ):
        _send(answers, "started")
        # By turns: while what is in one is stored, the next chunk is asked for.
        files = [Path(folder) / "0", Path(folder) / "1"]
        while (asked := _receive(sys.stdin.buffer)) is not None:
            files.reverse()
            for answer in _answers(here, Path(asked[0]), asked[1], files[0]):
                _send(answers, answer)


def _answers(here: ChunkReader, segment: Path, offset: int, file: Path) -> Iterator[Any]:
    """How far a chunk reaches, as soon as that is known; and the chunk, or what is wrong."""
    try:
        extract = here.read(segment, offset)
    except (DamagedSegmentError, OSError) as error:
        yield offset
        yield _told(error)
        return
    yield extract.next_offset
    try:
        answer = ("chunk", _plain(here.parse(extract), file))
    except OSError as error:
        answer = _told(error)
    yield answer


def _told(error: DamagedSegmentError | OSError) -> tuple[str, Any]:
    if isinstance(error, DamagedSegmentError):
        return "damaged", str(error)
    return "error", (error.errno, error.strerror, error.filename)


def _plain(chunk: Chunk, file: Path) -> tuple[Any, ...]:
    """A chunk as plain values, without its rows one by one; what are values by now is staged in the file."""
    packed: tuple[Any, ...] | None = None
    if chunk.packed:
        days, rows = chunk.packed
        if isinstance(rows, Values) and days:
            rows = stage(rows, chunk.packed.all_days, file)
        packed = (
            type(rows).__name__,
            tuple(rows),
            [(day.toordinal(), *rest) for day, *rest in map(tuple[Any, ...], days)],
        )
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
        form, rows, days = packed
        packed = Packed([DayPack(date.fromordinal(day), *rest) for day, *rest in days], _FORMS[form](*rows))
    told_acts = [(Line(*line), act) for line in acts if (act := read_act(line[1])) is not None]
    parsed = Parsed([], [Poison(Line(*line), code, message) for line, code, message in poison], told_acts)
    return Chunk(parsed, packed, torn and Line(*torn), next_offset, datetime.fromisoformat(read_at))


def _send(pipe: IO[bytes], message: Any) -> None:
    told = marshal.dumps(message, 2)
    pipe.write(len(told).to_bytes(8, "big"))
    pipe.write(told)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """None: the other side has ended."""
    size = int.from_bytes(pipe.read(8), "big")
    told = pipe.read(size)
    return marshal.loads(told) if size and len(told) == size else None  # noqa: S302 -- our own process


@contextmanager
def _without_collection() -> Iterator[None]:
    """Spare the garbage collector: what is read here makes no cycles, and it would look at all of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


if __name__ == "__main__":
    # Sent to all of a group: whom we read for ends us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # whom we read for has gone, or wants no more
        serve(ZoneInfo(sys.argv[1]), for_copy=sys.argv[2] == "lines")
