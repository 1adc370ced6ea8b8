"""Who is computed with whom, and whom an error reaches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from serving.model_server.batcher import (
    Batcher,
    Batching,
    Prediction,
    RetiredError,
    join,
    split,
    take_batch,
)
from serving.model_server.errors import ModelServerError, QueueFullError
from serving.model_server.signature import Arrays

NO_LIMITS = Batching(rows=1_000, cells=1_000_000)
NEVER = float("inf")
TIMEOUT_SECONDS = 30.0


def prediction(
    *lengths: int, key: Hashable | None = "text", deadline: float = NEVER, fill: int = 1
) -> Prediction:
    """A request of as many rows as lengths are given, which are all alike."""
    ids = np.full((len(lengths), lengths[0]), fill, np.int32)
    return Prediction("s", {"ids": ids}, key, deadline)


class Model:
    """Sums each row, when it may; remembers the shapes that came."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.arrived = threading.Semaphore(0)
        self.may_go = threading.Event()
        self.may_go.set()

    def run(self, signature: str, inputs: Arrays) -> Arrays:
        ids = inputs["ids"]
        self.shapes.append(ids.shape)
        self.arrived.release()
        assert self.may_go.wait(TIMEOUT_SECONDS)
        if (ids < 0).any():
            raise ValueError("a negative id")
        return {"sum": ids.sum(axis=1)}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    batcher = Batcher(model.run, NO_LIMITS, "test")
    yield batcher
    model.may_go.set()
    batcher.close()


def submit_while_busy(model: Model, batcher: Batcher, *predictions: Prediction) -> None:
    """Queue predictions while another one is being computed; they run after `model.may_go.set()`."""
    model.may_go.clear()
    batcher.submit(prediction(1, key=None))
    assert model.arrived.acquire(timeout=TIMEOUT_SECONDS)
    for waiting in predictions:
        batcher.submit(waiting)


def answer(prediction: Prediction) -> Any:
    return prediction.outputs.result(TIMEOUT_SECONDS)["sum"].tolist()


def test_what_waits_is_computed_together_and_each_gets_its_own_rows(model: Model, batcher: Batcher) -> None:
    waiting = [prediction(3, fill=1), prediction(5, 5, fill=2), prediction(4, fill=3)]
    submit_while_busy(model, batcher, *waiting)
    model.may_go.set()
    assert [answer(p) for p in waiting] == [[3], [10, 10], [12]]
    assert model.shapes == [(1, 1), (4, 5)]


def test_other_keys_wait_for_the_next_batch(model: Model, batcher: Batcher) -> None:
    waiting = [prediction(3), prediction(90, key="long"), prediction(4)]
    submit_while_busy(model, batcher, *waiting)
    model.may_go.set()
    assert [answer(p) for p in waiting] == [[3], [90], [4]]
    assert model.shapes[1:] == [(2, 4), (1, 90)]


def test_a_bad_request_does_not_fail_its_neighbours(model: Model, batcher: Batcher) -> None:
    good, bad, also_good = prediction(3), prediction(3, fill=-1), prediction(4)
    submit_while_busy(model, batcher, good, bad, also_good)
    model.may_go.set()
    assert [answer(good), answer(also_good)] == [[3], [4]]
    with pytest.raises(ValueError, match="a negative id"):
        answer(bad)


def test_a_request_whose_deadline_has_passed_is_not_computed(model: Model, batcher: Batcher) -> None:
    late, in_time = prediction(7, deadline=time.monotonic()), prediction(3)
    submit_while_busy(model, batcher, late, in_time)
    model.may_go.set()
    assert answer(in_time) == [3]
    assert model.shapes[1:] == [(1, 3)]
    with pytest.raises(CancelledError):
        answer(late)


def test_a_request_whose_client_left_is_not_computed(model: Model, batcher: Batcher) -> None:
    left, stays = prediction(7), prediction(3)
    submit_while_busy(model, batcher, left, stays)
    assert left.outputs.cancel()
    model.may_go.set()
    assert answer(stays) == [3]
    assert model.shapes[1:] == [(1, 3)]


def test_a_closing_batcher_answers_what_waits_and_takes_no_more(model: Model, batcher: Batcher) -> None:
    waiting = [prediction(3), prediction(4, key=None)]
    submit_while_busy(model, batcher, *waiting)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.may_go.set()
    closing.join(TIMEOUT_SECONDS)
    assert not closing.is_alive()
    assert [answer(p) for p in waiting] == [[3], [4]]
    with pytest.raises(RetiredError):
        batcher.submit(prediction(1))


def test_nobody_gives_up_a_place_in_the_batch_to_those_who_left(model: Model) -> None:
    batcher = Batcher(model.run, Batching(rows=2, cells=1_000), "test")
    left, stays, also_stays = prediction(3), prediction(4), prediction(5)
    submit_while_busy(model, batcher, left, stays, also_stays)
    left.outputs.cancel()
    model.may_go.set()
    batcher.close()
    assert model.shapes[1:] == [(2, 5)]


