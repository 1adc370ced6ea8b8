"""The month's bill, computed a second time by Beancount."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from beancount import loader
from beancount.core import account as beancount_account
from beancount.core import data, realization
from beancount.parser import parser
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine

from billing.errors import BillingError
from billing.exports.beancount import account, component, quoted, write_beancount
from billing.exports.closed_bills import month_of
from billing.ledger import writing
from billing.prices.price_list import Price
from billing.rating import MINIMUM
from billing.tables import bill_lines, bill_totals
from tallybook.cli import main
from tests.billing.factories import ZONE, a_price
from tests.billing.generated_month import NOVEMBER, PRICES
from tests.billing.hand_made import FLAT, Bills, billed_ledger

DECEMBER = date(2026, 12, 1)
LATER = datetime(2027, 1, 9, tzinfo=ZONE)
BEAN_CHECK = Path(sys.executable).with_name("bean-check")
CENT = Decimal("0.01")
# What is rounded once a month: user, project, department, direction, price version, tier, discount.
Sum = tuple[str, str, str, str, str, int, Decimal]


def ledger_file(connection: Connection, folder: Path, month: date = NOVEMBER) -> Path:
    file = folder / f"{month:%Y-%m}.beancount"
    with file.open("wb") as out:
        write_beancount(connection, month_of(month, ZONE, LATER), ZONE, out)
    return file


def loaded(file: Path) -> list[Any]:
    entries, errors, _ = loader.load_file(str(file))
    assert errors == []
    return list(entries)


def transactions(entries: list[Any]) -> list[Any]:
    return list(data.filter_txns(entries))


def balance(entries: list[Any], name: str) -> Any:
    """What Beancount says that an account holds."""
    library: Any = realization  # whose functions have no types
    return library.get(library.realize(entries), name).balance


def used(entries: list[Any], month: date) -> dict[Sum, tuple[Decimal, Decimal]]:
    """Tokens used in a month of usage, and their list price a token, by what is rounded once."""
    found: dict[Sum, tuple[Decimal, Decimal]] = {}
    for entry in transactions(entries):
        for posting in entry.postings:
            if posting.price is None or posting.meta["usage_day"].replace(day=1) != month:
                continue
            terms, whose = posting.meta, entry.meta
            key = (
                entry.payee, whose["project"], whose["department"],
                posting.units.currency.partition(".")[2].lower().replace("-", "_"),
                terms["price_version"], int(terms["tier"]), terms["discount_percent"],
            )  # fmt: skip
            price = terms["list_price"] / terms["per_tokens"]
            assert posting.price.number == price * (100 - terms["discount_percent"]) / 100
            tokens, known = found.get(key, (Decimal(0), price))
            assert known == price
            found[key] = (tokens - posting.units.number, price)
    return found


def recomputed(tokens: Decimal, list_price: Decimal, discount: Decimal) -> Decimal:
    """From the quantity and the terms alone: rounded once, half up, as people do."""
    exact = tokens * list_price * (100 - discount) / 100
    return exact.quantize(CENT, ROUND_HALF_UP)


def test_bean_check_accepts_a_generated_month(november: Connection, tmp_path: Path) -> None:
    for month in (NOVEMBER, DECEMBER):
        file = ledger_file(november, tmp_path, month)
        checked = subprocess.run([BEAN_CHECK, file], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_balances_that_beancount_computes_are_ours_to_the_last_decimal(
    november: Connection, tmp_path: Path
) -> None:
    entries = loaded(ledger_file(november, tmp_path))
    line = bill_lines.c
    query = sa.select(
        line.department, line.project, sa.func.sum(line.amount_minor), sa.func.sum(line.quantity_tokens)
    ).where(line.day.between(NOVEMBER, date(2026, 11, 30)))
    for department, project, minor, tokens in november.execute(query.group_by(line.department, line.project)):
        owed = balance(entries, account("Assets:Receivable", department, project))
        assert owed.get_currency_units("CNY").number == Decimal(int(minor)).scaleb(-2)
        spent = balance(entries, account("Income:Usage", department, project))
        assert sum(position.units.number for position in spent) == -tokens


def test_beancount_recomputes_every_sum_of_the_month_to_the_last_decimal(
    november: Connection, tmp_path: Path
) -> None:
    # With December's bill, which brings what came late for November.
    entries = [e for month in (NOVEMBER, DECEMBER) for e in loaded(ledger_file(november, tmp_path, month))]
    ours = {
        (
            t.user_id,
            t.project,
            t.department,
            t.direction,
            t.price_id,
            t.tier + 1,
            Decimal(t.discount_percent),
        ): (
            t.quantity_tokens,
            Decimal(t.amount_minor).scaleb(-2),
        )
        for t in november.execute(sa.select(bill_totals).where(bill_totals.c.month == NOVEMBER))
        if t.price_id and t.direction != MINIMUM
    }
    theirs = {
        key: (tokens, recomputed(tokens, price, key[-1]))
        for key, (tokens, price) in used(entries, NOVEMBER).items()
    }
    assert len(ours) > 20
    assert theirs == ours


def test_the_lines_of_the_months_own_sums_were_billed_at_what_these_come_to(
    november: Connection, tmp_path: Path
) -> None:
    entries = loaded(ledger_file(november, tmp_path))
    billed: dict[date, Decimal] = defaultdict(Decimal)
    for entry in transactions(entries):
        for posting in entry.postings:
            if posting.price is not None:
                billed[posting.meta["usage_day"].replace(day=1)] += posting.meta["billed"].number
    assert set(billed) == {NOVEMBER, date(2026, 10, 1)}
    sums = used(entries, NOVEMBER)
    assert billed[NOVEMBER] == sum(
        recomputed(tokens, price, key[-1]) for key, (tokens, price) in sums.items()
    )


def test_beancounts_tokens_are_in_the_tiers_that_the_price_says(november: Connection, tmp_path: Path) -> None:
    found = used(loaded(ledger_file(november, tmp_path)), NOVEMBER)
    tiers: dict[tuple[Any, ...], dict[int, Decimal]] = defaultdict(dict)
    for (*whose, direction, price_id, tier, discount), (tokens, list_price) in found.items():
        price = {p.id: p for p in PRICES}[price_id]
        assert list_price == price.tiers_of(direction)[tier - 1].price / price.per_tokens
        tiers[(*whose, direction, price, discount)][tier] = tokens
    for (*_, direction, price, _), in_tiers in tiers.items():
        expected = expected_tiers(price, direction, sum(in_tiers.values(), Decimal(0)))
        assert {tier: tokens for tier, tokens in in_tiers.items() if tokens} == expected


def expected_tiers(price: Price, direction: str, tokens: Decimal) -> dict[int, Decimal]:
    """The price list's own words, told once more: tokens by tier."""
    found, below = {}, 0
    for number, (up_to, _) in enumerate(price.tiers_of(direction), 1):
        inside = up_to is None or tokens <= up_to
        if price.tiers == "volume":
            if inside:
                return {number: tokens}
        elif tokens > below:
            found[number] = (tokens if inside else Decimal(int(up_to or 0))) - below
            below = up_to or below
            if inside:
                break
    return found


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(Receivable:\S+  )(\d)", r"\g<1>1\2"),  # a billed amount
        (r"-(\d+) (TOKENS.INPUT @)", r"-1\1 \2"),  # a quantity
        (r"@ 0\.0008 ", r"@ 0.00080000001 "),  # a price
        (r"(balance Assets:Unrated:\S+  -?)(\d+)", r"\g<1>1\2"),  # a balance
        (r"Equity:Rounding  0\.00", "Equity:Rounding  0.01"),
    ],
)
def test_a_digit_that_is_changed_anywhere_is_refused_by_beancount(
    november: Connection, tmp_path: Path, pattern: str, replacement: str
) -> None:
    file = ledger_file(november, tmp_path)
    text, count = re.subn(pattern, replacement, file.read_text(), count=1)
    assert count == 1
    file.write_text(text)
    _, errors, _ = loader.load_file(str(file))
    assert errors


