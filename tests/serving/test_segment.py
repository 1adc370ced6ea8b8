import errno
import fcntl
import os
from pathlib import Path

import pytest

from serving.segment import SegmentWriter
from tallybook.segments import read_segment


def believed(segment: Path) -> list[bytes]:
    return [line.raw for line in read_segment(segment, 0).lines]


def fail_with_eio(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_committed_batch_is_believed_while_its_writer_lives(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    writer.commit([b"a\n", b"b\n"])
    assert believed(writer.path) == [b"a", b"b"]
    writer.close()


def test_a_segment_gets_its_name_only_when_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked_at_birth = []

    def rename(self: Path, target: Path) -> Path:
        with self.open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                locked_at_birth.append(True)
        return original(self, target)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    writer = SegmentWriter(tmp_path)
    assert locked_at_birth == [True]
    writer.close()


def test_a_batch_whose_sync_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path)
    writer.commit([b"kept\n"])
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fail_with_eio)
        with pytest.raises(OSError, match="Input/output"):
            writer.commit([b"refused\n"])
    writer.retract()
    writer.close()
    assert believed(writer.path) == [b"kept"]
    assert b"refused\n" not in writer.path.read_bytes()


def test_lines_that_cannot_be_cut_off_are_marked_as_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path)
    writer.commit([b"kept\n"])
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fail_with_eio)
        with pytest.raises(OSError, match="Input/output"):
            writer.commit([b"refused\n"])
    monkeypatch.setattr(os, "ftruncate", fail_with_eio)  # as a folder that only takes appends
    writer.retract()
    writer.close()
    assert b"refused\n" in writer.path.read_bytes()
    assert believed(writer.path) == [b"kept"]


def test_a_marker_that_cannot_be_written_costs_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path)
    write = os.write

    def write_no_marker(file: int, data: bytes) -> int:
        if bytes(data).startswith(b'{"journal"'):
            write(file, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", write_no_marker)
    writer.commit([b"a\n"])
    assert writer.worn
    assert believed(writer.path) == []
    writer.close()
    assert believed(writer.path) == [b"a"]
    assert read_segment(writer.path, 0).torn is None


def test_a_segment_that_was_removed_takes_no_events(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    writer.path.unlink()
    with pytest.raises(FileNotFoundError):
        writer.commit([b"lost\n"])
    writer.retract()
    writer.close()


def test_a_segment_without_events_leaves_no_file(tmp_path: Path) -> None:
    SegmentWriter(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_gets_no_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", no_room)
    with pytest.raises(OSError, match="No space"):
        SegmentWriter(tmp_path)
    assert list(tmp_path.iterdir()) == []
