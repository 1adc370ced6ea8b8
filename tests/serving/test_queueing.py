import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.identity import Caller
from serving.errors import OverloadedError
from serving.observability.metrics import Metrics
from serving.queueing import Limits, Queue, Threads, _Lane, _Waiter, limits
from serving.settings import ServingSettings
from tests.modelservers import wait_until

SOON = 30.0


def caller(user: str, project: str = "default") -> Caller:
    return Caller(user, project, "default", "127.0.0.1")


def queue_of(places: int, threads: int = 64, **settings: Any) -> Queue:
    made = ServingSettings(model="m", threads=threads, queue_places={"m": places}, **settings)
    return Queue(made, Metrics())


def metric(queue: Queue, name: str) -> float:
    lines = queue._metrics.exposition().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def in_line(queue: Queue, users: list[str], served: list[str], pool: ThreadPoolExecutor) -> None:
    """Have these users wait for the place that the caller holds, one after the other."""

    def wait(user: str) -> None:
        with queue.place(caller(user), "m", time.monotonic() + SOON):
            served.append(user)

    for number, user in enumerate(users, 1):
        pool.submit(wait, user)
        wait_until(lambda number=number: queue._lanes["m"].length == number)  # type: ignore[misc]


def test_one_question_does_not_wait_for_the_rest_of_a_batch() -> None:
    queue, served = queue_of(1, threads=256), list[str]()
    with ThreadPoolExecutor(20) as pool, queue.place(caller("first"), "m", time.monotonic() + SOON):
        in_line(queue, ["batch"] * 15 + ["human"], served, pool)
    assert served.index("human") == 1
    assert served.count("batch") == 15


def test_a_heavier_user_gets_more_turns_and_a_project_weighs_for_its_users() -> None:
    weights: dict[str, Any] = {"queue_user_weights": {"heavy": 3.0}, "queue_project_weights": {"paid": 2.0}}
    queue = queue_of(1, **weights)
    who = ["default heavy", "paid light", "paid heavy", "default light"]
    assert [queue._weight(one) for one in who] == [3, 2, 3, 1]


weights = st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0])


def backlogged(given_weights: dict[str, float], turns: int) -> list[str]:
    """Who got the turns of a place while everybody always had a request waiting."""
    lane = _Lane(Limits(1, 10_000, 5_000), lambda user: given_weights[user])
    lane.free = 0
    for user in given_weights:
        lane.join(user)
    order = []
    for _ in range(turns):
        placed = lane.next()
        assert placed is not None
        order.append(placed.user)
        lane.join(placed.user)
    return order


@given(st.dictionaries(st.sampled_from("abcdef"), weights, min_size=2))
def test_turns_are_in_proportion_to_the_weights_at_any_moment(given_weights: dict[str, float]) -> None:
    order, turns = backlogged(given_weights, 120), Counter[str]()
    for user in order:
        turns[user] += 1
        for a, weight_a in given_weights.items():
            for b, weight_b in given_weights.items():
                assert abs(turns[a] / weight_a - turns[b] / weight_b) <= 1 / weight_a + 1 / weight_b + 1e-6


@given(st.dictionaries(st.sampled_from("abcdef"), weights, min_size=1), st.integers(0, 60), weights)
def test_nobody_starves(given_weights: dict[str, float], before: int, weight: float) -> None:
    """Who comes when the others have been at it for long waits for no more than their share of one turn."""
    everyone = {**given_weights, "new": weight}
    lane = _Lane(Limits(1, 10_000, 5_000), lambda user: everyone[user])
    lane.free = 0
    for user in given_weights:
        lane.join(user)
        lane.join(user)
    for _ in range(before):
        placed = lane.next()
        assert placed is not None
        lane.join(placed.user)
    lane.join("new")
    most = sum(other / weight + 2 for other in given_weights.values())
    for waited in range(10_000):
        placed = lane.next()
        assert placed is not None
        if placed.user == "new":
            assert waited <= most
            break
        lane.join(placed.user)


