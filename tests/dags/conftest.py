"""Journals with real events, settings that point into a folder, and Airflow in processes of its own."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from tallybook.airflow import environment
from tallybook.usage import UsageEvent, new_event_id
from tests.dags import dag_runs

ZONE = ZoneInfo("Asia/Shanghai")
PRICES = Path(__file__).parents[2] / "prices.toml"


class AirflowProcess(NamedTuple):
    """A process with an Airflow of its own: what it read in the DAG file, and what it is asked to do."""

    parsed: dag_runs.Parsed
    call: Callable[..., Any]

    def run(self, *args: Any, **kwargs: Any) -> dag_runs.Outcome:
        """`dag_runs.run` in that process."""
        outcome: dag_runs.Outcome = self.call(dag_runs.run, *args, **kwargs)
        return outcome


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowProcess]:
    home = tmp_path_factory.mktemp("airflow")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return pool.submit(function, *args, **kwargs).result()

        variables = environment(home, port=1) | {"TALLYBOOK_TIME_ZONE": ZONE.key}
        yield AirflowProcess(call(dag_runs.prepare, variables), call)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Variables of a ledger, a journal and an outbox in this test's folder."""
    return {
        "TALLYBOOK_TIME_ZONE": ZONE.key,
        "TALLYBOOK_JOURNAL_DIR": str(tmp_path / "journal"),
        "TALLYBOOK_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
        "TALLYBOOK_PRICES_FILE": str(PRICES),
        "TALLYBOOK_REPORTS_DIR": str(tmp_path / "reports"),
        "TALLYBOOK_OUTBOX_DIR": str(tmp_path / "outbox"),
        "TALLYBOOK_SMTP_URL": "",
        "TALLYBOOK_SUBSCRIPTIONS_FILE": str(tmp_path / "nobody.toml"),
    }


@pytest.fixture
def use(tmp_path: Path) -> Callable[..., None]:
    """Write the events of a user's requests at noon of a billing day to the journal."""

    def write(day: date, user: str, requests: int = 1, prompt_tokens: int = 100) -> None:
        journal = tmp_path / "journal"
        journal.mkdir(exist_ok=True)
        noon = datetime.combine(day, time(12), tzinfo=ZONE)
        with (journal / f"{day}-{user}.jsonl").open("a") as segment:
            for _ in range(requests):
                event = an_event(noon, user, prompt_tokens)
                segment.write(json.dumps(event.to_record()) + "\n")

    return write


def an_event(moment: datetime, user: str, prompt_tokens: int) -> UsageEvent:
    """One answered request."""
    return UsageEvent(
        id=new_event_id(),
        source="tests",
        time=moment,
        user=user,
        project="search",
        department="retail",
        operation="analyze",
        model="review-sentiment",
        model_version="1",
        tokenizer_fingerprint="f" * 64,
        prompt_tokens=prompt_tokens,
        completion_tokens=20,
        duration_seconds=0.01,
        client_ip="127.0.0.1",
        status=200,
    )
