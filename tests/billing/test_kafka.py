"""Events from a Kafka cluster of librdkafka's own: each once, through duplicates, rebalances and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import sqlalchemy as sa
from confluent_kafka import Consumer, Message, Producer
from sqlalchemy.engine import Engine

import billing.kafka
from billing import daily
from billing.errors import SourceError
from billing.kafka import Topic, drain, follow
from billing.ledger import open_ledger, reading, writing
from billing.parsing import parse
from billing.settings import BillingSettings
from billing.store import IngestResult
from billing.tables import event_batches, journal_offsets, set_aside, usage_events, usage_hours
from tallybook.usage import UsageEvent
from tests.billing.conftest import TIME_ZONE
from tests.billing.factories import ZONE, an_event, write_segment

PARTITIONS = 4  # what the mock cluster gives a topic
QUICK = {"session.timeout.ms": "3500", "heartbeat.interval.ms": "200"}  # above the mock's delay of 3 s


class Cluster:
    """A mock cluster, which lives as long as its producer."""

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 2})
        brokers = self._producer.list_topics(timeout=10).brokers.values()
        self.brokers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def topic(self) -> Topic:
        """A topic of its own."""
        return Topic(self.brokers, f"usage-{uuid4().hex[:8]}", f"group-{uuid4().hex[:8]}", QUICK)

    def send(self, topic: Topic, values: Sequence[UsageEvent | bytes], partition: int | None = None) -> None:
        """Produce in this order: into one partition, or into all in turn."""
        for n, value in enumerate(values):
            raw = value if isinstance(value, bytes) else orjson.dumps(value.to_record())
            to = n % PARTITIONS if partition is None else partition
            self._producer.produce(topic.name, raw, partition=to)
        assert self._producer.flush(30) == 0


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


def stored_ids(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return sorted(connection.scalars(sa.select(usage_events.c.id)))


def offsets(ledger: Engine) -> dict[str, int]:
    with reading(ledger) as connection:
        return {row.segment: row.offset_bytes for row in connection.execute(sa.select(journal_offsets))}


def hourly_requests(ledger: Engine) -> int:
    with reading(ledger) as connection:
        return connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests))) or 0


def test_what_all_partitions_hold_is_stored_once(ledger: Engine, cluster: Cluster) -> None:
    topic = cluster.topic()
    events = [an_event(user=f"user-{n}") for n in range(40)]
    cluster.send(topic, events)
    assert drain(ledger, topic, ZONE).stored == 40
    assert drain(ledger, topic, ZONE).read == 0
    cluster.send(topic, [events[0], late := an_event()], partition=2)
    result = drain(ledger, topic, ZONE)
    assert (result.stored, result.duplicates) == (1, 1)
    assert stored_ids(ledger) == sorted(e.id for e in [*events, late])
    assert hourly_requests(ledger) == 41
    assert offsets(ledger) == {topic.segment(n): 12 if n == 2 else 10 for n in range(PARTITIONS)}


def test_a_message_that_is_no_event_is_set_aside_with_its_bytes(ledger: Engine, cluster: Cluster) -> None:
    topic = cluster.topic()
    event = an_event()
    cluster.send(topic, [event, b"\xff{", b"", an_event(id=event.id)], partition=1)
    result = drain(ledger, topic, ZONE)
    assert (result.stored, result.duplicates, result.set_aside) == (1, 1, {"not_json": 2})
    with reading(ledger) as connection:
        kept = [set_aside.c.segment, set_aside.c.offset_bytes, set_aside.c.raw]
        rows = list(connection.execute(sa.select(*kept).order_by(set_aside.c.offset_bytes)))
    assert rows == [(topic.segment(1), 1, b"\xff{"), (topic.segment(1), 2, b"")]


def test_readers_side_by_side_store_each_event_once(
    ledger: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.kafka, "BATCH_MESSAGES", 20)
    topic = cluster.topic()
    events = [an_event() for _ in range(400)]
    cluster.send(topic, events)
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda _: drain(ledger, topic, ZONE), range(3)))
    assert sum(r.read for r in results) == 400
    assert stored_ids(ledger) == sorted(e.id for e in events)
    assert hourly_requests(ledger) == 400


@pytest.mark.parametrize("meanwhile", [8, 20])
def test_a_reader_that_was_overtaken_stores_the_rest_and_moves_no_offset_back(
    ledger: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, meanwhile: int
) -> None:
    """It holds twenty messages that it has read; meanwhile another one stores some of them, or all."""

    class Faster(Consumer):
        def get_watermark_offsets(self, *arguments: Any, **more: Any) -> tuple[int, int]:
            first, end = super().get_watermark_offsets(*arguments, **more)
            return first, min(meanwhile, end)

        def consume(self, *arguments: Any, **more: Any) -> list[Message]:
            return [m for m in super().consume(*arguments, **more) if (m.offset() or 0) < meanwhile]

    topic = cluster.topic()
    events = [an_event() for _ in range(20)]
    cluster.send(topic, [*events, b"poison"], partition=0)
    others: list[IngestResult] = []

    def overtaken(lines: Any, reader: Any) -> Any:
        if not others:
            others.append(IngestResult())
            with monkeypatch.context() as faster:
                faster.setattr(billing.kafka, "Consumer", Faster)
                others[0] = drain(ledger, topic, ZONE)
        return parse(lines, reader)

    monkeypatch.setattr(billing.kafka, "parse", overtaken)
    result = drain(ledger, topic, ZONE)
    assert (others[0].read, result.read) == (meanwhile, 21 - meanwhile)
    assert (result.duplicates, result.set_aside) == (0, {"not_json": 1})
    assert offsets(ledger) == {topic.segment(0): 21}
    assert stored_ids(ledger) == sorted(e.id for e in events)


def test_a_ledger_that_went_back_stops_its_reader(
    sqlite_ledger: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = cluster.topic()
    events = [an_event() for _ in range(10)]
    cluster.send(topic, events, partition=0)
    monkeypatch.setattr(billing.kafka, "BATCH_MESSAGES", 4)

    def restored(*arguments: Any) -> Any:
        with writing(sqlite_ledger) as connection:
            connection.execute(journal_offsets.update().values(offset_bytes=1))
        return parse(*arguments)

    monkeypatch.setattr(billing.kafka, "parse", restored)
    with pytest.raises(SourceError) as stopped:
        drain(sqlite_ledger, topic, ZONE)
    assert stopped.value.code == "ledger_went_back"
    before = stored_ids(sqlite_ledger)  # a batch may hold fewer messages than it could
    assert 1 < len(before) < 10
    monkeypatch.setattr(billing.kafka, "parse", parse)
    result = drain(sqlite_ledger, topic, ZONE)
    assert (result.stored, result.duplicates) == (10 - len(before), len(before) - 1)
    assert stored_ids(sqlite_ledger) == sorted(e.id for e in events)


def test_messages_that_kafka_deleted_unread_are_told_of(
    sqlite_ledger: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Consumer):
        def get_watermark_offsets(self, *arguments: Any, **more: Any) -> tuple[int, int]:
            _, end = super().get_watermark_offsets(*arguments, **more)
            return min(3, end), end

    topic = cluster.topic()
    cluster.send(topic, [an_event() for _ in range(5)], partition=0)
    monkeypatch.setattr(billing.kafka, "Consumer", Forgetful)
    result = drain(sqlite_ledger, topic, ZONE)
    assert (result.stored, result.set_aside) == (2, {"lost_in_kafka": 1})
    with reading(sqlite_ledger) as connection:
        assert "messages 0 to 2" in (connection.scalar(sa.select(set_aside.c.message)) or "")
    assert drain(sqlite_ledger, topic, ZONE).read == 0


def test_a_topic_that_ends_before_what_was_read_is_another_topic(
    sqlite_ledger: Engine, cluster: Cluster
) -> None:
    topic = cluster.topic()
    cluster.send(topic, [an_event()], partition=0)
    with writing(sqlite_ledger) as connection:
        connection.execute(journal_offsets.insert().values(segment=topic.segment(0), offset_bytes=7))
    with pytest.raises(SourceError) as refused:
        drain(sqlite_ledger, topic, ZONE)
    assert refused.value.code == "kafka_topic_changed"


def test_a_cluster_or_a_topic_that_is_not_there_is_told(
    sqlite_ledger: Engine, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError) as unknown:
        drain(sqlite_ledger, cluster.topic(), ZONE)
    assert unknown.value.code == "kafka_topic_unknown"
    monkeypatch.setattr(billing.kafka, "_ANSWER_SECONDS", 0.3)
    nowhere = Topic("127.0.0.1:1", "usage", "group", {"log_level": "2"})
    with pytest.raises(SourceError) as unreachable:
        follow(sqlite_ledger, nowhere, ZONE, threading.Event())
    assert unreachable.value.code == "kafka_unavailable"


WORK = """
import json, signal, sys, threading
import billing.kafka
from billing.ledger import open_ledger
from zoneinfo import ZoneInfo
billing.kafka.BATCH_MESSAGES = 25
url, zone, topic = sys.argv[1], sys.argv[2], billing.kafka.Topic(**json.loads(sys.argv[3]))
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
billing.kafka.follow(open_ledger(url, zone), topic, ZoneInfo(zone), stop)
"""


def test_ingest_reads_the_journal_and_kafka(tmp_path: Path, cluster: Cluster) -> None:
    topic = cluster.topic()
    cluster.send(topic, [an_event()])
    write_segment(tmp_path / "journal", [an_event()])
    places: dict[str, Any] = {
        "ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}",
        "journal_dir": tmp_path / "journal",
    }
    kafka: dict[str, Any] = {
        "kafka_brokers": topic.brokers,
        "kafka_topic": topic.name,
        "kafka_options": QUICK,
    }
    assert daily.ingest(BillingSettings(**places, **kafka)).stored == 2
    with pytest.raises(SourceError) as refused:
        daily.follow_kafka(BillingSettings(**places), threading.Event())
    assert refused.value.code == "no_kafka"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


class Ingesters:
    """Consumers of one group, each a process."""

    def __init__(self, url: str, topic: Topic) -> None:
        told = orjson.dumps({**vars(topic), "options": dict(topic.options)}).decode()
        self._command = [sys.executable, "-c", WORK, url, TIME_ZONE, told]
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.running.append(subprocess.Popen(self._command, env={**os.environ}))

    def __enter__(self) -> Ingesters:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()


@pytest.fixture
def many(cluster: Cluster) -> tuple[Topic, list[UsageEvent]]:
    """Thousands of events over four partitions, some delivered twice, and some lines that are none."""
    topic = cluster.topic()
    events = [an_event(user=f"user-{n % 50}") for n in range(6000)]
    cluster.send(topic, [*events, b"poison", *events[:300], b"{}"])
    return topic, events


def test_a_killed_consumer_loses_and_doubles_nothing(
    postgres_url: str, many: tuple[Topic, list[UsageEvent]]
) -> None:
    topic, events = many
    ledger = open_ledger(postgres_url, TIME_ZONE)

    def read() -> int:
        return sum(offsets(ledger).values())

    with Ingesters(postgres_url, topic) as group:
        group.start()
        group.start()
        wait_until(lambda: read() > 1000)
        group.running[0].send_signal(signal.SIGKILL)  # in the midst of it
        wait_until(lambda: read() == 6302)
        group.running[1].send_signal(signal.SIGTERM)
        assert group.running[1].wait(30) == 0
    assert stored_ids(ledger) == sorted(e.id for e in events)
    assert hourly_requests(ledger) == 6000
    with reading(ledger) as connection:
        assert connection.scalar(sa.select(sa.func.sum(event_batches.c.requests))) == 6000
        assert sorted(connection.scalars(sa.select(set_aside.c.code))) == ["not_json", "unknown_type"]
    ledger.dispose()
