"""A weighted queue before each model, so that one user's batch does not starve the others.

A model answers so many requests at once; others wait for a place, and each place that becomes free goes to
the user whose turn it is: start-time fair queueing (Goyal, Vin and Cheng, 1996),
a request costing 1. A user who waits for one answer is served before the rest of somebody's hundred, and of
two users who always wait, one of weight 2 gets twice as many places. A request whose turn does not come by
its deadline is refused, and so are requests beyond the room for those that wait: of the user who has most of
them waiting for his weight. Waiting costs a thread each, so the room is small, and nothing grows.

A request that finds a place free pays for one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from serving.access.identity import Caller
from serving.errors import OverloadedError
from serving.observability.metrics import Metrics
from serving.settings import ServingSettings


class Limits(NamedTuple):
    """How many requests for one model are answered at once, and may wait: all together, and of one user."""

    places: int
    room: int
    room_of_user: int


class _Waiter:
    """A request that waits. Whoever sets `outcome` releases `told`; both under the queue's lock."""

    __slots__ = ("outcome", "told", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.outcome: bool | None = None  # whether it has got a place
        self.told = threading.Lock()
        self.told.acquire()


class _Lane:
    """The queue before one model. Everything here is done under `lock`."""

    def __init__(self, limits: Limits, weight: Callable[[str], float]) -> None:
        self.lock = threading.Lock()
        self.free = limits.places
        self._limits = limits
        self._weight = weight
        self._order = count()
        self._turns: list[tuple[float, int, _Waiter]] = []  # a heap; some have given up
        self._waiting: dict[str, list[_Waiter]] = {}
        self._finishes: dict[str, float] = {}  # of each user's latest request, in virtual time
        self._served = 0.0  # virtual time: where the latest request that got its turn began
        self._now = 0.0  # where those begin who come anew: ahead of it, see `next`
        self.length = 0

    def join(self, user: str) -> tuple[_Waiter | None, _Waiter | None]:
        """Wait for a turn; also who has to leave for that. None: there is no room for this one."""
        mine = self._waiting.get(user, ())
        if len(mine) >= self._limits.room_of_user or not self._limits.room:
            return None, None
        out = None
        if self.length >= self._limits.room:
            most = max(self._waiting, key=lambda one: len(self._waiting[one]) / self._weight(one))
            if len(self._waiting[most]) / self._weight(most) <= (len(mine) + 1) / self._weight(user):
                return None, None
            out = self._waiting[most][-1]
            self.leave(out)
        self._forget_finished()
        waiter = _Waiter(user)
        finish = self._finishes.get(user, -1.0)
        start = finish if finish >= self._served else self._now  # who goes on loses nothing to who comes anew
        self._finishes[user] = start + 1.0 / self._weight(user)
        heappush(self._turns, (start, next(self._order), waiter))
        self._waiting.setdefault(user, []).append(waiter)
        self.length += 1
        return waiter, out

    def leave(self, waiter: _Waiter) -> None:
        """Take one out that waits, without a place."""
        waiter.outcome = False
        self._forget(waiter)

    def next(self) -> _Waiter | None:
        """Give the place that became free to whose turn it is; None: nobody waits, and it is free now."""
        while self._turns:
            start, _, waiter = heappop(self._turns)
            if waiter.outcome is None:
                # Half as fast as those who wait are served: it passes nobody who waits for long, and ever new
                # users, who all begin at this moment, can't stop it.
                self._served = start
                self._now = max(start, self._now + 0.5 / sum(map(self._weight, self._waiting)))
                waiter.outcome = True
                self._forget(waiter)
                return waiter
        # Nobody waits: whoever comes next starts afresh.
        self._finishes.clear()
        self._served = self._now = 0.0
        self.free += 1
        return None

    def _forget_finished(self) -> None:
        """Who has had all his turns is no different from one who never came."""
        if len(self._finishes) > 2 * self._limits.room + 100:
            self._finishes = {user: at for user, at in self._finishes.items() if at >= self._served}

    def _forget(self, waiter: _Waiter) -> None:
        self.length -= 1
        mine = self._waiting[waiter.user]
        mine.remove(waiter)
        if not mine:
            del self._waiting[waiter.user]


class Place:
    """A place at a model, held until it is left."""

    __slots__ = ("_lane", "_threads")

    def __init__(self, lane: _Lane, threads: Threads | None) -> None:
        self._lane = lane
        self._threads = threads

    def __enter__(self) -> None:
        """It is held already."""

    def __exit__(self, *_: object) -> None:
        """Give it to whose turn it is."""
        lane = self._lane
        with lane.lock:
            follower = lane.next()
        if follower is not None:
            follower.told.release()
        if self._threads is not None:
            self._threads.leave()


class Threads:
    """The threads that requests may hold, from their first byte on: `with threads:`. Safe for many threads.

    Requests beyond them are refused at once, by threads that are kept free for that and for probes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = [None] * most

    def enter(self) -> None:
        """Take one. Raises: OverloadedError."""
        try:
            self._free.pop()  # atomic, as is append; a semaphore costs ten times as much
        except IndexError:
            raise OverloadedError(f"{self._most} requests are under way; no more are taken.") from None

    def leave(self) -> None:
        """Free it."""
        self._free.append(None)

    def __enter__(self) -> None:
        """Raises: OverloadedError."""
        self.enter()

    def __exit__(self, *_: object) -> None:
        """However the request ended."""
        self.leave()


class Queue:
    """The queues before all models of one process. Safe for many threads."""

    def __init__(self, settings: ServingSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._lanes: dict[str, _Lane] = {}
        self._making = threading.Lock()
        # A request to /analyze has its thread counted from its first byte on.
        self._engine_threads = Threads(settings.engine_requests)

    def place(self, caller: Caller, model: str, deadline: float) -> Place:
        """Wait for a place at this model, one of ours, until `deadline` of `time.monotonic`.

        Use it as `with queue.place(...):`; the place is held from here on, so nothing may come between.
        Raises: OverloadedError: no turn until then, or no room to wait.
        """
        lane = self._lanes.get(model) or self._make(model)
        threads = None if model == self._settings.model else self._engine_threads
        if threads is not None:
            threads.enter()
        with lane.lock:
            if lane.free > 0:
                lane.free -= 1
                return Place(lane, threads)
        try:
            self._wait(lane, caller, model, deadline)
        except BaseException:
            if threads is not None:
                threads.leave()
            raise
        return Place(lane, threads)

    @property
    def engine_threads(self) -> Threads:
        """Those that requests to engines and embedding models may hold; `place` takes one by itself."""
        return self._engine_threads

    def under_way(self, model: str) -> int:
        """How many places at this model are held."""
        lane = self._lanes.get(model)
        return 0 if lane is None else limits(self._settings, model).places - lane.free

    def _wait(self, lane: _Lane, caller: Caller, model: str, deadline: float) -> None:
        began = time.monotonic()
        user = f"{caller.project} {caller.user}"  # no name has a space
        with lane.lock:
            if lane.free > 0:  # it became free just now
                lane.free -= 1
                return
            waiter, out = lane.join(user)
        if out is not None:
            out.told.release()
        if waiter is None:
            self._metrics.queue_refused(model, "full").inc()
            raise OverloadedError(f"Too many requests wait for {model}.")
        self._metrics.queue_waiting(model).inc()
        try:
            waiter.told.acquire(timeout=max(0.0, deadline - began))
            with lane.lock:
                outcome = waiter.outcome
                if outcome is None:
                    lane.leave(waiter)
        finally:
            self._metrics.queue_waiting(model).dec()
        if outcome is None:
            self._metrics.queue_refused(model, "deadline").inc()
            raise OverloadedError(f"No place at {model} became free before the request's deadline.")
        if not outcome:
            self._metrics.queue_refused(model, "full").inc()
            raise OverloadedError(f"Too many requests wait for {model}.")
        self._metrics.queue_seconds(model).observe(time.monotonic() - began)

    def _make(self, model: str) -> _Lane:
        with self._making:
            return self._lanes.setdefault(model, _Lane(limits(self._settings, model), self._weight))

    def _weight(self, user: str) -> float:
        project, _, name = user.partition(" ")
        settings = self._settings
        return settings.queue_user_weights.get(name) or settings.queue_project_weights.get(project, 1.0)


def limits(settings: ServingSettings, model: str) -> Limits:
    """Of one model: its places in `queue_places`; if not, three quarters of the threads, all of an engine's.

    An eighth of the threads may wait for it, half of these of one user: so a slow model leaves threads to
    others, and one user leaves room to others.
    """
    ours = model == settings.model
    threads = settings.threads if ours else settings.engine_requests
    places = settings.queue_places.get(model, threads - threads // 4 if ours else threads)
    room = threads // 8
    return Limits(places, room, (room + 1) // 2)
