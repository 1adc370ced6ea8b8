from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from billing import chain
from billing.audit import verify
from billing.errors import AuditError, PricesError
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import changes, import_tariff, kept_prices, kept_tariff, prove_kept, sync_prices
from billing.prices.cli import prices as command
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price, Tier
from billing.prices.tariff import Tariff
from billing.tables import department_rules, discounts, prices
from tests.billing.days import at, bring, close
from tests.billing.factories import AFTER, DAY, a_price, an_event

PRICES = (
    a_price(),
    a_price(context_band=32_769, input=Decimal("1.60")),
    a_price(latency_class="batch", minimum=Decimal("0.01")),
    a_price(
        model_label="canary",
        tiers="graduated",
        input=(Tier(1000, Decimal("0.80")), Tier(None, Decimal("0.60"))),
    ),
)
FULL = Tariff(
    PRICES,
    (Discount("retail", None, Decimal("12.5"), DAY), Discount("retail", "m", Decimal(0), DAY)),
    (DepartmentRule("user-a", None, "sales", DAY), DepartmentRule(None, "search", "sales", DAY)),
)


def imported(ledger: Engine, tariff: Tariff) -> None:
    with writing(ledger) as connection:
        import_tariff(connection, tariff, "user-a")


def prove(ledger: Engine) -> None:
    with reading(ledger) as connection:
        prove_kept(connection, [body for _, kind, body in chain.records(connection) if kind == "prices"])


def test_what_was_imported_is_kept_to_the_last_term(ledger: Engine) -> None:
    imported(ledger, FULL)
    with reading(ledger) as connection:
        kept = kept_tariff(connection)
        for part in ("prices", "discounts", "rules"):
            assert set(getattr(kept, part)) == set(getattr(FULL, part))
        assert not changes(connection, FULL)


def test_an_import_is_told_to_the_audit_chain(ledger: Engine) -> None:
    imported(ledger, FULL)
    imported(ledger, FULL)  # changes nothing, and says nothing
    imported(ledger, Tariff((a_price(),)))
    with reading(ledger) as connection:
        first, second = [body for _, _, body in chain.records(connection)]
    assert first["by"] == "user-a"
    assert {row["id"] for row in first["prices"]["imported"]} == {price.id for price in PRICES}
    assert second["prices"] == {"imported": [], "withdrawn": [p.id for p in kept_in_order(PRICES[1:])]}
    assert len(second["discounts"]["withdrawn"]) == len(second["department_rules"]["withdrawn"]) == 2


def kept_in_order(some: tuple[Price, ...]) -> list[Price]:
    return sorted(some, key=lambda price: (price.effective_from, price.id))


def test_a_price_that_was_never_billed_may_be_corrected(ledger: Engine) -> None:
    wrong, right = a_price(input=Decimal(80)), a_price()
    with writing(ledger) as connection:
        sync_prices(connection, Tariff((wrong,)))
        listed = sync_prices(connection, Tariff((right,)))
        assert listed.price_list.in_force(right.model, "1", DAY) == right
        sync_prices(connection, Tariff((wrong,)))
    with reading(ledger) as connection:
        assert kept_prices(connection) == {wrong.id: wrong, right.id: right}
    prove(ledger)


NEXT = DAY + timedelta(days=1)
TODAY = Tariff(
    (a_price(),),
    (Discount("retail", None, Decimal(10), DAY),),
    (DepartmentRule("user-b", None, "sales", DAY),),
)


def and_price(**terms: object) -> Tariff:
    return replace(TODAY, prices=(a_price(), a_price(**terms)))


def and_discount(discount: Discount) -> Tariff:
    return replace(TODAY, discounts=(*TODAY.discounts, discount))


def and_rule(rule: DepartmentRule) -> Tariff:
    return replace(TODAY, rules=(*TODAY.rules, rule))


@pytest.mark.parametrize(
    "changed",
    [
        replace(TODAY, prices=()),
        replace(TODAY, prices=(a_price(input=Decimal("0.90")),)),
        and_price(effective_from=DAY),
        and_price(model_version="1", effective_from=DAY),
        and_price(latency_class="standard", effective_from=DAY),
        replace(TODAY, discounts=()),
        and_discount(Discount("retail", None, Decimal(20), date(2026, 1, 1))),
        and_discount(Discount("retail", "review-sentiment", Decimal(20), DAY)),
        replace(TODAY, rules=()),
        and_rule(DepartmentRule("user-a", None, "sales", DAY)),
        and_rule(DepartmentRule(None, "search", "sales", DAY)),
    ],
)
def test_what_is_billed_keeps_its_price_discount_and_department(
    sqlite_ledger: Engine, changed: Tariff
) -> None:
    imported(sqlite_ledger, TODAY)
    bring(sqlite_ledger, [an_event(), an_event(user="user-b")])
    close(sqlite_ledger, DAY, tariff=TODAY)
    with pytest.raises(PricesError) as refused:
        imported(sqlite_ledger, changed)
    assert refused.value.code == "price_changes_past"
    with reading(sqlite_ledger) as connection:
        assert not changes(connection, TODAY)


