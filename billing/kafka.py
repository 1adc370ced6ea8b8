"""Events from Kafka into the ledger: each once, whoever reads which partition.

How far each partition was read is kept in the ledger, and moved in the transaction that stores the events. So
it does not matter who reads a partition, nor how many do: whoever finds the offset moved by another stores
only what is beyond it. The consumer group shares the work; it is not what counts each event once.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from sqlalchemy.engine import Engine

from billing.aggregates import roll_up_now
from billing.aside import NotAloneError
from billing.bulk import by_copy
from billing.errors import SourceError
from billing.events import EventReader
from billing.ledger import lock_ledger, writing
from billing.offsets import move_offset, offset_of
from billing.parsing import Parsed, Poison, parse
from billing.partitions import prepare_days
from billing.settings import BillingSettings
from billing.store import IngestResult, enter, put_aside, store
from tallybook.segments import Line

BATCH_MESSAGES = 20_000  # of all partitions together; each is a transaction of its own
_ANSWER_SECONDS = 10.0  # for a broker that is asked something
_SILENT_SECONDS = 60.0  # without a message that must be there, draining gives up
_POLL_SECONDS = 0.5
_ROLL_UP_SECONDS = 5.0
# What does not pass by itself; of everything else librdkafka tells too, and goes on.
_FINAL = {
    KafkaError._AUTO_OFFSET_RESET,  # what we would read next is gone: starting anew says what was lost
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
}


@dataclass(frozen=True)
class Topic:
    """Where the events are; `options` are further properties of librdkafka, such as how to log in."""

    brokers: str  # HOST:PORT, several separated by commas
    name: str
    group: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: BillingSettings) -> Topic | None:
        """The topic of the settings; none when they name no brokers."""
        if settings.kafka_brokers is None:
            return None
        options = {name: value.get_secret_value() for name, value in settings.kafka_options.items()}
        return cls(settings.kafka_brokers, settings.kafka_topic, settings.kafka_group, options)

    def segment(self, partition: int) -> str:
        """A partition's name in the ledger."""
        return f"kafka:{self.name}/{partition}"

    def consumer(self, **more: str | int | bool) -> Consumer:
        """A consumer that never decides by itself where to read from."""
        return Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": self.group,
                "auto.offset.reset": "error",
                "enable.auto.offset.store": False,
                "queued.max.messages.kbytes": 16 << 10,  # of memory, for what is fetched ahead
                **more,
                **self.options,
            }
        )


def drain(ledger: Engine, topic: Topic, zone: tzinfo) -> IngestResult:
    """Store what all partitions hold now and the ledger does not have, and roll it up.

    Takes no part in the group, and disturbs nobody who does.
    Raises: SourceError: Kafka can't be read (codes kafka_unavailable, kafka_topic_unknown,
        kafka_topic_changed).
    """
    reader = _Reader(ledger, topic, zone)
    with closing(topic.consumer(**{"enable.auto.commit": False, "enable.partition.eof": True})) as consumer:
        behind = dict(reader.begin(consumer, _partitions(consumer, topic)))
        starts = [TopicPartition(topic.name, partition, reader.reached[partition]) for partition in behind]
        consumer.assign(starts)
        deadline = time.monotonic() + _SILENT_SECONDS
        while behind := {p: end for p, end in behind.items() if reader.reached[p] < end}:
            messages = consumer.consume(BATCH_MESSAGES, _POLL_SECONDS)
            reader.take(messages)
            for partition, offset in map(_place, filter(_is_end, messages)):
                # What is between the last event and the end may be marks of Kafka's own.
                if offset >= behind.get(partition, 0):
                    behind.pop(partition, None)
            if messages:
                deadline = time.monotonic() + _SILENT_SECONDS
            elif time.monotonic() > deadline:
                raise SourceError("kafka_unavailable", f"no answer from {topic.brokers} any more")
    reader.roll_up()
    return reader.result


def follow(ledger: Engine, topic: Topic, zone: tzinfo, stop: threading.Event) -> IngestResult:
    """Store what comes, as one consumer of the group, until `stop` is set.

    Raises: SourceError: see `drain`. Started again, it goes on where the ledger is.
    """
    reader = _Reader(ledger, topic, zone)

    def begin(consumer: Consumer, assigned: list[TopicPartition]) -> None:
        partitions = [each.partition for each in assigned]
        reader.begin(consumer, partitions)
        consumer.assign([TopicPartition(topic.name, p, reader.reached[p]) for p in partitions])

    def end(_consumer: Consumer, revoked: list[TopicPartition]) -> None:
        for each in revoked:
            reader.reached.pop(each.partition, None)

    rolled_up_at = time.monotonic()
    with closing(topic.consumer()) as consumer:
        _partitions(consumer, topic)
        consumer.subscribe([topic.name], on_assign=begin, on_revoke=end, on_lost=end)
        while not stop.is_set():
            reader.take(consumer.consume(BATCH_MESSAGES, _POLL_SECONDS))
            # A courtesy to those who watch the group's lag; nothing here reads it.
            with suppress(KafkaException):
                consumer.store_offsets(
                    offsets=[TopicPartition(topic.name, p, offset) for p, offset in reader.reached.items()]
                )
            if time.monotonic() - rolled_up_at > _ROLL_UP_SECONDS:
                reader.roll_up()
                rolled_up_at = time.monotonic()
    reader.roll_up()
    return reader.result


