"""`tallybook demo`: the whole path once, on this machine, as its users would go it.

Trains a model, serves it, sends reviews over HTTP as a dozen users, lets Airflow bill the day, and compares
what the clients saw with what is on the bill.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import audit
from billing.closure import prove
from billing.ledger import open_ledger, reading
from billing.money import format_amount, to_decimal
from billing.owing import CLOSED
from billing.settings import BillingSettings
from billing.tables import bill_lines, event_batches, usage_events
from tallybook.airflow import AirflowError, EmbeddedAirflow
from tallybook.calendar import billing_day
from tallybook.processes import Processes, ProcessFailedError, answers, free_port
from tallybook.settings import CommonSettings
from training.dataset import held_out_texts

# A made-up company: three users in each project, each project in a department.
DEPARTMENTS = {
    "customer-service": "operations",
    "content-review": "operations",
    "search-ranking": "product",
    "market-research": "marketing",
}
USERS = [(f"{project}-{n}", project) for project in DEPARTMENTS for n in (1, 2, 3)]
DAG = "daily_billing"
CLIENTS = 16  # requests under way at once


@dataclass(frozen=True)
class Seen:
    """What a client saw of one answered request."""

    request_id: str
    project: str
    time: datetime
    prompt_tokens: int
    completion_tokens: int


@click.command()
@click.option("--requests", "count", default=600, show_default=True, help="How many reviews to send.")
@click.option("--language", type=click.Choice(["en", "zh"]), default="en", help="Language of the mail.")
@click.option("--epochs", type=int, help="Train for so many epochs only.")
@click.option("--limit", type=int, help="Train on so many reviews only.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Made anew on each run.",
)
def demo(count: int, language: str, epochs: int | None, limit: int | None, folder: Path) -> None:
    """Run everything once, from training to the emailed bill, in a folder of its own."""
    folder = folder.absolute()
    _make_anew(folder)
    environment = _environment(folder, language)
    os.environ |= environment
    try:
        with _station(1, "Train a review classifier and export it"):
            # With few texts the model may not beat the baseline; the demo goes on all the same, and says so.
            options = {"--epochs": epochs, "--limit": limit, "--publish-anyway": "to show the other stations"}
            _run(["train", *(str(w) for o, v in options.items() if v is not None for w in (o, v))])
        with _station(2, f"Serve it, and send {count} held-out reviews as {len(USERS)} users"):
            seen = _serve_and_send(folder, count)
        with _station(3, "Bill the day under Airflow: ingest, rate, close, report, mail"):
            for day in sorted({billing_day(s.time, CommonSettings().zone) for s in seen}):
                _bill(folder, day)
        with _station(4, "Compare what the clients saw with the bill"):
            agree = _compare(folder, seen)
    except (AirflowError, ProcessFailedError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from error
    if not agree:
        raise click.ClickException("demo_mismatch: the bill differs from what the clients saw; see above")


def _make_anew(folder: Path) -> None:
    """Empty the demo's own folder; anything else is left alone."""
    mark = folder / ".tallybook-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise click.ClickException(f"folder_not_ours: {folder} is not empty and not a demo's")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def _environment(folder: Path, language: str) -> dict[str, str]:
    """Every setting that names a place points into the folder."""
    return {
        "TALLYBOOK_MODELS_DIR": str(folder / "models"),
        "TALLYBOOK_TRAINING_DIR": str(folder / "training"),
        "TALLYBOOK_JOURNAL_DIR": str(folder / "journal"),
        "TALLYBOOK_ACCESS_URL": f"sqlite:///{folder / 'access.db'}",
        "TALLYBOOK_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
        "TALLYBOOK_PRICES_FILE": str(Path("prices.toml").absolute()),
        "TALLYBOOK_REPORTS_DIR": str(folder / "reports"),
        "TALLYBOOK_OUTBOX_DIR": str(folder / "outbox"),
        "TALLYBOOK_MAIL_LANGUAGE": language,
        "TALLYBOOK_PROJECT_DEPARTMENTS": json.dumps(DEPARTMENTS),
    }


@contextmanager
def _station(number: int, title: str) -> Iterator[None]:
    started = time.monotonic()
    click.secho(f"\n{number}/4  {title}", bold=True)
    yield
    click.echo(f"     {time.monotonic() - started:.0f} s")


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "tallybook.cli", *arguments], check=True)


def _serve_and_send(folder: Path, count: int) -> list[Seen]:
    port, model_port, rest_port = free_port(), free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    with Processes() as processes:
        log = folder / "servers.log"
        ports = {"--port": port, "--model-port": model_port, "--model-rest-port": rest_port}
        options = [word for option, number in ports.items() for word in (option, str(number))]
        processes.start("tallybook up", ["up", *options], log=log)
        processes.wait_until(lambda: answers(f"{address}/readyz"), timeout_seconds=90)
        return _send(address, held_out_texts(), count)


