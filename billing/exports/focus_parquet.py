"""FOCUS rows as Parquet: amounts, prices and quantities are decimals, exact."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import BinaryIO

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from billing.errors import ExportError
from billing.exports.focus import COLUMNS, VERSION, Row

_BATCH_ROWS = 5000  # of a Parquet row group
_PARQUET_TYPES = {
    # As wide as Parquet has: 18 digits, and 20 decimals, which hold 12 decimals of a price per million tokens
    # less a whole percentage. More is refused, not rounded.
    "decimal": pa.decimal128(38, 20),
    "text": pa.string(),
    "time": pa.timestamp("ms", tz="UTC"),
}


def write_parquet(rows: Iterable[Row], out: BinaryIO) -> int:
    """Write rows as Parquet, amounts and quantities as decimals of 128 bits; how many.

    Raises: ExportError: a number has more digits than those hold (code inexact_decimal).
    """
    schema = pa.schema([(name, _PARQUET_TYPES[kind]) for name, kind in COLUMNS.items()])
    schema = schema.with_metadata({"FocusVersion": VERSION})
    count, remaining = 0, iter(rows)
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        while batch := list(islice(remaining, _BATCH_ROWS)):
            try:
                columns = [pa.array([row[f.name] for row in batch], f.type) for f in schema]
            except pa.ArrowInvalid as error:
                raise ExportError("inexact_decimal", f"a number is too long for Parquet: {error}") from error
            writer.write_batch(pa.record_batch(columns, schema=schema))
            count += len(batch)
    return count
