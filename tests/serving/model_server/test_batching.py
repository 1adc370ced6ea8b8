"""TensorFlow Serving's batching parameters file, as it is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.model_server.batcher import Batching
from serving.model_server.batching import BatchingError, read_batching


def read(tmp_path: Path, text: str) -> Batching:
    (tmp_path / "batching.txt").write_text(text)
    return read_batching(tmp_path / "batching.txt", Batching(rows=64, cells=100))


def test_the_file_of_the_documentation_is_read(tmp_path: Path) -> None:
    text = """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 1500 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "shared" }
        pad_variable_length_inputs: true
        allowed_batch_sizes: [8, 128]
    """
    assert read(tmp_path, text) == Batching(
        rows=128,
        cells=100,
        wait_seconds=0.0015,
        most_batches=1_000_000,
        threads=8,
        allowed_rows=(8, 128),
    )


def test_what_the_file_leaves_out_stays(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Batching(rows=64, cells=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("allowed_batch_sizes: 32", "must match max_batch_size; last entry was 32; expected 64"),
        ("allowed_batch_sizes: [8, 8, 64]", "entries must be monotonically increasing"),
        ("max_batch: 1", "is not a batching parameters file"),
    ],
)
def test_a_file_that_can_not_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BatchingError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BatchingError, match=r"none\.txt can't be read: No such file"):
        read_batching(tmp_path / "none.txt", Batching())
