"""Which version answers whom: the stable one, the canary for its share of users, or the newest there is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from serving.errors import ApiError, ModelUnavailableError
from serving.release.files import CANARY, PREVIOUS, STABLE, ConfigError, Release, ReleaseFiles
from serving.release.share import falls_to_canary, percent
from serving.tokenization import ModelVersion, Task, VersionRefusedError, load_version

_LOOK_SECONDS = 2.0  # how long the model server may take to say what it serves

log = logging.getLogger(__name__)


class ModelServer(Protocol):
    """The one thing that a catalog asks of the model server."""

    def version_states(self, model: str, timeout_seconds: float) -> dict[int, str]:
        """The state of each version that the server knows of, such as AVAILABLE."""
        ...


class Choice(NamedTuple):
    """A version that answers, and the label under which it does; None where nothing is labelled."""

    version: ModelVersion
    label: str | None


class _Routes(NamedTuple):
    """Who answers: `main`, but `canary` those users who fall to its share."""

    main: Choice | None = None
    canary: Choice | None = None
    share: int = 0


class Catalog:
    """Follows the model server's versions and the release's files, in a thread of its own.

    Where the model config has the model, its labels say who answers: `stable`, and `canary` for its share of
    the users. A labelled version that is not available is stood in for by the newest that is, so that a
    request is rather answered by another version than by none; so are all where nothing is labelled.
    Safe for many threads.
    """

    def __init__(
        self,
        server: ModelServer,
        models_dir: Path,
        model: str,
        poll_seconds: float,
        config_path: Path | None = None,
        task: Task = "classification",
    ) -> None:
        """Look once, then every `poll_seconds`.

        `config_path` None: `models.config` in models_dir. `task`: versions made for another are refused.
        """
        self.since = int(time.time())
        self._task = task
        self._server = server
        self._models_dir = models_dir
        self._model = model
        self._poll_seconds = poll_seconds
        self._files = ReleaseFiles(config_path or models_dir / "models.config", model)
        self._release: Release | None = None
        self._complaint: str | None = None
        self._known: dict[int, ModelVersion] = {}
        self._refused: dict[int, str] = {}
        self._routes = _Routes()
        self._problem: str | None = None
        self._looks = 0
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._follow, name="catalog", daemon=True)
        self._thread.start()

    def choose(self, user: str) -> Choice:
        """The version that answers this user now; the same one until the release changes.

        Raises: ModelUnavailableError: there is none, and why.
        """
        main, canary, share = self._routes
        if canary is not None and falls_to_canary(self._model, user, share):
            return canary
        if main is None:
            raise ModelUnavailableError(f"No version of {self._model} can answer: {self._problem}.")
        return main

    def current(self) -> ModelVersion:
        """The version that answers whoever does not fall to the canary.

        Raises: ModelUnavailableError: there is none, and why.
        """
        main = self._routes.main
        if main is None:
            raise ModelUnavailableError(f"No version of {self._model} can answer: {self._problem}.")
        return main.version

    def instead_of(self, gone: ModelVersion, user: str) -> Choice:
        """The version that answers this user now that the model server no longer has `gone`.

        Raises: ModelUnavailableError: there is none but the one that is gone.
        """
        looks = self._looks
        with self._looking:
            # Of many requests that lost the version in the same moment, one looks for all.
            if self._answers(gone) and self._looks == looks:
                self._look_now()
        main, canary, _ = self._routes
        for choice in (self.choose(user), main, canary):
            if choice is not None and choice.version is not gone:
                return choice
        raise ModelUnavailableError(f"Version {gone.version} of {self._model} is not served any more.")

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._model

    def problem(self) -> str | None:
        """Why no request can be answered now, or None."""
        return self._problem

    def refused(self) -> dict[int, str]:
        """Versions that the model server has available and the API can't count for, and why."""
        return dict(self._refused)

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self._look()
            except Exception:
                log.exception("looking for versions failed")

    def _look(self) -> None:
        with self._looking:
            self._look_now()

    def _answers(self, version: ModelVersion) -> bool:
        main, canary, _ = self._routes
        return any(choice is not None and choice.version is version for choice in (main, canary))

    def _look_now(self) -> None:
        self._looks += 1
        self._read_release()
        try:
            states = self._server.version_states(self._model, _LOOK_SECONDS)
        except ApiError as error:
            # Requests go on trying the version they know: the server may be back before the next look.
            self._note(error.message.rstrip("."))
            return
        available = sorted(
            (version for version, state in states.items() if state == "AVAILABLE"), reverse=True
        )
        self._known = {version: known for version, known in self._known.items() if version in available}
        self._refused = {version: why for version, why in self._refused.items() if version in available}
        labels = self._release.labels if self._release is not None else {}
        routes = self._route(available, labels)
        if routes != self._routes:
            self._switch(routes)
        self._note(None if routes.main else self._explain(states))

    def _read_release(self) -> None:
        try:
            self._release = self._files.read()
            complaint = None
        except ConfigError as error:
            complaint = f"going on with the release as it was: {error}"
        if complaint is not None and complaint != self._complaint:
            log.error("%s", complaint)
        self._complaint = complaint

    def _route(self, available: list[int], labels: Mapping[str, int]) -> _Routes:
        stable, canary = labels.get(STABLE), labels.get(CANARY)
        others = [number for number in available if number != canary]
        main = self._first([stable, labels.get(PREVIOUS), *others, canary], available, labels)
        aside = self._first([canary], available, labels)
        share = self._release.share if self._release is not None else 0
        return _Routes(main, aside, share)

    def _first(
        self, numbers: Iterable[int | None], available: Collection[int], labels: Mapping[str, int]
    ) -> Choice | None:
        """The first of these versions that is available and that the API can count for."""
        for number in numbers:
            version = self._load(number) if number is not None and number in available else None
            if version is not None:
                label = next((label for label in (STABLE, CANARY) if labels.get(label) == number), None)
                return Choice(version, label)
        return None

    def _load(self, number: int) -> ModelVersion | None:
        if number not in self._known:
            try:
                self._known[number] = load_version(self._models_dir, self._model, number, self._task)
            except VersionRefusedError as error:
                if self._refused.get(number) != str(error):
                    log.error("version %d of %s is refused: %s", number, self._model, error)  # noqa: TRY400 -- the message says it all
                self._refused[number] = str(error)
                return None
            self._refused.pop(number, None)
        return self._known[number]

    def _switch(self, routes: _Routes) -> None:
        if routes.main is not None:
            told = f"version {_told(routes.main)} of {self._model} answers"
            if routes.canary is not None:
                told += f", {_told(routes.canary)} for {percent(routes.share)}% of the users"
            log.info("%s", told)
        self._routes = routes

    def _explain(self, states: dict[int, str]) -> str:
        if self._refused:
            return "; ".join(f"version {number}: {why}" for number, why in sorted(self._refused.items()))
        if states:
            return ", ".join(f"version {number} is {state}" for number, state in sorted(states.items()))
        return "the model server has no version of it"

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            log.warning("%s can't answer: %s", self._model, problem)
        self._problem = problem


def _told(choice: Choice) -> str:
    return f"{choice.version.version}" + (f" ({choice.label})" if choice.label else "")
