"""Usage events to Kafka: an answer waits for the acknowledgement of all replicas in sync.

While Kafka is away, events go to the journal instead, at once, and a thread forwards them when it is back.
How far each segment was forwarded stands in a file beside it, written after the acknowledgement. So an event
may be in Kafka twice, after a crash between the two or after an acknowledgement that was lost; it has one id,
and the ledger stores each id once. `tallybook ingest` may read the journal, Kafka or both.

Only if Kafka's acknowledgement is lost and the journal fails in the same moment, a request is refused whose
event may be in Kafka all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer

from serving.journal import Journal, Sink
from serving.observability.metrics import Metrics
from serving.settings import ServingSettings
from tallybook.segments import SUFFIX, read_segment

DELIVERY_SECONDS = 3.0  # without an acknowledgement for so long, Kafka is away
RETRY_SECONDS = 1.0  # between looks at whether it is back
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5.0
_FORWARDED = ".forwarded"  # beside a segment: how many of its bytes are in Kafka
_LOCK = ".forwarding"  # held by the one worker that forwards

log = logging.getLogger(__name__)


class _Message:
    """An event on its way to Kafka."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.error: KafkaError | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def delivered(self, error: KafkaError | None, _: object) -> None:
        """Called by librdkafka, in the polling thread."""
        self.error = error
        self.done.release()


class KafkaSink:
    """A journal whose events go to Kafka, when it is there. Safe for many threads."""

    def __init__(self, settings: ServingSettings, journal: Journal) -> None:
        """Make it in the process that uses it. `journal` is where events go while Kafka is away."""
        if settings.kafka_brokers is None:
            raise ValueError("events_to = kafka needs kafka_brokers")
        self._journal = journal
        self._directory = settings.journal_dir
        self._topic = settings.kafka_topic
        self._options: dict[str, Any] = {
            "bootstrap.servers": settings.kafka_brokers,
            "message.timeout.ms": int(DELIVERY_SECONDS * 1000),
            "linger.ms": 1,
            **{name: value.get_secret_value() for name, value in settings.kafka_options.items()},
            "acks": "all",
            "enable.idempotence": True,
        }
        self._producer = Producer(self._options, logger=log)
        self._away = False
        self._forwards = False  # of all workers, this one
        self._broken = False  # this producer will never work again
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("kafka", self._poll), ("kafka-forward", self._forward))
        ]
        for thread in self._threads:
            thread.start()

    def append(self, record: Mapping[str, Any], timeout_seconds: float) -> None:
        """Return when the record is acknowledged by Kafka, or durable in the journal.

        Raises: JournalError: it is neither.
        """
        if not self._away and self._send([orjson.dumps(record)]):
            return
        self._journal.append(record, timeout_seconds)

    def waiting(self) -> int:
        """How many events wait for Kafka or for the disk."""
        return len(self._producer) + self._journal.waiting()

    def problem(self) -> str | None:
        """Why an event would not be taken now, or None."""
        return self._journal.problem() if self._away or self._stop.is_set() else None

    def backlog_bytes(self) -> int:
        """How much of the journal is not in Kafka yet, by the one worker that forwards it."""
        if not self._forwards:
            return 0
        return sum(max(0, _size(segment) - _forwarded(segment)) for segment in self._segments())

    def close(self) -> None:
        """Wait for what is under way, then close the journal."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._producer.flush(_CLOSE_SECONDS)
        self._journal.close()

    def _send(self, values: list[bytes]) -> bool:
        """Whether all of these are acknowledged; if not, Kafka is away."""
        messages = [_Message() for _ in values]
        try:
            for message, value in zip(messages, values, strict=True):
                self._producer.produce(self._topic, value, on_delivery=message.delivered)
        except (BufferError, KafkaException) as error:
            self._leave(error.args[0] if isinstance(error, KafkaException) else None, str(error))
            return False
        for message in messages:
            message.done.acquire()  # librdkafka tells each one's fate within message.timeout.ms
        failed = next((message.error for message in messages if message.error is not None), None)
        if failed is not None:
            self._leave(failed, str(failed))
            return False
        return True

    def _leave(self, error: KafkaError | None, why: str) -> None:
        if not self._away:
            log.error("Kafka is away, events go to the journal: %s", why)
        self._broken = self._broken or (error is not None and error.fatal())
        self._away = True

    def _poll(self) -> None:
        while not self._stop.is_set() or len(self._producer):
            self._producer.poll(_POLL_SECONDS)

    def _forward(self) -> None:
        while not self._stop.wait(RETRY_SECONDS):
            if self._broken and not len(self._producer):
                self._producer, self._broken = Producer(self._options, logger=log), False
            try:
                with _alone(self._directory / _LOCK) as alone:
                    self._forwards = alone
                    back = not alone or self._forward_all()
                if self._away and back and self._answers():
                    log.warning("Kafka is back")
                    self._away = False
            except (OSError, ValueError):
                log.exception("forwarding the journal to Kafka failed")

    def _answers(self) -> bool:
        """Whether Kafka knows our topic now."""
        try:
            found = self._producer.list_topics(self._topic, timeout=DELIVERY_SECONDS)
        except KafkaException:
            return False
        return found.topics[self._topic].error is None

    def _forward_all(self) -> bool:
        """Send what the journal holds and Kafka does not; whether all of it is there."""
        return all(self._forward_segment(segment) for segment in self._segments())

    def _forward_segment(self, segment: Path) -> bool:
        offset = _forwarded(segment)
        while not self._stop.is_set():
            extract = read_segment(segment, offset)
            if extract.next_offset == offset:
                return True
            if extract.lines and not self._send([line.raw for line in extract.lines]):
                return False
            offset = extract.next_offset
            _note(segment, offset)
        return False

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob("*" + SUFFIX))


def sink_of(settings: ServingSettings, metrics: Metrics) -> Sink:
    """Where events go, by the settings. Starts threads."""
    journal = Journal(settings.journal_dir, settings.journal_segment_bytes, metrics.commit)
    if settings.events_to == "journal":
        return journal
    sink = KafkaSink(settings, journal)
    metrics.watch_backlog(sink.backlog_bytes)
    return sink


def _beside(segment: Path) -> Path:
    return segment.with_name(segment.name + _FORWARDED)


def _forwarded(segment: Path) -> int:
    try:
        return int(_beside(segment).read_bytes())
    except FileNotFoundError:
        return 0


def _size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:
        return 0


def _note(segment: Path, offset: int) -> None:
    """Replace the file whole: a crash leaves the old offset or the new one."""
    fresh = _beside(segment).with_suffix(".fresh")
    with fresh.open("wb") as file:
        file.write(b"%d" % offset)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(_beside(segment))


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Whether this process is the one that forwards, for as long as this lasts."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
