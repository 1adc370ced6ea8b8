"""A made-up company whose usage is simulated: who uses what how much, and which surges are planted. Pure.

Everything follows from the arguments of `make_world`: the same ones make the same company.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybook.calendar import ONE_DAY

# No surge before this many days: a rule that asks for some weeks of history could not know better.
QUIET_DAYS = 42
ScopeKind = Literal["user", "project", "model", "address"]


class Department(NamedTuple):
    """How a department works: its share of users, its weekend, its growth a month, its busy hours."""

    name: str
    share: float
    weekend: float
    growth: float
    hours: Literal["office", "service"]


class Project(NamedTuple):
    """A project, and what part of its requests goes to each model."""

    name: str
    department: int
    mix: dict[str, float]


class Version(NamedTuple):
    """A model version: from which part of the history on it is a canary, and from which on it serves all."""

    name: str
    canary_from: float
    stable_from: float
    seconds: float  # how long an answer takes beside the first version's
    completion: float  # how many tokens an answer has beside the first version's
    accuracy: str  # what its model card says


class Model(NamedTuple):
    """What a request of a model is like: medians and spreads of log-normal lengths."""

    name: str
    operation: str
    prompt: tuple[float, float]
    completion: tuple[float, float]
    seconds: tuple[float, float]  # of every request, and for each completion token
    cached: float  # part of the requests whose prompt is half cached
    price: tuple[str, str]
    versions: tuple[Version, ...]


DEPARTMENTS = (
    Department("operations", 0.30, 0.75, 0.04, "service"),
    Department("search", 0.16, 0.35, 0.06, "office"),
    Department("retail", 0.22, 0.55, 0.02, "service"),
    Department("engineering", 0.20, 0.20, 0.08, "office"),
    Department("legal", 0.06, 0.08, -0.02, "office"),
    Department("finance", 0.06, 0.10, 0.0, "office"),
)
PROJECTS = (
    Project("customer-service", 0, {"chat": 0.6, "review-sentiment": 0.4}),
    Project("review-moderation", 0, {"review-sentiment": 0.9, "reply-writer": 0.1}),
    Project("search-ranking", 1, {"embeddings": 0.8, "review-sentiment": 0.2}),
    Project("query-understanding", 1, {"chat": 0.5, "embeddings": 0.5}),
    Project("reply-suggestions", 2, {"reply-writer": 0.8, "review-sentiment": 0.2}),
    Project("market-research", 2, {"review-sentiment": 0.6, "chat": 0.4}),
    Project("shop-assistant", 2, {"chat": 0.8, "embeddings": 0.2}),
    Project("code-assistant", 3, {"chat": 1.0}),
    Project("data-platform", 3, {"embeddings": 0.7, "chat": 0.3}),
    Project("contract-reader", 4, {"chat": 0.8, "embeddings": 0.2}),
    Project("invoice-reader", 5, {"chat": 0.5, "review-sentiment": 0.5}),
)
MODELS = (
    Model(
        "review-sentiment", "analyze", (70, 0.5), (17, 0.1), (0.012, 0.0), 0.0, ("0.80", "2.40"),
        (Version("1", 0.0, 0.0, 1.0, 1.0, "0.8480"), Version("2", 0.50, 0.56, 0.70, 1.0, "0.8700")),
    ),
    Model(
        "chat", "chat", (480, 0.7), (200, 0.6), (0.15, 0.011), 0.3, ("2.00", "6.00"),
        (Version("1", 0.0, 0.0, 1.0, 1.0, "0.7100"), Version("2", 0.70, 0.76, 1.1, 1.25, "0.7120")),
    ),
    Model(
        "reply-writer", "chat", (180, 0.5), (110, 0.5), (0.10, 0.010), 0.0, ("1.20", "4.80"),
        (Version("1", 0.0, 0.0, 1.0, 1.0, "0.7900"),),
    ),
    Model(
        "embeddings", "embeddings", (240, 0.5), (0, 0.0), (0.02, 0.0), 0.0, ("0.10", "0.10"),
        (Version("1", 0.0, 0.0, 1.0, 1.0, "0.6400"),),
    ),
)  # fmt: skip
UNPRICED = Model(
    "trial-model", "chat", (300, 0.5), (150, 0.5), (0.2, 0.012), 0.0, ("", ""),
    (Version("2026-preview", 0.0, 0.0, 1.0, 1.0, ""),),
)  # fmt: skip
BATCH_USER = "batch-embeddings"
BATCH_PROJECT, BATCH_MODEL = "data-platform", "embeddings"


@dataclass(frozen=True, slots=True)
class Surge:
    """Something unusual that was planted: whose usage is multiplied on which days, and why.

    Of an `address` the factor is how many requests come from it on each of the days.
    """

    kind: ScopeKind
    name: str
    first: int  # numbers of days, from 0 on
    last: int
    factor: float
    story: str

    def on(self, number: int) -> bool:
        """Whether it is under way on a day."""
        return self.first <= number <= self.last


@dataclass(frozen=True)
class World:
    """The company and its history; arrays have an entry for each user, the batch job being the last."""

    first_day: date
    days: int
    requests: float
    seed: int
    users: list[str]
    department: NDArray[np.int64]
    projects: NDArray[np.int64]  # [user, 2]: the main one and the other one
    activity: NDArray[np.float64]  # requests on a working day
    present: NDArray[np.bool_]  # [user, day]: neither on leave nor yet to come
    surges: tuple[Surge, ...]
    outage: int | None  # the day on which a fifth of the requests fail

    def day(self, number: int) -> date:
        """The billing day of a number."""
        return self.first_day + number * ONE_DAY

    def facts(self) -> dict[str, Any]:
        """What made this world: kept as the mark of a simulated ledger."""
        last = self.day(self.days - 1)
        return {
            "first_day": self.first_day.isoformat(),
            "last_day": last.isoformat(),
            "users": len(self.users) - 1,
            "requests_a_day": self.requests,
            "seed": self.seed,
        }

    def truth(self) -> dict[str, Any]:
        """What a back-test may be held against."""
        planted = [
            {**asdict(s), "first": self.day(s.first).isoformat(), "last": self.day(s.last).isoformat()}
            for s in self.surges
        ]
        return {"simulated": True, **self.facts(), "planted": planted}


def make_world(last_day: date, days: int, users: int, requests: float, seed: int) -> World:
    """Draw the company: `users` people, and a batch job, whose history of so many days ends with a day.

    `requests`: of a user on a working day, on average.
    """
    chance = np.random.default_rng([seed, users, days])
    weights = np.array([d.share for d in DEPARTMENTS])
    department = chance.choice(len(DEPARTMENTS), users, p=weights / weights.sum())
    of = [[n for n, p in enumerate(PROJECTS) if p.department == d] for d in range(len(DEPARTMENTS))]
    projects = np.array([chance.choice(of[d], 2) for d in department])
    spread = 0.8
    activity = requests * chance.lognormal(-spread * spread / 2, spread, users)
    present = np.ones((users + 1, days), bool)
    for user in range(users):
        if chance.random() < 0.2:  # joins later
            present[user, : int(chance.integers(0, max(1, int(days * 0.8))))] = False
        for _ in range(int(chance.poisson(days / 90))):
            start = int(chance.integers(0, days))
            present[user, start : start + int(chance.integers(3, 11))] = False
    batch_project = next(n for n, p in enumerate(PROJECTS) if p.name == BATCH_PROJECT)
    names = [f"user-{number:0{len(str(users))}}" for number in range(1, users + 1)]
    lengths = {m.name: m.prompt[0] + m.completion[0] for m in MODELS}
    of_project = np.array([sum(part * lengths[m] for m, part in p.mix.items()) for p in PROJECTS])
    surges = _surges(chance, names, activity * of_project[projects[:, 0]], present, days)
    return World(
        first_day=last_day - (days - 1) * ONE_DAY,
        days=days,
        requests=requests,
        seed=seed,
        users=[*names, BATCH_USER],
        department=np.append(department, PROJECTS[batch_project].department),
        projects=np.vstack([projects, [[batch_project, batch_project]]]),
        activity=np.append(activity, 40 * requests),
        present=present,
        surges=surges,
        outage=int(days * 0.4) if days > QUIET_DAYS else None,
    )


def _surges(
    chance: np.random.Generator,
    names: list[str],
    tokens: NDArray[np.float64],
    present: NDArray[np.bool_],
    days: int,
) -> tuple[Surge, ...]:
    """Surges at days some way apart, from QUIET_DAYS on; of users that were there all along.

    `tokens`: what each user needs on a working day; somebody who needs few has no surge that matters.
    """
    room = list(range(QUIET_DAYS, days - 2, 6))
    chance.shuffle(room)
    busy = np.argsort(tokens)[::-1][: max(3, len(names) // 4)]
    found: list[Surge] = []

    def take(count: int) -> list[int]:
        nonlocal room
        taken, room = room[:count], room[count:]
        return [number + int(chance.integers(0, 3)) for number in taken]

    if days > QUIET_DAYS + 7:
        found += [
            Surge("user", BATCH_USER, n, n + 1, 20.0, "a batch job that runs wild over a night and a day")
            for n in take(1)
        ]
    for number in take(round((days - QUIET_DAYS) / 25)):
        there = [u for u in busy if present[u, : number + 2].mean() > 0.9 and present[u, number]]
        if there:
            user = names[int(chance.choice(there))]
            factor = float(chance.integers(10, 19))
            found.append(Surge("user", user, number, number, factor, "a script that asks again and again"))
    for number in take(round((days - QUIET_DAYS) / 50)):
        project = PROJECTS[int(chance.integers(0, len(PROJECTS)))].name
        factor = float(chance.integers(6, 9))
        found.append(Surge("project", project, number, number, factor, "a campaign"))
    for number in take(round((days - QUIET_DAYS) / 100)):
        model = MODELS[int(chance.integers(0, len(MODELS)))].name
        found.append(Surge("model", model, number, number, 7.0, "everything is evaluated anew"))
    for number in take(round((days - QUIET_DAYS) / 60)):
        there = [u for u in busy if present[u, : number + 2].mean() > 0.9 and present[u, number]]
        if there:
            user = names[int(chance.choice(there))]
            found.append(Surge("address", user, number, number, 40.0, "a key that was copied"))
    return tuple(sorted(found, key=lambda s: (s.first, s.kind, s.name)))