@pytest.mark.parametrize(
    "changed",
    [
        and_price(effective_from=NEXT),
        and_price(model="other"),
        and_price(model_version="2"),
        and_price(model_label="canary"),
        and_price(latency_class="batch"),
        and_price(context_band=32_769),
        and_discount(Discount("retail", None, Decimal(20), NEXT)),
        and_discount(Discount("retail", "other", Decimal(20), DAY)),
        and_discount(Discount("wholesale", None, Decimal(20), DAY)),
        and_rule(DepartmentRule("user-a", None, "sales", NEXT)),
        and_rule(DepartmentRule("user-a", "ads", "sales", DAY)),
    ],
)
def test_what_nothing_was_billed_by_may_come_at_any_day(sqlite_ledger: Engine, changed: Tariff) -> None:
    imported(sqlite_ledger, TODAY)
    bring(sqlite_ledger, [an_event(), an_event(user="user-b")])
    close(sqlite_ledger, DAY, tariff=TODAY)
    imported(sqlite_ledger, changed)


def test_days_before_a_billed_price_may_still_get_theirs(ledger: Engine) -> None:
    later = a_price(effective_from=NEXT)
    for day in (DAY, NEXT):
        bring(ledger, [an_event(time=at(day))])
        close(ledger, day, [later])
    before = a_price(effective_from=DAY, input=Decimal(9), output=Decimal(9))
    assert close(ledger, NEXT + timedelta(days=1), [before, later]).proof.amount_minor == 108
    with reading(ledger) as connection:
        verify(connection)


@pytest.mark.parametrize(
    "tampering",
    [
        prices.update().where(prices.c.latency_class == "batch").values(input="0.01"),
        prices.update().where(prices.c.latency_class == "batch").values(minimum=None),
        prices.delete().where(prices.c.latency_class == "batch"),
        prices.update().where(prices.c.latency_class == "batch").values(withdrawn_at=AFTER),
        discounts.update().where(discounts.c.model == "m").values(percent="100"),
        discounts.delete(),
        department_rules.update().where(department_rules.c.user_id == "user-a").values(department="other"),
    ],
)
def test_an_altered_price_book_is_found(sqlite_ledger: Engine, tampering: sa.Executable) -> None:
    imported(sqlite_ledger, FULL)
    prove(sqlite_ledger)
    with writing(sqlite_ledger) as connection:
        connection.execute(tampering)
    with pytest.raises(AuditError) as found:
        prove(sqlite_ledger)
    assert found.value.code == "price_altered"


FILE = """
currency = "CNY"
[[prices]]
model = "m"
effective_from = 2026-01-01
input = "0.80"
output = "2.40"
[[discounts]]
department = "retail"
percent = "10"
effective_from = 2026-02-01
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A price file, and settings that name it and a ledger."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("TALLYBOOK_PRICES_FILE", str(tmp_path / "prices.toml"))
    monkeypatch.setenv("TALLYBOOK_TIME_ZONE", "Asia/Shanghai")
    (tmp_path / "prices.toml").write_text(FILE, "utf-8")
    return tmp_path / "prices.toml"


def test_the_diff_says_what_an_import_would_change(file: Path) -> None:
    told = CliRunner().invoke(command, ["diff"]).output.splitlines()
    assert told == [
        "+ the price of m, from 2026-01-01: input 0.80, cached input 0.80, output 2.40 CNY per 1,000 tokens",
        "+ the discount of retail on every model from 2026-02-01: 10% off",
    ]


def test_an_import_asks_first_and_says_who(file: Path) -> None:
    assert "Imported" not in CliRunner().invoke(command, ["import"], input="n\n").output
    assert (
        "Imported by user-a." in CliRunner().invoke(command, ["import", "--by", "user-a"], input="y\n").output
    )
    assert "is what the price file says" in CliRunner().invoke(command, ["diff"]).output
    file.write_text(FILE.replace('"0.80"', '"0.90"'), "utf-8")
    told = CliRunner().invoke(command, ["import", "--yes"]).output
    assert "- the price of m, from 2026-01-01: input 0.80" in told
    assert "+ the price of m, from 2026-01-01: input 0.90" in told
    ledger = open_ledger(f"sqlite:///{file.with_name('ledger.db')}", "Asia/Shanghai")
    with reading(ledger) as connection:
        assert kept_tariff(connection).prices[0].input == Decimal("0.90")
        assert next(body["by"] for _, _, body in chain.records(connection)) == "user-a"
    ledger.dispose()
