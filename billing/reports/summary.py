"""A day's report in sentences: the subject of the mail, what happened and why, and what to beware of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

from billing.money import format_amount
from billing.reports.day import DayReport
from billing.reports.driver import Change, Driver
from billing.reports.words import Words, average, number, percent, shown, signed_amount

_NAMED = 5  # models and days that a notice names; of the others it gives the number


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the reader must know to trust the numbers: a `warning`, or a plain `note`."""

    kind: Literal["warning", "note"]
    text: str


def subject(report: DayReport, told: Words) -> str:
    """'Tallybook 2026-11-22: ¥24.31 (+12.3%), 30,412 tokens (+8.0% on the day before)'."""
    total = report.total
    tokens = told.count(told.tokens, total.total_tokens)
    figures = []
    if total.amount_minor is not None and total.currency:
        amount = format_amount(total.amount_minor, total.currency)
        figures.append(amount + _changed(report.cost_change, told.subject_change))
    if total.requests:
        figures.append(tokens + _changed(report.token_change, told.subject_base))
    else:
        figures.append(told.subject_empty)
    if total.unrated_tokens:
        unrated = told.count(told.tokens, total.unrated_tokens)
        figures.append(told.subject_unrated.format(tokens=unrated))
    said = told.between_figures.join(figures)
    template = _whose(report, told.subject, told.subject_user, told.subject_project)
    marks = [told.simulated] if report.simulated else []
    if report.state != "closed" or report.early:
        marks.append(state(report, told))
    mark = "".join(told.mark.format(state=each) for each in marks)
    return mark + template.format(day=report.day, user=shown(report.owner or ""), figures=said)


def title(report: DayReport, told: Words) -> str:
    """'Bill of Sunday, 22 November 2026', with the user or project whose it is."""
    template = _whose(report, told.title, told.title_user, told.title_project)
    return template.format(day=told.date(report.day), user=shown(report.owner or ""))


def _whose(report: DayReport, everybody: str, user: str, project: str) -> str:
    if report.owner is None:
        return everybody
    return project if report.user is None else user


def state(report: DayReport, told: Words) -> str:
    """Closed, closed early, draft or not rated."""
    if report.state == "closed":
        return told.state_early if report.early else told.state_closed
    return told.state_draft if report.state == "draft" else told.state_unbilled


def paragraphs(report: DayReport, told: Words) -> list[str]:
    """What was used and what it costs, against the day before; then what drove the change."""
    said = [told.sentence_gap.join([_used(report, told), _compared(report, told)])]
    if report.driver and report.total.requests:
        said.append(_driven(report.driver, report.total.currency, told))
    return said


def notices(report: DayReport, told: Words) -> list[Notice]:
    """Draft or closed early, unrated tokens, events set aside, days left open, corrections."""
    found = [Notice("warning", told.notice_simulated)] if report.simulated else []
    if report.state == "draft":
        found.append(Notice("warning", told.notice_draft))
    if report.state == "unbilled" and not report.is_empty:
        found.append(Notice("warning", told.notice_unbilled))
    if report.early and report.closed_at:
        closed = local(report.closed_at, report)
        found.append(Notice("warning", told.notice_early.format(time=closed, zone=report.time_zone)))
    if report.unrated_models:
        models = [f"{shown(m.name)} ({number(m.totals.unrated_tokens)})" for m in report.unrated_models]
        tokens = told.count(told.tokens, report.total.unrated_tokens)
        found.append(
            Notice("warning", told.notice_unrated.format(tokens=tokens, models=_listed(models, told)))
        )
    if report.set_aside_events:
        count = number(report.set_aside_events)
        found.append(Notice("warning", told.notice_set_aside.format(count=count)))
    if report.open_days:
        days = [f"{d.day} ({told.count(told.tokens, d.total_tokens)})" for d in report.open_days]
        found.append(Notice("warning", told.notice_open_days.format(days=_listed(days, told))))
    if report.corrections and all(each.amount_minor is None for each in report.corrections):
        found.append(Notice("note", told.notice_corrections_unrated))
    elif report.corrections and report.total.currency:
        amount = signed_amount(report.total.corrections_minor, report.total.currency)
        found.append(Notice("note", told.notice_corrections.format(amount=amount)))
    return found


