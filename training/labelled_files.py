"""Labelled texts from a file: TSV, CSV, JSON lines or Parquet, told by the end of its name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Iterator

from training.errors import TrainingError

_LONGEST_FIELD = 10_000_000  # characters; csv's own limit is too low for a long text


def read_examples(file: Path, text_column: str, label_column: str) -> list[tuple[str, str]]:
    """Every row's text and label, as they stand there. A label may be a number: its name is then its digits.

    Raises: TrainingError: `data_missing`, `unknown_format`, `invalid_text` (not UTF-8), `wrong_columns` (the
        file's are listed), `invalid_row` (broken, or without text or label; its number is told).
    """
    readers = {".tsv": _separated, ".csv": _separated, ".jsonl": _json_lines, ".parquet": _parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise TrainingError("unknown_format", f"{file} ends in none of {', '.join(readers)}")
    wanted = (text_column, label_column)
    try:
        return [
            (_text(file, number, row[text_column]), _label(file, number, row[label_column]))
            for number, row in reader(file, wanted)
        ]
    except UnicodeDecodeError as error:
        raise TrainingError("invalid_text", f"{file} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise TrainingError("data_missing", f"{file}: {error.strerror or error}") from error


def _separated(file: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    tabs = file.suffix.lower() == ".tsv"
    with file.open(encoding="utf-8-sig", newline="") as lines:
        # A quote in a TSV is a character like any other.
        reader = (
            csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
            if tabs
            else csv.DictReader(lines, strict=True)
        )
        try:
            _check_columns(file, wanted, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    raise _wrong(file, reader.line_num, "has another number of fields than the first line")
                yield reader.line_num, row
        except csv.Error as error:
            raise _wrong(file, reader.line_num + 1, f"is broken: {error}") from error


def _json_lines(file: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _wrong(file, number, f"is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise _wrong(file, number, "is not a JSON object")
            _check_columns(file, wanted, list(row))
            yield number, row


def _parquet(file: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow  # type: ignore[import-untyped]  # ships no types
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(str(file)) as table:
            _check_columns(file, wanted, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(columns=list(dict.fromkeys(wanted))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowInvalid as error:
        raise TrainingError("invalid_row", f"{file} is not Parquet: {error}") from error


def _check_columns(file: Path, wanted: tuple[str, ...], found: Any) -> None:
    lacking = [name for name in wanted if name not in found]
    if lacking:
        told, there = (", ".join(map(repr, names)) for names in (lacking, found))
        raise TrainingError("wrong_columns", f"{file} has no column {told}; it has {there or 'none'}")


def _text(file: Path, number: int, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(file, number, "has no text")
    return value


def _label(file: Path, number: int, value: Any) -> str:
    name = str(value).strip() if isinstance(value, (str, int)) else ""
    if not name or len(name) > 100 or not name.isprintable():
        raise _wrong(file, number, "has no label of 1-100 printable characters")
    return name


def _wrong(file: Path, number: int, what: str) -> TrainingError:
    return TrainingError("invalid_row", f"row {number} of {file} {what}")
