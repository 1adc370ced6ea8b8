"""Labelled texts from files of four kinds: the same rows from each, and a clear word on what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]  # ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from training.errors import TrainingError
from training.labelled_files import read_examples

ROWS = [("房间很干净", "1"), ('he said "no", twice', "0"), ("  spaced\u3000out ", "0")]


def refused(file: Path, text: str = "text", label: str = "label") -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        read_examples(file, text, label)
    return caught.value


def test_the_same_rows_come_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label\ttext\n" + "".join(f"{b}\t{a}\n" for a, b in ROWS), "utf-8")
    quoted = (f'7,"{a.replace(chr(34), chr(34) * 2)}",{b}\r\n' for a, b in ROWS)
    (tmp_path / "a.csv").write_bytes(("\ufeffid,text,label\r\n" + "".join(quoted)).encode())
    lines = (json.dumps({"text": a, "label": int(b)}) for a, b in ROWS)
    (tmp_path / "a.JSONL").write_text("\n\n".join(lines), "utf-8")
    pq.write_table(
        pa.table({"label": [int(b) for _, b in ROWS], "text": [a for a, _ in ROWS]}), tmp_path / "a.parquet"
    )
    for name in ("a.tsv", "a.csv", "a.JSONL", "a.parquet"):
        assert read_examples(tmp_path / name, "text", "label") == ROWS


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("review,stars\nfine,5\n", "utf-8")
    assert read_examples(tmp_path / "a.csv", "review", "stars") == [("fine", "5")]


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("a.xlsx", b"", "unknown_format", ".tsv, .csv, .jsonl, .parquet"),
        ("a.csv", b"review,label\nx,y\n", "wrong_columns", "no column 'text'; it has 'review', 'label'"),
        ("a.csv", b"", "wrong_columns", "it has none"),
        ("a.jsonl", b'{"text": "x"}\n', "wrong_columns", "no column 'label'"),
        ("a.csv", b"text,label\n\xba\xc3,y\n", "invalid_text", "not UTF-8"),
        ("a.jsonl", b'{"text": "\xba\xc3", "label": 1}', "invalid_text", "not UTF-8"),
        ("a.csv", b"text,label\nx,y\nx,y,z\n", "invalid_row", "row 3"),
        ("a.tsv", b"text\tlabel\nx\n", "invalid_row", "row 2"),
        ("a.csv", b'text,label\n"x"y,z\n', "invalid_row", "row 2"),
        ("a.tsv", b"text\tlabel\nx\t \n", "invalid_row", "has no label"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": 5, "label": 1}\n', "invalid_row", "row 2"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text"', "invalid_row", "row 2"),
        ("a.jsonl", b"[1]\n", "invalid_row", "not a JSON object"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "invalid_row", "has no label"),
        ("a.jsonl", b'{"text": "x", "label": 0.5}\n', "invalid_row", "has no label"),
        ("a.parquet", b"PAR1 not", "invalid_row", "not Parquet"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused(
    tmp_path: Path, name: str, content: bytes, code: str, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path / name)
    assert error.code == code
    assert says in str(error)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        assert refused(tmp_path / name).code == "data_missing"