def test_unrated_tokens_are_a_commodity_without_a_price(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3), date(2026, 11, 4))
        bills.add(date(2026, 11, 3), 500, None)
        bills.write()
        entries = loaded(ledger_file(connection, tmp_path))
        unrated = balance(entries, "Assets:Unrated:Retail:Search")
        assert unrated.get_currency_units("UNRATED.INPUT").number == 500
        # Then it gets a price, and a correction takes the tokens out again.
        bills = Bills(connection)
        bills.add(date(2026, 11, 4), -500, None, usage_day=date(2026, 11, 3))
        bills.add(date(2026, 11, 4), 500, a_price(model="unpriced"), usage_day=date(2026, 11, 3))
        connection.execute(bill_totals.delete())
        bills.write()
        entries = loaded(ledger_file(connection, tmp_path))
    assert balance(entries, "Assets:Unrated:Retail:Search").is_empty()
    owed = balance(entries, "Assets:Receivable:Retail:Search")
    assert owed.get_currency_units("CNY").number == Decimal("0.40")


def test_minimums_are_in_an_account_of_their_own(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.minimum(date(2026, 11, 3), 12, 34)
        bills.write()
        entries = loaded(ledger_file(connection, tmp_path))
    earned = balance(entries, "Income:Minimum:Retail:Search")
    assert earned.get_currency_units("CNY").number == Decimal("-0.34")


@given(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=8))
@example(["search", "Search", "SEARCH", "s-earch", "sEarch", "XXUsearch"])
@example([" x", "x x", "xxu20-x", "u20-x", "XXU20-x"])
def test_different_names_are_different_accounts_and_legal_ones(names: list[str]) -> None:
    accounts = {account("Assets:Receivable", name, name) for name in names}
    assert len(accounts) == len(names)
    assert all(beancount_account.is_valid(each) for each in accounts)
    assert all(component(name).isascii() for name in names)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
