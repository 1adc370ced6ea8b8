from datetime import date, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import daily
from billing.errors import DayError
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import import_tariff
from billing.prices.file import read_tariff
from billing.settings import BillingSettings
from billing.tables import bill_days
from tallybook.calendar import day_interval, today
from tests.billing.factories import ZONE, an_event, write_segment

TODAY = today(ZONE)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> BillingSettings:
    """Billing on SQLite with everything in one folder."""
    return BillingSettings(
        ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}",
        journal_dir=tmp_path / "journal",
        reports_dir=tmp_path / "reports",
        outbox_dir=tmp_path / "outbox",
        prices_file=ROOT / "prices.toml",
    )


def use(settings: BillingSettings, *days: date) -> None:
    noons = [day_interval(day, ZONE).start + timedelta(hours=12) for day in days]
    write_segment(settings.journal_dir, [an_event(time=noon) for noon in noons])
    daily.ingest(settings)


def outbox(settings: BillingSettings) -> list[str]:
    files = sorted(settings.outbox_dir.glob("*.eml"))
    return [message_from_bytes(f.read_bytes(), policy=default)["subject"] for f in files]


def state(settings: BillingSettings) -> dict[date, str]:
    with reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
        return {row.day: row.state for row in connection.execute(sa.select(bill_days))}


def run(settings: BillingSettings, day: date) -> None:
    daily.ingest(settings)
    daily.rate(settings, day)
    daily.close(settings, day)
    daily.report(settings, day)
    daily.mail(settings, day)


def test_the_steps_run_twice_make_one_bill_and_one_mail(settings: BillingSettings) -> None:
    yesterday = TODAY - timedelta(days=1)
    use(settings, yesterday)
    run(settings, yesterday)
    run(settings, yesterday)
    (subject,) = outbox(settings)
    assert str(yesterday) in subject
    assert (settings.reports_dir / str(yesterday) / "bill.csv").exists()
    assert state(settings) == {yesterday: "closed"}


def test_days_that_nobody_billed_are_caught_up_with_and_mailed(settings: BillingSettings) -> None:
    missed = [TODAY - timedelta(days=n) for n in (4, 2)]
    yesterday = TODAY - timedelta(days=1)
    use(settings, *missed, yesterday)
    run(settings, yesterday)
    assert state(settings) == dict.fromkeys([*missed, yesterday], "closed")
    subjects = outbox(settings)
    assert [str(day) in subject for day, subject in zip([*missed, yesterday], subjects, strict=True)] == [
        True
    ] * 3
    for day in missed:
        assert (settings.reports_dir / str(day) / "hours.png").exists()


def test_today_is_not_caught_up_with_and_tomorrow_is_refused_without_a_trace(
    settings: BillingSettings,
) -> None:
    tomorrow = TODAY + timedelta(days=1)
    use(settings, TODAY)
    for step in (daily.rate, daily.close):
        with pytest.raises(DayError) as refused:
            step(settings, tomorrow)
        assert refused.value.code == "day_in_future"
    assert state(settings) == {}


def test_a_day_that_is_refused_closes_no_other(settings: BillingSettings) -> None:
    use(settings, TODAY - timedelta(days=3), TODAY)
    with pytest.raises(DayError) as refused:
        daily.close(settings, TODAY)
    assert refused.value.code == "day_not_over"
    assert state(settings) == {}


def test_yesterday_is_complete_from_when_all_of_it_is_stored_until_it_is_closed(
    settings: BillingSettings,
) -> None:
    yesterday = TODAY - timedelta(days=1)
    noon = day_interval(yesterday, ZONE).start + timedelta(hours=12)
    write_segment(settings.journal_dir, [an_event(time=noon)])
    assert daily.complete_day(settings) is None
    daily.ingest(settings)
    assert daily.complete_day(settings) == yesterday
    daily.close(settings, yesterday)
    assert daily.complete_day(settings) is None