def lengths(batch: list[Prediction]) -> list[int]:
    return [p.length for p in batch]


def test_the_oldest_request_is_always_taken() -> None:
    waiting = deque([prediction(9, key="a"), prediction(1, key="b"), prediction(8, key="a")])
    assert lengths(take_batch(waiting, 1_000, 1_000_000)) == [9, 8]
    assert lengths(list(waiting)) == [1]


def test_a_request_that_must_be_alone_is_alone() -> None:
    waiting = deque([prediction(1, key=None), prediction(2, key=None), prediction(3)])
    assert lengths(take_batch(waiting, 1_000, 1_000_000)) == [1]
    assert lengths(list(waiting)) == [2, 3]


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        (Batching(rows=2, cells=1_000), [10, 10]),
        (Batching(rows=9, cells=30), [10, 10, 10]),
        (Batching(rows=9, cells=36), [10, 10, 12]),  # three rows of the longest, 12
        (Batching(rows=1, cells=1), [10]),  # a request over the limits still runs
    ],
)
def test_a_batch_keeps_within_its_limits(limits: Batching, taken: list[int]) -> None:
    order = [10, 10, 12, 10] if taken[-1] == 12 else [10, 10, 10, 10]
    waiting = deque([prediction(length) for length in order])
    assert lengths(take_batch(waiting, limits.rows, limits.cells)) == taken
    assert len(waiting) == 4 - len(taken)


def test_rows_are_filled_up_with_zeros_to_the_longest() -> None:
    joined = join([{"ids": np.array([[1, 2]])}, {"ids": np.array([[3, 4, 5], [6, 7, 8]])}])
    assert joined["ids"].tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 8]]


def test_a_model_that_does_not_answer_row_by_row_is_found_out() -> None:
    with pytest.raises(ModelServerError, match=r"output 'y' has shape \[1, 2\] for a batch of 3 rows"):
        split({"y": np.zeros((1, 2))}, [1, 2])


def test_a_short_request_does_not_wait_for_a_long_one(model: Model) -> None:
    batcher = Batcher(model.run, Batching(long_length=100), "test")
    model.may_go.clear()
    batcher.submit(long := prediction(2_000))
    assert model.arrived.acquire(timeout=TIMEOUT_SECONDS)
    batcher.submit(short := prediction(10))
    assert model.arrived.acquire(timeout=TIMEOUT_SECONDS)  # both are being computed
    model.may_go.set()
    for sent in (long, short):
        assert sent.outputs.result(TIMEOUT_SECONDS)["sum"].shape == (1,)
    batcher.close()


def test_batches_become_no_larger_than_their_time_allows(model: Model) -> None:
    batcher = Batcher(model.run, Batching(seconds=1e-9), "test")
    batcher.submit(first := prediction(4))
    first.outputs.result(TIMEOUT_SECONDS)  # it took longer than a batch may, by any clock
    submit_while_busy(model, batcher, *(waiting := [prediction(4) for _ in range(3)]))
    model.may_go.set()
    for sent in waiting:
        sent.outputs.result(TIMEOUT_SECONDS)
    assert model.shapes[2:] == [(1, 4)] * 3
    batcher.close()


def test_a_batch_is_filled_up_to_an_allowed_size_and_answered_as_if_it_were_not(model: Model) -> None:
    batcher = Batcher(model.run, Batching(rows=8, allowed_rows=(1, 4, 8)), "test")
    submit_while_busy(model, batcher, one := prediction(4, 4), other := prediction(4, fill=2))
    model.may_go.set()
    assert one.outputs.result(TIMEOUT_SECONDS)["sum"].tolist() == [4, 4]
    assert other.outputs.result(TIMEOUT_SECONDS)["sum"].tolist() == [8]
    assert model.shapes[1:] == [(4, 4)]
    batcher.close()


def test_more_batches_than_may_wait_are_refused_as_tensorflow_serving_does(model: Model) -> None:
    batcher = Batcher(model.run, Batching(rows=1, most_batches=2), "test")
    submit_while_busy(model, batcher, prediction(1), prediction(1))
    with pytest.raises(QueueFullError, match="currently 2 batches enqueued and max_enqueued_batches is 2"):
        batcher.submit(prediction(1))
    model.may_go.set()
    batcher.close()


def test_a_batch_that_may_wait_takes_those_who_come_meanwhile(model: Model) -> None:
    batcher = Batcher(model.run, Batching(rows=2, wait_seconds=TIMEOUT_SECONDS), "test")
    sent = [prediction(3), prediction(3)]
    for one in sent:
        batcher.submit(one)
    for one in sent:
        one.outputs.result(TIMEOUT_SECONDS)
    assert model.shapes == [(2, 3)]
    batcher.close()
