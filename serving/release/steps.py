"""The acts of a release: adopt, stage, canary, promote, roll back. Nobody's request fails by any of them.

Each writes the model config first and then has the model server load it, since the file is the truth: a
server that starts anew, and every replica that follows the file, comes to the same. A version is loaded
before anybody is sent to it, and nobody is sent to one before it is unloaded; who is on the way to it even
so is answered by its successor. What the server refuses is taken back out of the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from serving.errors import ApiError, ModelUnavailableError, ModelVersionNotFoundError
from serving.inference import VersionState
from serving.protos import Message, model_server_config_pb2
from serving.release.files import (
    CANARY,
    PREVIOUS,
    STABLE,
    ConfigError,
    entry_of,
    read_config,
    read_shares,
    write_config,
    write_shares,
)
from serving.release.share import percent
from serving.tokenization import VersionRefusedError, load_version

_TICK_SECONDS = 0.2
_STALE_SECONDS = 5.0  # for so long a version may still show that it failed before it was tried again
_CALL_SECONDS = 30.0


class ReleaseError(Exception):
    """A step that can't be taken; `code` is stable, the message is for people. Nothing has changed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelServer(Protocol):
    """What a release asks of the model server."""

    def versions(self, model: str, timeout_seconds: float) -> dict[int, VersionState]:
        """Every version that the server knows of."""
        ...

    def reload(self, config: Message, timeout_seconds: float) -> None:
        """Have it serve what the config says."""
        ...


class Place(NamedTuple):
    """Where things are. `served_models_dir` is models_dir as the model server sees it."""

    config_path: Path
    models_dir: Path
    served_models_dir: Path


Act = Callable[[str, Mapping[str, Any]], None]


