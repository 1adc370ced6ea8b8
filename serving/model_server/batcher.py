"""Greedy batching: whoever waits when the model becomes free is computed together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from serving.model_server.errors import ModelServerError
from serving.model_server.signature import Arrays


class RetiredError(Exception):
    """The batcher takes no more requests: its model is being unloaded."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may grow; one request larger than that is computed alone."""

    rows: int
    cells: int  # rows times the longest length


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One request's inputs, whom they may be computed with, and where the outputs go.

    `batch_key` None: alone. `deadline`: in seconds of time.monotonic(); after it nobody wants the answer.
    Cancelling `outputs` before the prediction starts takes it out of the queue.
    """

    signature: str
    inputs: Arrays
    batch_key: Hashable | None
    deadline: float
    outputs: Future[Arrays] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        """The size of the first axis; 1 for what has none."""
        return max((array.shape[0] for array in self.inputs.values() if array.ndim), default=1)

    @property
    def length(self) -> int:
        """The size of the longest second axis; 1 for what has none."""
        return max((array.shape[1] for array in self.inputs.values() if array.ndim > 1), default=1)


class Batcher:
    """One queue and one thread for one loaded model."""

    def __init__(self, run: Callable[[str, Arrays], Arrays], limits: BatchLimits, name: str) -> None:
        """`run(signature, inputs)` computes; it is only ever called from the batcher's one thread."""
        self._run = run
        self._limits = limits
        self._waiting: deque[Prediction] = deque()
        self._changed = threading.Condition()
        self._retired = False
        self._thread = threading.Thread(target=self._work, name=f"predict {name}", daemon=True)
        self._thread.start()

    def submit(self, prediction: Prediction) -> None:
        """Queue a prediction; its `outputs` get the arrays or the error, or are cancelled if it is too late.

        Raises: RetiredError: `close` was called.
        """
        with self._changed:
            if self._retired:
                raise RetiredError
            self._waiting.append(prediction)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many predictions are queued and not yet started."""
        return len(self._waiting)

    def close(self) -> None:
        """Take no more, finish what waits, and stop the thread."""
        with self._changed:
            self._retired = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._retired)
                if not self._waiting:
                    return
                drop_unwanted(self._waiting, time.monotonic())
                batch = take_batch(self._waiting, self._limits) if self._waiting else []
            started = [p for p in batch if p.outputs.set_running_or_notify_cancel()]
            if started:
                self._predict(started)

    def _predict(self, batch: Sequence[Prediction]) -> None:
        signature = batch[0].signature
        try:
            outputs = split(self._run(signature, join([p.inputs for p in batch])), [p.rows for p in batch])
        except Exception as error:  # noqa: BLE001  whatever it is belongs to the requests, not to this thread
            if len(batch) == 1:
                batch[0].outputs.set_exception(error)
                return
            # One bad request must not fail its neighbours.
            for prediction in batch:
                self._predict([prediction])
            return
        for prediction, own in zip(batch, outputs, strict=True):
            prediction.outputs.set_result(own)


def drop_unwanted(waiting: deque[Prediction], now: float) -> None:
    """Take out of the queue what was cancelled, and cancel and take out what comes too late."""
    wanted = [
        p for p in waiting if not p.outputs.cancelled() and (p.deadline > now or not p.outputs.cancel())
    ]
    waiting.clear()
    waiting.extend(wanted)


def take_batch(waiting: deque[Prediction], limits: BatchLimits) -> list[Prediction]:
    """Take out of the queue the oldest prediction and all that may be computed with it, in order."""
    batch = [waiting.popleft()]
    rows, longest = batch[0].rows, batch[0].length
    left: list[Prediction] = []
    for prediction in waiting:
        more, longer = rows + prediction.rows, max(longest, prediction.length)
        fits = more <= limits.rows and more * longer <= limits.cells
        if fits and prediction.batch_key is not None and prediction.batch_key == batch[0].batch_key:
            batch.append(prediction)
            rows, longest = more, longer
        else:
            left.append(prediction)
    waiting.clear()
    waiting.extend(left)
    return batch


def join(requests: Sequence[Arrays]) -> Arrays:
    """Put the rows of several requests under one another, filled up with zeros to the longest second axis."""
    if len(requests) == 1:
        return requests[0]
    joined = {}
    for key, first in requests[0].items():
        parts = [request[key] for request in requests]
        if len({part.shape[1:] for part in parts}) == 1:
            joined[key] = np.concatenate(parts)
            continue
        rows = sum(part.shape[0] for part in parts)
        block = np.zeros((rows, max(part.shape[1] for part in parts), *first.shape[2:]), first.dtype)
        row = 0
        for part in parts:
            block[row : row + part.shape[0], : part.shape[1]] = part
            row += part.shape[0]
        joined[key] = block
    return joined


def split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Give each request its own rows of the outputs.

    Raises: ModelServerError: an output does not have one row for each row that went in.
    """
    if len(rows) == 1:
        return [outputs]
    for key, array in outputs.items():
        if array.shape[:1] != (sum(rows),):
            raise ModelServerError(
                f"output {key!r} has shape {list(array.shape)} for a batch of {sum(rows)} rows"
            )
    ends = np.cumsum(rows)
    return [
        {key: array[end - size : end] for key, array in outputs.items()}
        for end, size in zip(ends, rows, strict=True)
    ]
