"""Usage events to a Kafka cluster of librdkafka's own, which no real Kafka replaces here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from serving import kafka
from serving.errors import JournalError
from serving.journal import Journal
from serving.kafka import KafkaSink
from serving.settings import ServingSettings
from tallybook.segments import read_segment
from tests.apis import running_app
from tests.modelservers import wait_until

PARTITIONS = 4  # what the mock cluster gives a topic
WAIT_SECONDS = 20.0


class Cluster:
    """A mock cluster, which lives as long as its producer."""

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 2})
        [broker] = self._producer.list_topics(timeout=10).brokers.values()
        self.address = (broker.host, broker.port)

    def ids(self, topic: str) -> list[str]:
        """Of all events in a topic."""
        options = {
            "bootstrap.servers": "{}:{}".format(*self.address),
            "group.id": uuid4().hex,
            "log_level": 2,
        }
        found: list[str] = []
        with closing(Consumer({**options, "enable.partition.eof": True})) as consumer:
            places = [TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)]
            ends = {p.partition: consumer.get_watermark_offsets(p, timeout=10)[1] for p in places}
            consumer.assign(places)
            while len(found) < sum(ends.values()):
                message = consumer.poll(10)
                assert message is not None, "an event is missing"
                if message.error() is None:
                    found.append(orjson.loads(message.value() or b"")["id"])
        return found


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@contextmanager
def sink_to(folder: Path, brokers: str, **options: str) -> Iterator[KafkaSink]:
    made = ServingSettings(
        journal_dir=folder, events_to="kafka", kafka_brokers=brokers, kafka_topic=f"usage-{uuid4().hex[:8]}",
        kafka_options={"log_level": "2", **options},
    )  # fmt: skip
    sink = KafkaSink(made, Journal(folder, made.journal_segment_bytes))
    try:
        yield sink
    finally:
        sink.close()


def in_journal(folder: Path) -> list[str]:
    """Ids of the events that a reader of the journal believes."""
    lines = [line for segment in sorted(folder.glob("*.jsonl")) for line in read_segment(segment, 0).lines]
    return [orjson.loads(line.raw)["id"] for line in lines]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(kafka, "DELIVERY_SECONDS", 2.0)


def test_events_of_many_threads_are_acknowledged_and_there_once(tmp_path: Path, cluster: Cluster) -> None:
    with sink_to(tmp_path, "{}:{}".format(*cluster.address)) as sink, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: sink.append({"id": str(n)}, WAIT_SECONDS), range(200)))
        found = cluster.ids(sink._topic)
        assert sink.problem() is None
        assert sink.waiting() == 0
    assert sorted(found) == sorted(map(str, range(200)))
    assert in_journal(tmp_path) == []


def test_an_answer_waits_for_the_acknowledgement(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_poll = threading.Event()
    poll = KafkaSink._poll

    def held(sink: KafkaSink) -> None:
        assert may_poll.wait(30)
        poll(sink)

    monkeypatch.setattr(KafkaSink, "_poll", held)
    with sink_to(tmp_path, "{}:{}".format(*cluster.address)) as sink, ThreadPoolExecutor(1) as pool:
        appended = pool.submit(sink.append, {"id": "a"}, WAIT_SECONDS)
        wait_until(lambda: sink.waiting() == 1)
        time.sleep(0.3)
        assert not appended.done()
        may_poll.set()
        appended.result(30)
        assert cluster.ids(sink._topic) == ["a"]


def test_while_kafka_is_away_events_go_to_the_journal_and_are_forwarded_once(
    tmp_path: Path, cluster: Cluster
) -> None:
    with sink_to(tmp_path, "127.0.0.1:1") as sink:
        for event_id in ("a", "b", "c"):
            sink.append({"id": event_id}, WAIT_SECONDS)
        assert in_journal(tmp_path) == ["a", "b", "c"]
        assert sink.problem() is None
        wait_until(lambda: sink.backlog_bytes() > 0)
        # The broker is there now: for librdkafka's mock, which keeps its address, a producer that knows it.
        sink._options["bootstrap.servers"] = "{}:{}".format(*cluster.address)
        sink._broken = True
        wait_until(lambda: not sink._away)
        sink.append({"id": "d"}, WAIT_SECONDS)
        wait_until(lambda: sink.backlog_bytes() == 0)
        assert sorted(cluster.ids(sink._topic)) == ["a", "b", "c", "d"]
        topic = sink._topic
    again = ServingSettings(
        journal_dir=tmp_path, events_to="kafka", kafka_topic=topic,
        kafka_brokers="{}:{}".format(*cluster.address),
    )  # fmt: skip
    restarted = KafkaSink(again, Journal(tmp_path, again.journal_segment_bytes))
    restarted.append({"id": "e"}, WAIT_SECONDS)
    time.sleep(0.3)  # time to forward once more what is there already, if it would
    restarted.close()
    assert sorted(cluster.ids(topic)) == ["a", "b", "c", "d", "e"]


def test_a_crash_between_forwarding_and_noting_it_doubles_ids_and_loses_none(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Journal(tmp_path, 1 << 20)
    before.append({"id": "a"}, WAIT_SECONDS)
    before.close()
    note: Callable[[Path, int], None] = kafka._note
    crashes = [OSError("killed here")]

    def crash(*arguments: Any) -> None:
        if crashes:
            raise crashes.pop()
        note(*arguments)

    monkeypatch.setattr(kafka, "_note", crash)
    with sink_to(tmp_path, "{}:{}".format(*cluster.address)) as sink:
        wait_until(lambda: not crashes and sink._forwards and sink.backlog_bytes() == 0)
        assert cluster.ids(sink._topic) == ["a", "a"]


def test_when_neither_takes_an_event_it_is_refused(tmp_path: Path) -> None:
    with sink_to(tmp_path, "127.0.0.1:1") as sink:
        sink._journal.close()
        with pytest.raises(JournalError):
            sink.append({"id": "a"}, WAIT_SECONDS)
        assert sink.problem() is not None


def test_the_api_answers_when_kafka_has_the_event(tmp_path: Path, cluster: Cluster) -> None:
    topic = f"usage-{uuid4().hex[:8]}"
    told: dict[str, Any] = {
        "events_to": "kafka", "kafka_topic": topic, "kafka_brokers": "{}:{}".format(*cluster.address),
    }  # fmt: skip
    with running_app(tmp_path, **told) as api:
        request_id = api.analyze().get_json()["request_id"]
        assert cluster.ids(topic) == [request_id]
        assert api.events() == []
        assert "tallybook_kafka_backlog_bytes 0.0" in api.client.get("/metrics").text