class _Reader:
    """Moves messages into the ledger; `reached` has each partition that is read, and the ledger's offset."""

    def __init__(self, ledger: Engine, topic: Topic, zone: tzinfo) -> None:
        self._ledger = ledger
        self._topic = topic
        self._events = EventReader(zone, for_copy=by_copy(ledger))
        self._waiting = False  # something was stored that was not rolled up
        self.reached: dict[int, int] = {}
        self.result = IngestResult()

    def begin(self, consumer: Consumer, partitions: Iterable[int]) -> list[tuple[int, int]]:
        """Find out where to go on in these partitions; each with the offset at which it ends now."""
        ends = []
        for partition in partitions:
            segment = self._topic.segment(partition)
            reached = offset_of(self._ledger, segment)  # before its end, which others are reading towards
            place = TopicPartition(self._topic.name, partition)
            try:
                first, end = consumer.get_watermark_offsets(place, timeout=_ANSWER_SECONDS)
            except KafkaException as error:
                raise _unavailable(self._topic, error) from error
            self.reached[partition] = self._start(segment, reached, first, end)
            ends.append((partition, end))
        return ends

    def take(self, messages: Iterable[Message]) -> None:
        """Store messages, one transaction a partition."""
        lines: dict[int, list[Line]] = defaultdict(list)
        for message in messages:
            error = message.error()
            if error is None:
                partition, offset = _place(message)
                lines[partition].append(Line(offset, message.value() or b""))
            elif error.fatal() or error.code() in _FINAL:
                raise _unavailable(self._topic, error)
        for partition, some in sorted(lines.items()):
            if partition in self.reached:  # else it was taken from us meanwhile: another one reads it
                self._store(partition, some)

    def roll_up(self) -> None:
        """Add what was stored to the hours."""
        if self._waiting:
            roll_up_now(self._ledger)
            self._waiting = False

    def _store(self, partition: int, lines: list[Line]) -> None:
        segment = self._topic.segment(partition)
        while lines := [line for line in lines if line.offset >= self.reached[partition]]:
            since, to = self.reached[partition], lines[-1].offset + 1
            parsed = parse(lines, self._events)
            try:
                found = self._store_lines(segment, since, to, parsed)
            except NotAloneError:  # seldom: an id has come with another content
                found = self._store_lines(segment, since, to, parsed, alone=True)
            if found is not None:
                self.result.add(found)
                self._waiting = True
                self.reached[partition] = to
            else:
                # Another one reads this partition, by a rebalance or beside the group, and was faster. What
                # we hold goes on from where we were, so what is left of it goes on from where that one is.
                self.reached[partition] = offset_of(self._ledger, segment)
                if self.reached[partition] < since:
                    told = f"the ledger's offset of {segment} went back from {since}: was it restored?"
                    raise SourceError("ledger_went_back", f"{told} Start again")

    def _store_lines(
        self, segment: str, since: int, to: int, parsed: Parsed, *, alone: bool = False
    ) -> IngestResult | None:
        """Store lines and move the offset; None when it was moved by another one."""
        with writing(self._ledger) as connection:
            enter(connection, parsed, alone=alone)
            prepare_days(self._ledger, parsed.days)
            if move_offset(connection, segment, since, to):
                return store(connection, segment, since, parsed)
        return None

    def _start(self, segment: str, reached: int, first: int, end: int) -> int:
        """Where to go on in a partition that now holds the offsets [first, end)."""
        if reached > end:
            told = f"{segment} was read up to {reached}, but ends at {end}: it is not the same topic"
            raise SourceError("kafka_topic_changed", told)
        if reached >= first:
            return reached
        lost = f"the messages {reached} to {first - 1} were deleted by Kafka before they were read"
        with writing(self._ledger) as connection:
            lock_ledger(connection)
            if move_offset(connection, segment, reached, first):
                put_aside(
                    connection, segment, [Poison(Line(reached, b""), "lost_in_kafka", lost)], self.result
                )
        return offset_of(self._ledger, segment)


def _partitions(consumer: Consumer, topic: Topic) -> list[int]:
    try:
        found = consumer.list_topics(timeout=_ANSWER_SECONDS).topics.get(topic.name)
    except KafkaException as error:
        raise _unavailable(topic, error) from error
    if found is None or found.error is not None or not found.partitions:
        raise SourceError("kafka_topic_unknown", f"there is no topic {topic.name} at {topic.brokers}")
    return sorted(found.partitions)


def _is_end(message: Message) -> bool:
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF


def _place(message: Message) -> tuple[int, int]:
    """Partition and offset, which every consumed message has."""
    return cast(int, message.partition()), cast(int, message.offset())


def _unavailable(topic: Topic, error: object) -> SourceError:
    return SourceError("kafka_unavailable", f"{topic.brokers}: {error}")