@example('"; option "title" "x')
@example('a\nb"\\')
@example("\\n")
def test_a_string_is_read_back_as_it_was(text: str) -> None:
    entries, errors, _ = parser.parse_string(f"2026-11-01 * {quoted(text)} {quoted(text)}\n")
    assert errors == []
    [entry] = transactions(entries)
    assert (entry.payee, entry.narration) == (text, text)


def test_hostile_names_stay_names(sqlite_ledger: Engine, tmp_path: Path) -> None:
    hostile = ['a"b', "a\nb", "\\", "=1+1", "检索", '"\n2026-11-01 open Assets:Stolen', "; x", "{", "x" * 128]
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        for name in hostile:
            bills.add_all_named(date(2026, 11, 3), name)
        bills.write()
        entries = loaded(ledger_file(connection, tmp_path))
    bills_of = {entry.payee: entry for entry in transactions(entries)}
    assert set(bills_of) == set(hostile)
    for name, entry in bills_of.items():
        assert entry.meta["project"] == entry.postings[1].meta["model"] == name


def test_what_beancount_could_not_compute_exactly_is_refused(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        long = a_price(input=Decimal("1.123456789012"))
        bills.add(date(2026, 11, 3), 1_234_567_890_123, long, discount="33.123457")
        bills.write()
        with pytest.raises(BillingError) as told:
            ledger_file(connection, tmp_path)
    assert told.value.code == "inexact_decimal"


def test_the_command_line_writes_a_ledger_or_says_why_not(tmp_path: Path) -> None:
    url = billed_ledger(tmp_path, FLAT)
    out = tmp_path / "jan.beancount"

    def run(month: str, file: Path) -> tuple[int, str]:
        arguments = ["export", "beancount", month, "--out", str(file)]
        result = CliRunner().invoke(main, arguments, env={"TALLYBOOK_LEDGER_URL": url})
        return result.exit_code, result.output

    status, output = run("2020-01", out)
    assert status == 0, output
    assert loaded(out)
    before = out.read_bytes()
    for month, file, code in [
        ("2019-01", out, "no_bills"),
        ("2999-01", out, "period_in_future"),
        ("2020-01", tmp_path / "ledger.db" / "x", "export_unwritable"),
    ]:
        status, output = run(month, file)
        assert (status, code in output) == (1, True), output
    assert out.read_bytes() == before
