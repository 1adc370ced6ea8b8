"""Many rows at once, in and out, on both databases."""

from datetime import datetime, timezone

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from billing.bulk import insert_rows, stream
from billing.csv_lines import csv_line
from billing.ledger import reading, writing
from billing.tables import bill_days, journal_offsets

TEXTS = [
    "",
    "null",
    "NULL",
    "\\N",
    "\\.",
    'a"b',
    "a\\b",
    "a,b",
    "a\nb\r\tc",
    "很好",
    "'; --",
    '\\"',
    "\\x00",
    " a ",
]


@pytest.mark.parametrize("count", [0, 1, 2, 4999, 5000, 5001, 10_001])
def test_every_row_comes_out_once(ledger: Engine, count: int) -> None:
    rows = [(f"{number:06}", number) for number in range(count)]
    with writing(ledger) as connection:
        insert_rows(connection, journal_offsets, ("segment", "offset_bytes"), rows)
    query = sa.select(journal_offsets).order_by(journal_offsets.c.segment)
    with reading(ledger) as connection:
        assert list(stream(connection, query)) == rows
        assert len(list(zip(stream(connection, query), range(3), strict=False))) == min(count, 3)


def test_any_text_comes_out_as_it_went_in(ledger: Engine) -> None:
    rows = [(text, number) for number, text in enumerate(TEXTS)]
    with writing(ledger) as connection:
        insert_rows(connection, journal_offsets, ("segment", "offset_bytes"), rows)
    with reading(ledger) as connection:
        query = sa.select(journal_offsets).order_by(journal_offsets.c.offset_bytes)
        assert list(stream(connection, query)) == rows


def test_nothing_truth_and_moments_come_out_as_they_went_in(ledger: Engine) -> None:
    moment = "2026-11-21T04:00:00.250000+00:00"
    with writing(ledger) as connection:
        columns = ("day", "state", "early", "closed_at", "closed_with")
        insert_rows(connection, bill_days, columns, [("2026-11-21", "draft", True, moment, None)])
    with reading(ledger) as connection:
        row = connection.execute(sa.select(bill_days)).one()
    assert (row.early, row.closed_with) == (True, None)
    assert row.closed_at == datetime(2026, 11, 21, 4, 0, 0, 250_000, tzinfo=timezone.utc)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_a_line_of_plain_strings_reads_the_same_with_escapes_and_without(values: list[str]) -> None:
    line, escaped = csv_line(values), csv_line([*values, "\\"])
    if b"\\" not in line:
        assert escaped.startswith(line + b",")
