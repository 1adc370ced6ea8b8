"""Greedy batching: whoever waits when the model becomes free is computed together.

Short requests never stand behind long ones: those have a lane of their own, and within a lane a batch is
kept so small that it should take no longer than a set time, by what batches of its kind took before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from serving.model_server.errors import ModelServerError, QueueFullError
from serving.model_server.signature import Arrays

_MOST_KEYS = 1_000
_NEW_SHARE = 0.2  # of a new measurement in what a cell is thought to cost


class RetiredError(Exception):
    """The batcher takes no more requests: its model is being unloaded."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are put together; one request larger than a limit is computed alone.

    `cells`: rows times the longest length. `seconds`: what a batch may take, by the measure of those before.
    `long_length`: longer requests go to a lane of their own. `wait_seconds`: how long a batch that is not
    full waits for more. `most_batches`: so many full batches may wait in a lane, None: any number.
    `threads`: of each lane. `allowed_rows`: sizes to which batches are filled up; none: as they come.
    """

    rows: int = 64
    cells: int = 16_384
    seconds: float = float("inf")
    long_length: int = 512
    wait_seconds: float = 0.0
    most_batches: int | None = None
    threads: int = 1
    allowed_rows: tuple[int, ...] = ()
    enabled: bool = True


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
    """Two lanes before one loaded model: one for short requests, one for long ones."""

    def __init__(self, run: Callable[[str, Arrays], Arrays], batching: Batching, name: str) -> None:
        """`run(signature, inputs)` computes; both lanes may call it at once."""
        self._batching = batching
        self._short = _Lane(run, batching, f"predict {name}")
        self._long = _Lane(run, batching, f"predict long {name}")

    def submit(self, prediction: Prediction) -> None:
        """Queue a prediction; its `outputs` get the arrays or the error, or are cancelled if it is too late.

        Raises: RetiredError: `close` was called. QueueFullError: `most_batches` are waiting.
        """
        long = prediction.length > self._batching.long_length
        (self._long if long else self._short).submit(prediction)

    @property
    def waiting(self) -> int:
        """How many predictions are queued and not yet started."""
        return self._short.waiting + self._long.waiting

    def close(self) -> None:
        """Take no more, finish what waits, and stop the threads."""
        self._short.close()
        self._long.close()


class _Lane:
    """One queue and its threads."""

    def __init__(self, run: Callable[[str, Arrays], Arrays], batching: Batching, name: str) -> None:
        self._run = run
        self._batching = batching
        self._waiting: deque[Prediction] = deque()
        self._changed = threading.Condition()
        self._retired = False
        self._cell_seconds: dict[Hashable, float] = {}
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for _ in range(batching.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, prediction: Prediction) -> None:
        most = self._batching.most_batches
        with self._changed:
            if self._retired:
                raise RetiredError
            if most is not None and len(self._waiting) >= most * self._batching.rows:
                raise QueueFullError(
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"currently {most} batches enqueued and max_enqueued_batches is {most}"
                )
            self._waiting.append(prediction)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._retired = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._retired)
                if self._batching.wait_seconds and not self._retired:
                    self._changed.wait_for(self._full, self._batching.wait_seconds)
                if not self._waiting:
                    if self._retired:
                        return
                    continue
                drop_unwanted(self._waiting, time.monotonic())
                batch = self._take() if self._waiting else []
            started = [p for p in batch if p.outputs.set_running_or_notify_cancel()]
            if started:
                before = time.monotonic()
                self._predict(started)
                self._learn(started, time.monotonic() - before)

    def _full(self) -> bool:
        return self._retired or sum(p.rows for p in self._waiting) >= self._batching.rows

    def _take(self) -> list[Prediction]:
        """The next batch; as large as it may be in the time that a batch may take."""
        cost = self._cell_seconds.get(self._waiting[0].batch_key, 0.0)
        cells = self._batching.cells
        if cost * cells > self._batching.seconds:
            cells = int(self._batching.seconds / cost)
        return take_batch(self._waiting, self._batching.rows, cells)

    def _learn(self, batch: Sequence[Prediction], seconds: float) -> None:
        key = batch[0].batch_key
        if key is None:
            return
        cell = seconds / max(1, sum(p.rows for p in batch) * max(p.length for p in batch))
        if len(self._cell_seconds) > _MOST_KEYS:
            self._cell_seconds.clear()  # without a mask every shape is a kind of its own
        known = self._cell_seconds.get(key, cell)
        self._cell_seconds[key] = known + _NEW_SHARE * (cell - known)

    def _predict(self, batch: Sequence[Prediction]) -> None:
        signature = batch[0].signature
        try:
            rows = [p.rows for p in batch]
            inputs = join([p.inputs for p in batch])
            allowed = self._batching.allowed_rows if batch[0].batch_key is not None else ()
            filled = filled_up(inputs, sum(rows), allowed)
            answered = self._run(signature, filled)
            if filled is not inputs:
                answered = {key: array[: sum(rows)] for key, array in answered.items()}
            outputs = split(answered, rows)
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


def take_batch(waiting: deque[Prediction], most_rows: int, most_cells: int) -> list[Prediction]:
    """Take out of the queue the oldest prediction and all that may be computed with it, in order."""
    batch = [waiting.popleft()]
    rows, longest = batch[0].rows, batch[0].length
    left: list[Prediction] = []
    for prediction in waiting:
        more, longer = rows + prediction.rows, max(longest, prediction.length)
        fits = more <= most_rows and more * longer <= most_cells
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


def filled_up(inputs: Arrays, rows: int, allowed: Sequence[int]) -> Arrays:
    """The inputs with their last row repeated up to the next allowed number of rows, if there is one."""
    size = next((size for size in allowed if size >= rows), rows)
    if size == rows:
        return inputs
    return {key: np.concatenate([a, np.repeat(a[-1:], size - rows, 0)]) for key, a in inputs.items()}


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