def local(moment: datetime, report: DayReport) -> str:
    """A moment by the clock of the billing time zone."""
    return f"{moment.astimezone(ZoneInfo(report.time_zone)):%Y-%m-%d %H:%M}"


def _used(report: DayReport, told: Words) -> str:
    day, total = told.date(report.day), report.total
    if not total.requests:
        said = told.empty.format(day=day)
        if report.corrections:
            bill = told.empty_unrated if total.amount_minor is None else told.empty_bill
            said += told.sentence_gap + bill.format(amount=told.money(total))
        return said
    users = sum(part.totals.requests > 0 for part in report.users)
    projects = told.count(told.projects, sum(part.totals.requests > 0 for part in report.projects))
    who = _whose(report, told.who_all, told.who_user, told.who_project)
    used = (told.used_cached if total.cached_tokens else told.used).format(
        day=day,
        who=who.format(
            user=shown(report.owner or ""), users=told.count(told.users, users), projects=projects
        ),
        requests=told.count(told.requests, total.requests),
        tokens=told.count(told.tokens, total.total_tokens),
        prompt=number(total.prompt_tokens),
        cached=number(total.cached_tokens),
        completion=number(total.completion_tokens),
    )
    if total.amount_minor is None:
        return told.no_amount.format(used=used)
    return told.costs.format(used=used, amount=told.money(total))


def _compared(report: DayReport, told: Words) -> str:
    tokens, cost, currency = report.token_change, report.cost_change, report.total.currency
    if tokens is None:
        return told.nothing_before
    more_tokens = _moved(tokens, number(abs(tokens.absolute)), told)
    if cost is None or currency is None:
        return told.compared_tokens.format(tokens=more_tokens)
    more_cost = _moved(cost, format_amount(abs(cost.absolute), currency), told)
    return told.compared.format(cost=more_cost, tokens=more_tokens)


def _moved(change: Change, by: str, told: Words) -> str:
    if not change.absolute:
        return told.same
    template = told.rose if change.absolute > 0 else told.fell
    return template.format(by=by) + _changed(change, told.subject_change)


def _changed(change: Change | None, template: str) -> str:
    """The change in percent, where there is one."""
    if change is None or change.percent is None:
        return ""
    return template.format(percent=percent(change.percent, sign=True))


def _driven(driver: Driver, currency: str | None, told: Words) -> str:
    def measured(value: int) -> str:
        if driver.measure == "amount" and currency:
            return signed_amount(value, currency)
        return told.count(told.tokens, value, sign=True)

    change = measured(driver.change.absolute)
    if driver.dimension is None:
        return told.driver_corrections.format(change=change)
    template = told.driver if driver.percent_of_whole <= 100 else told.driver_beyond
    return template.format(
        what=told.dimensions[driver.dimension],
        name=shown(driver.name),
        change=change,
        percent=percent(driver.percent_of_whole),
        rest=measured(driver.whole.absolute - driver.change.absolute),
        because=told.because[driver.cause + ("+" if driver.change.absolute > 0 else "-")],
        detail=_detail(driver, told),
    )


def _detail(driver: Driver, told: Words) -> str:
    """The requests and their average length, before and now, when both days have some."""
    if driver.cause in ("new", "gone"):
        return ""
    return told.detail.format(
        requests_before=number(driver.before.requests),
        requests_now=number(driver.now.requests),
        length_before=average(driver.before.tokens_per_request),
        length_now=average(driver.now.tokens_per_request),
    )


def _listed(items: list[str], told: Words) -> str:
    if len(items) > _NAMED:
        items = [*items[:_NAMED], told.count(told.more, len(items) - _NAMED)]
    return told.between.join(items)
