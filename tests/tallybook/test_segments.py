import fcntl
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.segments import (
    REFUSED,
    DamagedSegmentError,
    believed_lines,
    committed,
    read_segment,
    reread_segment,
)


def raws(data: bytes, *, to_the_end: bool, offset: int = 0) -> list[bytes]:
    return [line.raw for line in believed_lines(data, offset, to_the_end=to_the_end).lines]


def test_lines_before_a_committed_marker_are_believed_while_the_writer_lives() -> None:
    data = b"a\nb\n" + committed(2) + b"c\n"
    extract = believed_lines(data, 100, to_the_end=False)
    assert extract.lines == [(100, b"a"), (102, b"b")]
    assert extract.next_offset == 100 + len(data) - len(b"c\n")


def test_whole_lines_after_the_last_marker_are_believed_when_the_writer_is_gone() -> None:
    data = b"a\n" + committed(1) + b"b\nc\n"
    assert raws(data, to_the_end=True) == [b"a", b"b", b"c"]
    assert believed_lines(data, 0, to_the_end=True).next_offset == len(data)


def test_refused_lines_are_never_believed() -> None:
    data = b"a\n" + committed(1) + b"b\ntor" + b"\n" + REFUSED
    assert raws(data, to_the_end=True) == raws(data, to_the_end=False) == [b"a"]


def test_a_torn_last_line_is_set_aside_only_when_the_writer_is_gone() -> None:
    data = committed(0) + b"whole\ntorn"
    gone = believed_lines(data, 0, to_the_end=True)
    assert gone.torn == (len(data) - 4, b"torn")
    assert gone.next_offset == len(data)
    alive = believed_lines(data, 0, to_the_end=False)
    assert alive.torn is None
    assert alive.next_offset == len(committed(0))


def test_a_torn_marker_is_nobodys_request() -> None:
    assert believed_lines(b"a\n" + committed(1)[:-3], 0, to_the_end=True).torn is None


@pytest.mark.parametrize(
    "data",
    [b"a\n" + committed(2), b"a\nb\n" + committed(1), b'{"journal":"commi\n', b'{"journal":"lost"}\n'],
    ids=["a line was removed", "a line was added", "a marker is cut", "a marker of no known kind"],
)
def test_a_segment_that_was_altered_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedSegmentError, match="byte"):
        believed_lines(data, 0, to_the_end=True)


def test_a_segment_that_has_got_shorter_is_refused(tmp_path: Path) -> None:
    segment = tmp_path / "1.jsonl"
    segment.write_bytes(b"a\nb\n" + committed(2))
    reached = read_segment(segment, 0).next_offset
    assert [line.raw for line in reread_segment(segment, 0, reached)] == [b"a", b"b"]
    segment.write_bytes(b"a\n")
    with pytest.raises(DamagedSegmentError, match=f"ends at byte 2, and had {reached}"):
        read_segment(segment, reached)
    with pytest.raises(DamagedSegmentError, match=f"ends at byte 2, and had {reached}"):
        reread_segment(segment, 0, reached)


def test_a_plain_file_of_lines_reads_as_what_it_says(tmp_path: Path) -> None:
    segment = tmp_path / "plain.jsonl"
    segment.write_bytes(b"a\nb\n")
    assert [line.raw for line in read_segment(segment, 0).lines] == [b"a", b"b"]


def test_the_tail_of_a_locked_segment_waits_for_its_marker(tmp_path: Path) -> None:
    segment = tmp_path / "live.jsonl"
    with segment.open("ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(b"a\n")
        assert read_segment(segment, 0) == ([], None, 0)
        writer.write(committed(1))
        extract = read_segment(segment, 0)
        assert extract.lines == [(0, b"a")]
        writer.write(b"b\n")
        assert read_segment(segment, extract.next_offset).lines == []
    assert [line.raw for line in read_segment(segment, extract.next_offset).lines] == [b"b"]


batches = st.lists(
    st.tuples(st.lists(st.sampled_from([b"x", b"yy", b"z" * 50]), max_size=5), st.booleans()), max_size=8
)


def test_a_plain_file_is_read_in_pieces_whatever_its_size(tmp_path: Path) -> None:
    segment = tmp_path / "plain.jsonl"
    segment.write_bytes(b"line\n" * 1000)
    reached = [0]
    while (extract := read_segment(segment, reached[-1], 64)).lines:
        reached.append(extract.next_offset)
    assert reached[-1] == 5000
    assert max(after - before for before, after in pairwise(reached)) <= 64


@given(batches, st.lists(st.sampled_from([b"x", b"z" * 50])), st.integers(1, 200))
def test_reading_in_pieces_gives_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[list[bytes], bool]],
    tail: list[bytes],
    about_bytes: int,
) -> None:
    segment = tmp_path_factory.mktemp("pieces") / "s.jsonl"
    data, expected = b"", []
    for lines, is_committed in batches:
        data += b"".join(line + b"\n" for line in lines)
        data += committed(len(lines)) if is_committed else b"\n" + REFUSED
        expected += lines if is_committed else []
    data += b"".join(line + b"\n" for line in tail)  # the writer is gone, so these are believed as well
    expected += tail
    segment.write_bytes(data)
    read: list[bytes] = []
    offset = 0
    while (extract := read_segment(segment, offset, about_bytes)).next_offset > offset:
        read += [line.raw for line in extract.lines]
        offset = extract.next_offset
    assert read == expected
    assert offset == len(data)


@given(batches, st.data())
def test_after_a_crash_nothing_committed_is_missing_and_nothing_unwritten_appears(
    batches: list[tuple[list[bytes], bool]], draw: st.DataObject
) -> None:
    data, ends, lines_before = b"", [0], [0]
    everything: list[bytes] = []
    for number, (lines, _) in enumerate(batches):
        named = [b"%d-%d-" % (number, place) + line for place, line in enumerate(lines)]
        data += b"".join(line + b"\n" for line in named) + committed(len(named))
        everything += named
        ends.append(len(data) - len(committed(len(named))))
        lines_before.append(len(everything))
    cut = draw.draw(st.integers(0, len(data)))
    believed = raws(data[:cut], to_the_end=True)
    durable = max(count for end, count in zip(ends, lines_before, strict=True) if end <= cut)
    assert believed == everything[: len(believed)]
    assert len(believed) >= durable