def test_closing_tells_of_the_days_that_it_caught_up_with(settings: BillingSettings) -> None:
    missed, yesterday = TODAY - timedelta(days=3), TODAY - timedelta(days=1)
    use(settings, missed, yesterday)
    told: list[date] = []
    daily.close(settings, yesterday, caught_up=lambda closing: told.append(closing.day))
    assert told == [missed]


def test_rating_a_closed_day_says_that_its_lines_were_left_as_they_are(settings: BillingSettings) -> None:
    yesterday = TODAY - timedelta(days=1)
    use(settings, yesterday)
    assert daily.rate(settings, yesterday) == (2, False)
    daily.close(settings, yesterday)
    assert daily.rate(settings, yesterday) == (2, True)


def test_a_day_that_is_not_closed_is_not_mailed(settings: BillingSettings) -> None:
    use(settings, TODAY)
    daily.rate(settings, TODAY)
    with pytest.raises(DayError) as refused:
        daily.mail(settings, TODAY)
    assert refused.value.code == "day_not_closed"
    assert outbox(settings) == []


def test_one_user_gets_a_report_and_a_mail_of_their_own(settings: BillingSettings) -> None:
    yesterday = TODAY - timedelta(days=1)
    use(settings, yesterday)
    daily.close(settings, yesterday)
    folder = daily.report(settings, yesterday, "user-a")
    assert folder.name == "user=user-a"
    daily.mail(settings, yesterday, "user-a")
    (subject,) = outbox(settings)
    assert "user-a" in subject
    (mail,) = settings.outbox_dir.glob("*.eml")
    assert b"Proof of closure" not in mail.read_bytes()  # it is of everybody's bill


def test_a_users_report_stays_in_its_days_folder_whatever_the_user_is_called(
    settings: BillingSettings,
) -> None:
    folder = daily.report(settings, TODAY, "../../evil")
    assert folder.resolve().parent == (settings.reports_dir / str(TODAY)).resolve()


def test_jobs_that_may_not_import_prices_go_by_what_was_imported(settings: BillingSettings) -> None:
    first, second = (TODAY - timedelta(days=n) for n in (2, 1))
    confirmed = settings.model_copy(update={"prices_import": "confirmed"})
    use(confirmed, first)
    assert daily.close(confirmed, first).proof.unrated_tokens == 120
    with writing(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
        import_tariff(connection, read_tariff(settings.prices_file), "user-a")
    proof = daily.close(confirmed, second).proof
    assert (proof.unrated_tokens, proof.amount_minor) == (-120, 13)


def test_a_rehearsal_tells_what_closing_with_the_days_that_were_missed_comes_to(
    settings: BillingSettings,
) -> None:
    *missed, yesterday = (TODAY - timedelta(days=n) for n in (3, 2, 1))
    use(settings, *missed, yesterday)
    rehearsed = daily.rehearse(settings, yesterday)
    assert state(settings) == {}
    run(settings, yesterday)
    assert [line for line in rehearsed if "would be closed first" in line] == [
        f"{day} is open, and would be closed first: 2 lines." for day in missed
    ]
    assert f"Subject: {outbox(settings)[-1]}" in rehearsed


def test_subscribers_are_mailed_days_that_were_caught_up_with_too(
    settings: BillingSettings, tmp_path: Path
) -> None:
    missed, yesterday = TODAY - timedelta(days=3), TODAY - timedelta(days=1)
    (tmp_path / "subscriptions.toml").write_text(
        '[[subscriptions]]\nuser = "user-a"\nto = ["a@example.com"]\n'
    )
    subscribed = settings.model_copy(update={"subscriptions_file": tmp_path / "subscriptions.toml"})
    use(subscribed, missed, yesterday)
    daily.close(subscribed, yesterday)
    assert [daily.personal(subscribed, yesterday) for _ in range(2)] == [(2, 0), (0, 0)]