def _send(address: str, texts: list[str], count: int) -> list[Seen]:
    """Send reviews from all users at once; how it goes is shown."""

    def ask(number: int) -> Seen:
        # Users are not alike: the first of the list ask more than the last.
        user, project = USERS[min(number % 17, number % 5 + number % 9, len(USERS) - 1)]
        body = json.dumps({"text": texts[number % len(texts)]}).encode()
        headers = {"Content-Type": "application/json", "X-User-ID": user, "X-Project-ID": project}
        request = urllib.request.Request(f"{address}/analyze", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        usage = answer["usage"]
        now = datetime.now(timezone.utc)
        return Seen(answer["request_id"], project, now, usage["prompt_tokens"], usage["completion_tokens"])

    with ThreadPoolExecutor(CLIENTS) as clients:
        answered = clients.map(ask, range(count))
        with click.progressbar(answered, length=count, label="     requests") as bar:
            return list(bar)


def _bill(folder: Path, day: date) -> None:
    """Run `daily_billing` for a day that is not over yet, and show its tasks."""
    click.echo("     starting Airflow: half a minute")
    with EmbeddedAirflow(folder / "airflow") as airflow:
        airflow.wait_until_ready(DAG)
        run = airflow.trigger(DAG, {"day": day.isoformat(), "early": True})
        click.echo(f"     {DAG} for {day}, triggered by REST")

        def show(task: str, state: str) -> None:
            if state in {"running", "success", "failed", "up_for_retry"}:
                click.echo(f"     {task:<8} {state}")
            if state == "up_for_retry":
                click.echo("\n".join(f"       {line}" for line in airflow.errors(DAG, run)))

        if airflow.wait(DAG, run, show) != "success":
            raise AirflowError("\n".join([f"{DAG} failed:", *airflow.errors(DAG, run)]))


def _compare(folder: Path, seen: list[Seen]) -> bool:
    """Print and write down the sums on both sides; whether they agree, to the token and to the request."""
    settings = BillingSettings()
    with reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
        billed, currency = _billed(connection)
        answered = {s.request_id: (s.prompt_tokens, s.completion_tokens) for s in seen}
        columns = (usage_events.c.id, usage_events.c.prompt_tokens, usage_events.c.completion_tokens)
        recorded = {row[0]: (row[1], row[2]) for row in connection.execute(sa.select(*columns))}
        verified = audit.verify(connection)
        proofs = [prove(connection, day) for day in sorted(connection.scalars(CLOSED))]
    clients = {project: _totals(s for s in seen if s.project == project) for project in DEPARTMENTS}
    click.echo(f"     {'project':<18}{'requests':>9}{'prompt':>10}{'completion':>12}{'amount':>12}")
    for project, row in billed.items():
        sums = "".join(f"{row[name]:>{width},}" for name, width in _COLUMNS.items())
        same = "as the clients saw" if _tokens(row) == clients[project] else f"clients saw {clients[project]}"
        click.echo(f"     {project:<18}{sums}{format_amount(row['amount_minor'], currency):>12}  {same}")
    total = {name: sum(row[name] for row in billed.values()) for name in (*_COLUMNS, "amount_minor")}
    amount = format_amount(total["amount_minor"], currency)
    click.echo(f"     {'in all':<18}{''.join(f'{total[n]:>{w},}' for n, w in _COLUMNS.items())}{amount:>12}")
    agree = {p: _tokens(row) for p, row in billed.items()} == clients and recorded == answered
    summary: dict[str, Any] = {
        "requests": len(seen),
        "clients": _totals(seen),
        "billed": _tokens(total),
        "amount": str(to_decimal(total["amount_minor"], currency)),
        "currency": currency,
        "projects": billed,
        "audit_head": verified.head,
        "mails": [str(f) for f in sorted(settings.outbox_dir.glob("*.eml"))],
        "charts": [str(f) for f in sorted(settings.reports_dir.glob("*/*.png"))],
        "bills": [str(f) for f in sorted(settings.reports_dir.glob("*/bill.csv"))],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    if agree:
        click.echo(f"     Each of the {len(seen):,} answered requests is on the bill once, with its tokens.")
    for proof in proofs:
        click.echo(
            f"     Proof of closure, {proof.day}: {proof.requests:,} events; "
            f"{proof.event_tokens:,} tokens in events = {proof.aggregate_tokens:,} in aggregates "
            f"= {proof.line_tokens:,} on lines."
        )
    click.echo(f"     Sealed and verified: {verified.events:,} events, chain head {verified.head[:16]}…")
    for what in ("mails", "charts", "bills"):
        for place in summary[what]:
            click.echo(f"     {os.path.relpath(place)}")
    return agree


_COLUMNS = {"requests": 9, "prompt_tokens": 10, "completion_tokens": 12}


def _billed(connection: Connection) -> tuple[dict[str, dict[str, int]], str]:
    """What is on the closed bills: requests, tokens and minor units of each project, and the currency."""
    found = {project: dict.fromkeys([*_COLUMNS, "amount_minor"], 0) for project in DEPARTMENTS}
    currency = ""
    for line in connection.execute(sa.select(bill_lines)):
        row = found[line.project]
        row["completion_tokens" if line.direction == "output" else "prompt_tokens"] += line.quantity_tokens
        row["amount_minor"] += line.amount_minor
        currency = line.currency
    billed = sa.select(event_batches.c.id).where(event_batches.c.bill_day.in_(CLOSED))
    counted = sa.select(usage_events.c.project, sa.func.count()).where(usage_events.c.batch_id.in_(billed))
    for project, requests in connection.execute(counted.group_by(usage_events.c.project)):
        found[project]["requests"] = requests
    return found, currency


def _tokens(row: Mapping[str, int]) -> dict[str, int]:
    return {name: row[name] for name in _COLUMNS}


def _totals(seen: Iterable[Seen]) -> dict[str, int]:
    each = list(seen)
    return {
        "requests": len(each),
        "prompt_tokens": sum(s.prompt_tokens for s in each),
        "completion_tokens": sum(s.completion_tokens for s in each),
    }