class Releases:
    """Takes the steps of one model's release, one at a time over all processes."""

    def __init__(
        self, place: Place, server: ModelServer, model: str, record: Act, load_seconds: float = 300.0
    ) -> None:
        """`record(deed, details)` makes an act durable before the step takes effect.

        `load_seconds`: how long a version may take to load.
        """
        self._place = place
        self._server = server
        self._model = model
        self._record = record
        self._load_seconds = load_seconds

    def adopt(self) -> int:
        """Make what answers now the stable version, so that a newer one is not taken by itself; it.

        Raises: ReleaseError: `nothing_served`. A model that has a stable version already keeps it.
        """
        with self._changing() as config:
            entry = self._entry(config)
            stable = self._label(entry, STABLE)
            if stable is not None:
                return stable
            stable = self._adopt(entry)
            if stable is None:
                raise ReleaseError("nothing_served", f"the model server has no version of {self._model}")
            self._apply(config, entry, keep={stable})
            return stable

    def stage(self, version: int | None = None) -> int:
        """Load a version, the newest exported one if none is named, beside those in service; it.

        Raises: ReleaseError: `version_unknown`; `version_refused`: the API can't count for it;
            `version_not_loaded`: the server could not load it, and why.
        """
        with self._changing() as config:
            return self._stage(config, version)

    def canary(self, version: int | None, share: int) -> int:
        """Let a version answer a share of the users, in hundredths of a percent; it is staged if need be.

        Without a version: the canary of now, whose share changes, else the newest exported one.
        Raises: ReleaseError: as `stage`; `no_stable_version`; `version_is_stable`.
        """
        with self._changing() as config:
            entry = self._entry(config)
            stable, now = self._label(entry, STABLE), self._label(entry, CANARY)
            if stable is None:
                raise ReleaseError(
                    "no_stable_version", f"{self._model} has no stable version yet: promote one, or adopt it"
                )
            wanted = version or now or self._newest()
            if wanted == stable:
                raise ReleaseError("version_is_stable", f"version {wanted} is the stable one")
            if wanted != now:
                self._stage(config, wanted)
                entry = self._entry(config)
            self._record("canaried", {"version": wanted, "stable": stable, "percent": percent(share)})
            if wanted != now:
                entry.version_labels[CANARY] = wanted
                with self._no_share():  # the one that is there was decided for another version
                    self._apply(config, entry, drop={now} if now else set())
            self._share(share)
            return wanted

    def promote(self, version: int | None = None) -> int:
        """Make the canary, or the version that is named, the stable one; the one before stays loaded.

        Raises: ReleaseError: `no_canary`; as `stage`.
        """
        with self._changing() as config:
            entry = self._entry(config)
            stable, now = self._label(entry, STABLE), self._label(entry, CANARY)
            wanted = version or now
            if wanted is None:
                raise ReleaseError("no_canary", f"{self._model} has no canary: name the version to promote")
            if wanted == stable:
                raise ReleaseError("version_is_stable", f"version {wanted} is the stable one already")
            if wanted != now:
                self._stage(config, wanted)
                entry = self._entry(config)
            self._record("promoted", {"version": wanted, "before": stable})
            entry.version_labels[STABLE] = wanted
            entry.version_labels.pop(CANARY, None)
            if stable is not None:
                entry.version_labels[PREVIOUS] = stable
            self._apply(config, entry, keep=set(entry.version_labels.values()))
            self._share(None)
            return wanted

    def rollback(self) -> tuple[int, int]:
        """Take the canary out of service, or, without one, go back to the version before the stable one.

        Returns: the version that is taken out, and the stable one.
        Raises: ReleaseError: `nothing_to_roll_back`.
        """
        with self._changing() as config:
            entry = self._entry(config)
            stable, now = self._label(entry, STABLE), self._label(entry, CANARY)
            before = self._label(entry, PREVIOUS)
            if now is not None and stable is not None:
                self._record("rolled_back", {"version": now, "stable": stable})
                del entry.version_labels[CANARY]
                self._apply(config, entry, drop={now})
                self._share(None)
                return now, stable
            if before is None or stable is None:
                raise ReleaseError(
                    "nothing_to_roll_back",
                    f"{self._model} has no canary, and no version before the stable one",
                )
            self._record("rolled_back", {"version": stable, "stable": before})
            entry.version_labels[STABLE] = before
            del entry.version_labels[PREVIOUS]
            self._apply(config, entry, drop={stable})
            return stable, before

    def _adopt(self, entry: Message) -> int | None:
        """Label what answers now as stable; None: nothing does."""
        available = self._available()
        if not available:
            return None
        self._record("adopted", {"version": max(available)})
        entry.version_labels[STABLE] = max(available)
        return max(available)

    def _stage(self, config: Message, version: int | None) -> int:
        wanted = version or self._newest()
        try:
            load_version(self._place.models_dir, self._model, wanted)
        except VersionRefusedError as error:
            code = "version_refused" if self._folder(wanted).is_dir() else "version_unknown"
            raise ReleaseError(code, f"version {wanted} of {self._model}: {error}") from None
        entry = self._entry(config)
        had = self._specific(entry)
        if self._label(entry, STABLE) is None:
            self._adopt(entry)  # else the newest answers, which the staged one is about to be
        elif wanted in had and wanted in self._available():
            return wanted
        self._record("staged", {"version": wanted})
        self._apply(config, entry, add={wanted})
        try:
            self._wait_for(wanted)
        except ReleaseError as error:
            self._record("undone", {"version": wanted, "why": str(error)})
            self._apply(config, entry, drop={wanted} - had)
            raise
        return wanted

    def _wait_for(self, version: int) -> None:
        started = time.monotonic()
        told = "it is not there"
        while (waited := time.monotonic() - started) < self._load_seconds:
            known = self._versions().get(version)
            if known is not None and known.state == "AVAILABLE":
                return
            if known is not None:
                told = known.error or f"it is {known.state}"
                if known.state == "END" and known.error and waited > _STALE_SECONDS:
                    break
            time.sleep(_TICK_SECONDS)
        raise ReleaseError(
            "version_not_loaded", f"the model server does not load version {version} of {self._model}: {told}"
        )

    def _apply(
        self,
        config: Message,
        entry: Message,
        keep: set[int] | None = None,
        add: set[int] | None = None,
        drop: set[int] | None = None,
    ) -> None:
        """Write the config with these versions of the model loaded, and have the server load it."""
        versions = (self._specific(entry) if keep is None else keep) | (add or set())
        labelled = set(entry.version_labels.values())
        versions = (versions - (drop or set())) | labelled
        entry.model_version_policy.Clear()
        entry.model_version_policy.specific.versions.extend(sorted(versions))
        before = read_config(self._place.config_path)
        write_config(self._place.config_path, config)
        try:
            self._server.reload(config, _CALL_SECONDS)
        except ApiError as error:
            if before is None:
                self._place.config_path.unlink()
            else:
                write_config(self._place.config_path, before)
            self._record("undone", {"why": error.message})
            code = "server_unreachable" if isinstance(error, ModelUnavailableError) else "server_refused"
            raise ReleaseError(code, error.message) from error

    @contextmanager
    def _no_share(self) -> Iterator[None]:
        """Take the canary's share away; give it back if what is done meanwhile fails."""
        before = read_shares(self._place.config_path).get(self._model)
        self._share(None)
        try:
            yield
        except ReleaseError:
            self._share(before)
            raise

    def _share(self, share: int | None) -> None:
        shares = read_shares(self._place.config_path)
        shares.pop(self._model, None)
        if share is not None:
            shares[self._model] = share
        write_shares(self._place.config_path, shares)

    def _entry(self, config: Message) -> Message:
        """The model's entry; a new one keeps what is served now."""
        entry = entry_of(config, self._model)
        if entry is None:
            base_path = str(self._place.served_models_dir / self._model)
            entry = config.model_config_list.config.add(
                name=self._model, base_path=base_path, model_platform="tensorflow"
            )
        return entry

    def _specific(self, entry: Message) -> set[int]:
        """The versions that the entry has loaded; of one that follows the newest, those in service now."""
        if entry.model_version_policy.WhichOneof("policy_choice") == "specific":
            return set(entry.model_version_policy.specific.versions)
        return self._available()

    def _label(self, entry: Message, label: str) -> int | None:
        return int(entry.version_labels[label]) if label in entry.version_labels else None

    def _versions(self) -> dict[int, VersionState]:
        try:
            return self._server.versions(self._model, _CALL_SECONDS)
        except ModelVersionNotFoundError:
            return {}
        except ApiError as error:
            raise ReleaseError("server_unreachable", error.message) from error

    def _available(self) -> set[int]:
        return {version for version, known in self._versions().items() if known.state == "AVAILABLE"}

    def _folder(self, version: int) -> Path:
        return self._place.models_dir / self._model / str(version)

    def _newest(self) -> int:
        found = exported(self._place.models_dir, self._model)
        if not found:
            raise ReleaseError(
                "version_unknown", f"{self._place.models_dir / self._model} has no exported version"
            )
        return found[-1]

    @contextmanager
    def _changing(self) -> Iterator[Message]:
        """The config, to change, while nobody else does; a first one has every model that is there."""
        path = self._place.config_path
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ReleaseError("release_under_way", f"another step is changing {path} now") from None
            try:
                config = read_config(path)
            except ConfigError as error:
                raise ReleaseError("config_invalid", str(error)) from None
            yield self._first_config() if config is None else config
        finally:
            os.close(lock)

    def _first_config(self) -> Message:
        config = model_server_config_pb2.ModelServerConfig()
        for name in models_in(self._place.models_dir):
            if name != self._model:
                config.model_config_list.config.add(
                    name=name,
                    base_path=str(self._place.served_models_dir / name),
                    model_platform="tensorflow",
                )
        return config


def exported(models_dir: Path, model: str) -> list[int]:
    """The versions of a model that are exported, oldest first."""
    folder = models_dir / model
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def models_in(models_dir: Path) -> list[str]:
    """The models that have an exported version."""
    if not models_dir.is_dir():
        return []
    return sorted(
        path.name for path in models_dir.iterdir() if path.is_dir() and exported(models_dir, path.name)
    )
