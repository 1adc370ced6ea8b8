"""Which version answers: the newest that the model server has available and the API can count for."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Protocol

from serving.errors import ApiError, ModelUnavailableError
from serving.tokenization import ModelVersion, VersionRefusedError, load_version

_LOOK_SECONDS = 2.0  # how long the model server may take to say what it serves

log = logging.getLogger(__name__)


class ModelServer(Protocol):
    """The one thing that a catalog asks of the model server."""

    def version_states(self, model: str, timeout_seconds: float) -> dict[int, str]:
        """The state of each version that the server knows of, such as AVAILABLE."""
        ...


class Catalog:
    """Follows the model server's versions, in a thread of its own. Safe for many threads."""

    def __init__(self, server: ModelServer, models_dir: Path, model: str, poll_seconds: float) -> None:
        """Look once, then every `poll_seconds`."""
        self._server = server
        self._models_dir = models_dir
        self._model = model
        self._poll_seconds = poll_seconds
        self._known: dict[int, ModelVersion] = {}
        self._refused: dict[int, str] = {}
        self._current: ModelVersion | None = None
        self._problem: str | None = None
        self._looks = 0
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._follow, name="catalog", daemon=True)
        self._thread.start()

    def current(self) -> ModelVersion:
        """The version that answers now.

        Raises: ModelUnavailableError: there is none, and why.
        """
        version = self._current
        if version is None:
            raise ModelUnavailableError(f"No version of {self._model} can answer: {self._problem}.")
        return version

    def instead_of(self, gone: ModelVersion) -> ModelVersion:
        """The version that answers now that the model server no longer has `gone`.

        Raises: ModelUnavailableError: there is none but the one that is gone.
        """
        looks = self._looks
        with self._looking:
            # Of many requests that lost the version in the same moment, one looks for all.
            if self._current is gone and self._looks == looks:
                self._look_now()
        version = self.current()
        if version is gone:
            raise ModelUnavailableError(f"Version {gone.version} of {self._model} is not served any more.")
        return version

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

    def _look_now(self) -> None:
        self._looks += 1
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
        newest = next((version for number in available if (version := self._load(number))), None)
        if newest is not self._current:
            self._switch(newest)
        self._note(None if newest else self._explain(states))

    def _load(self, number: int) -> ModelVersion | None:
        if number not in self._known:
            try:
                self._known[number] = load_version(self._models_dir, self._model, number)
            except VersionRefusedError as error:
                if self._refused.get(number) != str(error):
                    log.error("version %d of %s is refused: %s", number, self._model, error)  # noqa: TRY400 -- the message says it all
                self._refused[number] = str(error)
                return None
            self._refused.pop(number, None)
        return self._known[number]

    def _switch(self, version: ModelVersion | None) -> None:
        if version is not None:
            log.info("version %d of %s answers", version.version, self._model)
        self._current = version

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
