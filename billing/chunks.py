"""The journal in chunks: so many lines of a segment as are stored in one transaction."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import NamedTuple

from billing.events import EventReader
from billing.packing import Packed, pack_if_each_once
from billing.parsing import Parsed, parse
from tallybook.segments import Extract, Line, read_segment, reread_segment

CHUNK_BYTES = 8 << 20  # read at a time: some twelve thousand events


class Chunk(NamedTuple):
    """What a part of a segment held, its torn last line if any, and the offset to go on from.

    `packed` are its rows, ready to be stored, where no id is there twice. A chunk that came from another
    process has them in no other form: see `ChunkReader.again`.
    """

    parsed: Parsed
    packed: Packed | None
    torn: Line | None
    next_offset: int
    read_at: datetime


class ChunkReader:
    """Reads segments for one billing time zone, chunk after chunk.

    `for_copy`: rows are packed as lines, else as values.
    """

    def __init__(self, zone: tzinfo, *, for_copy: bool) -> None:
        self._events = EventReader(zone, for_copy=for_copy)
        self._for_copy = for_copy

    def chunks(self, segment: Path, offset: int) -> Generator[Chunk, None, None]:
        """A segment's chunks from here on. Raises: DamagedSegmentError; OSError."""
        while (extract := self.read(segment, offset)).next_offset != offset:
            yield self.parse(extract)
            offset = extract.next_offset

    def read(self, segment: Path, offset: int) -> Extract:
        """The lines of the chunk that begins here. Raises: DamagedSegmentError; OSError."""
        return read_segment(segment, offset, CHUNK_BYTES)

    def parse(self, extract: Extract) -> Chunk:
        """The chunk of these lines."""
        now = datetime.now(timezone.utc)
        parsed = parse(extract.lines, self._events, now)
        packed = pack_if_each_once([row for _, row in parsed.rows], for_copy=self._for_copy)
        return Chunk(parsed, packed, extract.torn, extract.next_offset, now)

    def again(self, segment: Path, offset: int, chunk: Chunk) -> Parsed:
        """All of a chunk that began here, its rows one by one. Raises: DamagedSegmentError; OSError."""
        if chunk.parsed.rows or (chunk.packed and not chunk.packed.days):
            return chunk.parsed
        return parse(reread_segment(segment, offset, chunk.next_offset), self._events, chunk.read_at)
