"""The events of a simulated day, as lines of a journal segment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from billing.simulation.world import BATCH_MODEL, DEPARTMENTS, MODELS, PROJECTS, UNPRICED, World
from tallybook.calendar import day_interval
from tallybook.usage import EVENT_TYPE, MAX_TOKENS

SOURCE = "tallybook/simulated"  # every simulated event says so
_STRANGE_ADDRESS = "203.0.113.77"  # of a network that RFC 5737 keeps for examples
_TRIAL_DAYS, _TRIAL_REQUESTS = 3, 12  # of the model without a price, at the end of the history
_FAILING, _FAILING_IN_OUTAGE = 0.004, 0.2
_ALL_MODELS = (*MODELS, UNPRICED)
# What part of a day's requests falls into each hour.
_HOURS = {
    "office": (1, 1, 0.5, 0.5, 0.5, 1, 2, 5, 14, 26, 30, 26, 14, 20, 28, 30, 27, 20, 11, 7, 5, 4, 3, 2),
    "service": (4, 3, 2, 2, 2, 3, 5, 8, 13, 17, 20, 20, 18, 17, 18, 19, 19, 19, 20, 22, 22, 18, 12, 7),
    "night": (0, 10, 30, 30, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}


class _Requests(NamedTuple):
    """Who asks which model for which project: an entry of each array is a request."""

    user: NDArray[np.int64]
    project: NDArray[np.int64]
    model: NDArray[np.int64]
    strange: NDArray[np.bool_]  # from an address that is not the user's

    def __add__(self, other: object) -> _Requests:
        if not isinstance(other, _Requests):
            return NotImplemented
        user, project, model = (np.concatenate(both) for both in zip(self[:3], other[:3], strict=True))
        return _Requests(user, project, model, np.concatenate((self.strange, other.strange)))

    def some(self, which: NDArray[np.int64]) -> _Requests:
        return _Requests(self.user[which], self.project[which], self.model[which], self.strange[which])


def day_lines(world: World, number: int, zone: tzinfo) -> Iterator[bytes]:
    """The events of one day in the order of their time; the same for the same world and day."""
    chance = np.random.default_rng([world.seed, len(world.users), world.days, number])
    asked = _usual(world, number, chance)
    for surge in world.surges:
        if surge.on(number):
            asked = _planted(world, asked, surge.kind, surge.name, surge.factor, chance)
    if number >= world.days - _TRIAL_DAYS:
        trial = asked.some(chance.integers(0, len(asked.user), _TRIAL_REQUESTS)) if len(asked.user) else asked
        asked += trial._replace(model=np.full(len(trial.user), len(MODELS)))
    return _lines(world, number, zone, asked, chance)


def _usual(world: World, number: int, chance: np.random.Generator) -> _Requests:
    """What people ask for on a day of the week, with the growth of their departments, and chance."""
    day = world.day(number)
    weekend = day.weekday() >= 5
    of_department = np.array(
        [
            (d.weekend if weekend else (1.05, 1.02, 1.0, 1.0, 0.93)[day.weekday()])
            * (1 + d.growth) ** (number / 30)
            * chance.lognormal(0, 0.05)
            for d in DEPARTMENTS
        ]
    )
    expected = world.activity * of_department[world.department] * world.present[:, number]
    expected[-1] = world.activity[-1]  # the batch job knows no weekend
    moods = chance.gamma(8, 1 / 8, len(expected))
    moods[-1] = 1
    user = np.repeat(np.arange(len(expected)), chance.poisson(expected * moods))
    return _drawn(world, user, chance)


def _drawn(world: World, user: NDArray[np.int64], chance: np.random.Generator) -> _Requests:
    """Requests of these users, each for one of their projects, and for a model that the project uses."""
    main = chance.random(len(user)) < 0.85
    project = np.where(main, world.projects[user, 0], world.projects[user, 1])
    shares = np.array([[p.mix.get(m.name, 0.0) for m in MODELS] for p in PROJECTS]).cumsum(axis=1)
    model = (chance.random(len(user))[:, None] >= shares[project][:, :-1]).sum(axis=1)
    names = [m.name for m in MODELS]
    model = np.where(user == len(world.users) - 1, names.index(BATCH_MODEL), model)
    return _Requests(user, project, model, np.zeros(len(user), bool))


def _planted(
    world: World, asked: _Requests, kind: str, name: str, factor: float, chance: np.random.Generator
) -> _Requests:
    """The day with a surge: what is in its scope, `factor` times."""
    if kind == "project":
        scope = asked.project == next(n for n, p in enumerate(PROJECTS) if p.name == name)
    elif kind == "model":
        scope = asked.model == next(n for n, m in enumerate(MODELS) if m.name == name)
    else:
        scope = asked.user == world.users.index(name)
    where = np.flatnonzero(scope)
    if not len(where) and kind == "user":  # a script needs nobody at the desk
        one = _drawn(world, np.array([world.users.index(name)]), chance)
        asked, where = asked + one, np.array([len(asked.user)])
    if not len(where):
        return asked
    if kind == "address":
        stolen = asked.some(chance.choice(where, int(factor)))
        return asked + stolen._replace(strange=np.ones(len(stolen.user), bool))
    # On a quiet day too it is so many times what is usual.
    usual = len(where)
    if kind == "user":
        usual = max(usual, round(float(world.activity[world.users.index(name)])))
    elif kind == "project":
        own = [PROJECTS[project].name == name for project in world.projects[:, 0]]
        usual = max(usual, round(float(world.activity[:-1][own[:-1]].sum())))
    return asked + asked.some(chance.choice(where, round((factor - 1) * usual)))


def _lines(
    world: World, number: int, zone: tzinfo, asked: _Requests, chance: np.random.Generator
) -> Iterator[bytes]:
    count = len(asked.user)
    start, end = day_interval(world.day(number), zone)
    fraction = np.empty(count)
    department = np.array([p.department for p in PROJECTS])[asked.project]
    rhythm = np.array([("office", "service").index(DEPARTMENTS[d].hours) for d in range(len(DEPARTMENTS))])
    pace = np.where(asked.user == len(world.users) - 1, 2, rhythm[department])
    for place, name in enumerate(("office", "service", "night")):
        chosen = np.flatnonzero(pace == place)
        weights = np.array(_HOURS[name])
        hours = chance.choice(24, len(chosen), p=weights / weights.sum())
        fraction[chosen] = (hours + chance.random(len(chosen))) / 24
    order = np.argsort(fraction, kind="stable")
    asked, department, fraction = asked.some(order), department[order], fraction[order]
    micros = (fraction * ((end - start).total_seconds() * 1e6)).astype(np.int64)
    first = np.datetime64(start.replace(tzinfo=None), "us")
    times = np.datetime_as_string(first + micros.astype("timedelta64[us]"), unit="us")
    millis = (micros + int(start.timestamp() * 1e6)) // 1000
    version = _versions(world, number, asked, chance)
    prompt, cached, completion, seconds, to_first = _sizes(asked, version, chance)
    failing = _FAILING_IN_OUTAGE if number == world.outage else _FAILING
    failed = chance.random(count) < failing
    for counted in (prompt, cached, completion):
        counted[failed] = 0
    bits = chance.integers(0, 1 << 60, (count, 2))
    office = chance.random(count) < 0.92
    tails = _tails(world)
    for row in zip(
        times.tolist(), millis.tolist(), bits.tolist(), asked.user.tolist(), asked.project.tolist(),
        asked.model.tolist(), version.tolist(), prompt.tolist(), cached.tolist(), completion.tolist(),
        seconds.tolist(), to_first.tolist(), failed.tolist(), asked.strange.tolist(), office.tolist(),
        strict=True,
    ):  # fmt: skip
        time, ms, (high, low), user, project, model, which, p, c, out, took, ttft, bad, strange, home = row
        event_id = (
            f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{high & 0xFFF:03x}-"
            f"{0x8000 | high >> 12 & 0x3FFF:04x}-{low & 0xFFFFFFFFFFFF:012x}"
        )
        address = _STRANGE_ADDRESS if strange else _address(user, home)
        first_token = f'"time_to_first_token_seconds":{ttft:.4f},' if ttft and not bad else ""
        yield (
            f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"{EVENT_TYPE}",'
            f'"subject":"{world.users[user]}","time":"{time}+00:00","datacontenttype":"application/json",'
            f'"data":{{"project":"{PROJECTS[project].name}",{tails[project, model, which]},'
            f'"prompt_tokens":{p},"completion_tokens":{out},"cached_tokens":{c},'
            f'"usage_estimated":false,"duration_seconds":{took:.4f},{first_token}'
            f'"client_ip":"{address}","status":{503 if bad else 200},"total_tokens":{p + out}}}}}'
        ).encode()


def _versions(world: World, number: int, asked: _Requests, chance: np.random.Generator) -> NDArray[np.int64]:
    """Which version answers: a canary gets a tenth of the requests; 2 * index, and 1 more as a canary."""
    part = number / world.days
    drawn = chance.random(len(asked.user))
    found = np.zeros(len(asked.user), np.int64)
    for place, model in enumerate(_ALL_MODELS):
        for index, version in enumerate(model.versions[1:], 1):
            here = asked.model == place
            if part >= version.stable_from:
                found[here] = 2 * index
            elif part >= version.canary_from:
                found[here & (drawn < 0.1)] = 2 * index + 1
    return found


def _sizes(
    asked: _Requests, version: NDArray[np.int64], chance: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Prompt, cached and completion tokens, seconds, and seconds to the first token (0: not streamed)."""
    count = len(asked.user)
    normal = chance.normal(size=(4, count))
    middle = np.array([(*m.prompt, *m.completion, *m.seconds, m.cached) for m in _ALL_MODELS])[asked.model].T
    longer, slower = np.ones(count), np.ones(count)
    for place, model in enumerate(_ALL_MODELS):
        for index, one in enumerate(model.versions):
            chosen = (asked.model == place) & (version // 2 == index)
            longer[chosen], slower[chosen] = one.completion, one.seconds
    prompt = np.maximum(4, middle[0] * np.exp(middle[1] * normal[0])).astype(np.int64)
    completion = (middle[2] * np.exp(middle[3] * normal[1]) * longer).astype(np.int64)
    prompt, completion = np.minimum(prompt, MAX_TOKENS), np.minimum(completion, MAX_TOKENS)
    cached = np.where(chance.random(count) < middle[6], prompt // 2, 0)
    noise = np.exp(0.25 * normal[2])
    seconds = (middle[4] + middle[5] * completion) * slower * noise
    to_first = np.where(middle[5] > 0, middle[4] * slower * np.exp(0.2 * normal[3]), 0.0)
    return prompt, cached, completion, seconds, np.minimum(to_first, seconds)


def _tails(world: World) -> dict[tuple[int, int, int], str]:
    """What is the same in every event of a project, model and version, as JSON."""
    found = {}
    for place, project in enumerate(PROJECTS):
        for number, model in enumerate(_ALL_MODELS):
            for index, version in enumerate(model.versions):
                fingerprint = sha256(f"{model.name} {version.name}".encode()).hexdigest()
                for canary in (0, 1):
                    label = "canary" if canary else "stable"
                    found[place, number, 2 * index + canary] = (
                        f'"department":"{DEPARTMENTS[project.department].name}",'
                        f'"operation":"{model.operation}","model":"{model.name}",'
                        f'"model_version":"{version.name}","model_label":"{label}",'
                        f'"latency_class":"standard","tokenizer_fingerprint":"{fingerprint}"'
                    )
    return found


def _address(user: int, office: bool) -> str:
    """Where a user asks from: an office network of their own, now and then a network of the VPN."""
    return f"10.{user >> 8 & 255}.{user & 255}.7" if office else f"172.20.{user & 255}.{user >> 8 & 255}"