@given(st.integers(1, 3), st.integers(0, 6), st.data())
def test_no_place_is_lost_or_given_twice_whatever_happens(
    places: int, room: int, data: st.DataObject
) -> None:
    lane = _Lane(Limits(places, room, (room + 1) // 2), lambda user: {"a": 1.0, "b": 2.0}.get(user, 0.5))
    held, waiting = 0, list[_Waiter]()
    for action in data.draw(st.lists(st.sampled_from(["come a", "come b", "come c", "leave", "give up"]))):
        if action == "leave" and held:
            placed = lane.next()
            if placed is None:
                held -= 1
                assert not waiting
            else:
                assert placed.outcome is True
                waiting.remove(placed)
        elif action == "give up" and waiting:
            lane.leave(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        elif action.startswith("come"):
            if lane.free:
                lane.free -= 1
                held += 1
                continue
            waiter, out = lane.join(action[-1])
            if out is not None:
                assert out.outcome is False
                assert out.user != action[-1]
                waiting.remove(out)
            if waiter is not None:
                waiting.append(waiter)
        assert lane.length == len(waiting) <= room
        assert held + lane.free == places
        assert max(Counter(w.user for w in waiting).values(), default=0) <= (room + 1) // 2


def test_64_threads_never_hold_more_places_than_there_are_and_leave_none_behind() -> None:
    queue, lock = queue_of(3, threads=1024), threading.Lock()
    holding, most = 0, 0

    def ask(number: int) -> str:
        nonlocal holding, most
        where = random.Random(number)  # noqa: S311  how requests end, no secret
        try:
            with queue.place(
                caller(f"user-{number % 7}"), "m", time.monotonic() + where.choice([0, 0.01, 5])
            ):
                with lock:
                    holding += 1
                    most = max(most, holding)
                time.sleep(where.random() / 500)
                with lock:
                    holding -= 1
                _ = 1 / where.choice([0, 1, 2])
        except OverloadedError:
            return "refused"
        except ZeroDivisionError:
            return "failed"
        return "answered"

    with ThreadPoolExecutor(64) as pool:
        outcomes = Counter(pool.map(ask, range(600)))
    assert sum(outcomes.values()) == 600
    assert outcomes["answered"] > 0
    assert most <= 3
    lane = queue._lanes["m"]
    assert (lane.free, lane.length, lane._waiting) == (3, 0, {})
    assert metric(queue, "tallybook_queue_waiting") == 0
    assert metric(queue, "tallybook_queue_refused_total") == outcomes["refused"]


def test_a_turn_that_does_not_come_by_the_deadline_is_refused_and_held_by_nobody() -> None:
    queue = queue_of(1)
    with queue.place(caller("a"), "m", time.monotonic() + SOON):
        with pytest.raises(OverloadedError, match="deadline"):
            queue.place(caller("b"), "m", time.monotonic() + 0.02)
        assert queue._lanes["m"].length == 0
    with queue.place(caller("b"), "m", time.monotonic()):
        pass
    assert metric(queue, 'tallybook_queue_refused_total{model="m",reason="deadline"}') == 1


def refused_in_full_room(waiting: list[str], newcomer: str) -> tuple[list[str], list[str]]:
    """Who was refused, and in which order the others were served, when one more came."""
    queue, served, refused = queue_of(1, threads=32), list[str](), list[str]()  # room for 4, 2 of a user

    def ask(user: str) -> None:
        try:
            with queue.place(caller(user), "m", time.monotonic() + SOON):
                served.append(user)
        except OverloadedError:
            refused.append(user)

    with ThreadPoolExecutor(8) as pool, queue.place(caller("first"), "m", time.monotonic() + SOON):
        for number, user in enumerate(waiting, 1):
            pool.submit(ask, user)
            wait_until(lambda number=number: queue._lanes["m"].length == number)  # type: ignore[misc]
        last = pool.submit(ask, newcomer)
        wait_until(lambda: bool(refused) or last.done())
    return refused, served


@pytest.mark.parametrize(
    ("waiting", "newcomer", "refused"),
    [
        (["a", "a"], "a", "a"),  # his half of the room is full
        (["a", "a", "b", "b"], "c", "a"),  # of those who have most, somebody makes room
        (["a", "b", "c", "d"], "e", "e"),  # all have one already
        (["a", "a", "b", "c"], "b", "b"),  # he would have as many as who has most
    ],
)
def test_who_has_most_waiting_is_refused_when_the_room_is_full(
    waiting: list[str], newcomer: str, refused: str
) -> None:
    out, served = refused_in_full_room(waiting, newcomer)
    assert out == [refused]
    assert Counter(served) == Counter([*waiting, newcomer]) - Counter([refused])


def test_models_do_not_wait_for_each_other() -> None:
    queue = queue_of(1)
    with queue.place(caller("a"), "m", time.monotonic()), queue.place(caller("a"), "n", time.monotonic()):
        pass


def test_one_slow_model_leaves_threads_to_the_others() -> None:
    settings = ServingSettings(model="m", threads=64, engine_requests=1000, queue_places={"tuned": 200})
    assert limits(settings, "m") == (48, 8, 4)
    assert limits(settings, "engine") == (1000, 125, 63)
    assert limits(settings, "tuned") == (200, 125, 63)
    assert limits(ServingSettings(model="m", threads=1), "m") == (1, 0, 0)


def test_all_engines_together_hold_no_more_threads_than_there_are() -> None:
    queue = Queue(ServingSettings(engine_requests=2), Metrics())
    for _ in range(3):
        with (
            queue.place(caller("a"), "x", 0),
            queue.place(caller("a"), "y", 0),
            pytest.raises(OverloadedError, match="2 requests"),
        ):
            queue.place(caller("a"), "z", 0)


def test_threads_are_counted_back_however_a_request_ends() -> None:
    threads = Threads(1)

    def fail() -> None:
        with threads:
            raise KeyError

    for _ in range(3):
        with pytest.raises(KeyError):
            fail()
    with threads, pytest.raises(OverloadedError), threads:
        pass
    with threads:
        pass


def test_ever_new_users_do_not_starve_one_who_has_been_served_before() -> None:
    lane = _Lane(Limits(1, 10, 5), lambda _: 1.0)
    lane.free = 0
    for _ in range(3):
        lane.join("always")
    served = []
    for number in range(100):
        lane.join(f"new-{number}")
        placed = lane.next()
        assert placed is not None
        served.append(placed.user)
    assert served.count("always") == 3


def test_users_who_came_once_are_not_remembered() -> None:
    lane = _Lane(Limits(1, 10, 5), lambda _: 1.0)
    lane.free = 0
    lane.join("always")
    for number in range(2000):
        lane.join(f"user-{number}")
        assert lane.next() is not None
    assert len(lane._finishes) <= 200
