"""The model servers' own counters: read where they tell them, and kept in the ledger as they were then."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import Connection, Engine

from billing.errors import CountersError
from billing.ledger import lock_ledger, writing
from billing.tables import counter_samples

UP = "up"  # 1: the server answered, and counted nothing of what there is no sample of; 0: it did not answer
REQUESTS, PROMPT_TOKENS, COMPLETION_TOKENS = "requests", "prompt_tokens", "completion_tokens"

# By the names that the parser gives them: it ends every counter's name in `_total`.
_COUNTERS = {
    ":tensorflow:serving:request_count_total": REQUESTS,
    "vllm:request_success_total": REQUESTS,
    "vllm:prompt_tokens_total": PROMPT_TOKENS,
    "vllm:generation_tokens_total": COMPLETION_TOKENS,
    "sglang:num_requests_total": REQUESTS,
    "sglang:prompt_tokens_total": PROMPT_TOKENS,
    "sglang:generation_tokens_total": COMPLETION_TOKENS,
}
_TIMEOUT_SECONDS = 5.0
_LONGEST_PAGE_BYTES = 16 << 20
_LONGEST_NAME = 256
_GREATEST = 2**63 - 1

Values = dict[tuple[str, str], int]  # by model and counter


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look at a server: what it had counted at some moment between `asked_at` and `answered_at`."""

    server: str
    asked_at: datetime
    answered_at: datetime
    values: Values = field(default_factory=dict)
    error: str | None = None


def sample(ledger: Engine, servers: Iterable[str]) -> list[Scrape]:
    """Look at every server once, and store what was seen; a server that fails is stored as not up.

    Raises: CountersError: a server failed (code counters_unavailable), after the others were stored; or
        there are none to look at (code no_counters).
    """
    scrapes: list[Scrape] = []
    for server in servers:
        seen = scrape(server)
        with writing(ledger) as connection:
            store(connection, seen)
        scrapes.append(seen)
    if not scrapes:
        raise CountersError("no_counters", "the setting model_counters names no server")
    if failed := [f"{seen.server}: {seen.error}" for seen in scrapes if seen.error is not None]:
        raise CountersError("counters_unavailable", "; ".join(failed))
    return scrapes


def scrape(server: str) -> Scrape:
    """What the counters of the page at this address, http:// or https://, say now."""
    asked_at = datetime.now(timezone.utc)
    values: Values = {}
    error = None
    try:
        with urllib.request.urlopen(server, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310  settings check it
            page = answer.read(_LONGEST_PAGE_BYTES + 1)
        if len(page) > _LONGEST_PAGE_BYTES:
            raise ValueError(f"more than {_LONGEST_PAGE_BYTES} bytes")  # noqa: TRY301
        values = read_counters(page.decode())
    except (OSError, http.client.HTTPException, ValueError, LookupError) as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return Scrape(server, asked_at, datetime.now(timezone.utc), values, error)


def read_counters(page: str) -> Values:
    """The counters that can be reconciled, out of a page in Prometheus's text format.

    Requests are those that succeeded, summed over whatever else the server tells apart; SGLang does not tell
    failed ones apart.
    Raises: ValueError, LookupError: not such a page, or a counter that is no count.
    """
    values: Values = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            counter = _COUNTERS.get(one.name)
            if counter is None or not _succeeded(one.labels):
                continue
            if not 0 <= one.value <= _GREATEST:
                raise ValueError(f"{one.name} is {one.value}")
            key = (_printable(one.labels.get("model_name", "")), counter)
            values[key] = values.get(key, 0) + int(one.value)
    return values


def store(connection: Connection, seen: Scrape) -> bool:
    """Store a scrape; false if another one of this server ended after this one began.

    Their order would not be known, and a lower value after a higher one looks like a restart.
    """
    lock_ledger(connection)
    latest = sa.select(sa.func.max(counter_samples.c.sampled_at)).where(
        counter_samples.c.server == seen.server, counter_samples.c.sampled_at >= seen.asked_at
    )
    if connection.scalar(latest) is not None:
        return False
    told = {("", UP): int(seen.error is None), **seen.values}
    rows = [
        {"server": seen.server, "sampled_at": seen.answered_at, "model": m, "counter": c, "value": value}
        for (m, c), value in told.items()
    ]
    connection.execute(counter_samples.insert(), rows)
    return True


def _succeeded(labels: dict[str, str]) -> bool:
    # TensorFlow Serving's label, and vLLM's.
    return labels.get("status", "OK") == "OK" and labels.get("finished_reason") not in ("abort", "error")


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)[:_LONGEST_NAME]
