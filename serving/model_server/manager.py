"""Which versions are in service: loads new ones beside the old, publishes, drains and unloads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import grpc

from serving.model_server.batcher import Batcher, Batching
from serving.model_server.config import Configs, ModelConfig
from serving.model_server.errors import (
    InvalidRequestError,
    LabelError,
    LoadError,
    ModelsUnavailableError,
    NotServedError,
    one_line,
)
from serving.model_server.repository import Stamp, find_versions, stamp
from serving.model_server.signature import Arrays, Signature
from serving.model_server.wanted import Source
from serving.protos import Message
from serving.release.files import ConfigError

log = logging.getLogger(__name__)

LOADING, AVAILABLE, UNLOADING, END = "LOADING", "AVAILABLE", "UNLOADING", "END"
RETRY_SECONDS = 60.0


class Model(Protocol):
    """What the server needs of a loaded model; `loaded_model.LoadedModel` says more."""

    signature_definitions: Mapping[str, Message]

    def signature(self, name: str) -> Signature:
        """The signature of this name; "" is the default one."""

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Compute all outputs of a signature."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded version and the queue before it."""

    version: int
    model: Model
    batcher: Batcher


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """What is known of one version: its state, why it failed if it did, and the model while it is loaded."""

    version: int
    state: str
    error_code: grpc.StatusCode = grpc.StatusCode.OK
    error_message: str = ""
    served: ServedModel | None = None
    failed_stamp: Stamp = frozenset()
    failed_at: float = 0.0


class ModelManager:
    """Serves what its source, or the last `reload`, says. `poll` belongs to one thread; the rest to any."""

    def __init__(
        self,
        source: Source,
        load: Callable[[Path], Model],
        batching: Batching,
        labels_need_available: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` makes a model ready to answer, or raises LoadError.

        `labels_need_available`: no label may be put on a version that is not available; otherwise only a
        label that is moved may not. TensorFlow Serving's --allow_version_labels_for_unavailable_models is
        the opposite.
        """
        self.poll_wanted = threading.Event()  # set: poll now rather than later
        self._source = source
        self._load = load
        self._batching = batching
        self._labels_need_available = labels_need_available
        self._clock = clock
        self._lock = threading.Lock()
        self._polled = threading.Condition(self._lock)
        self._polls = 0
        self._polling = False
        self._configs: Configs = {}
        self._proposed: Configs | None = None
        self._records: dict[str, dict[int, VersionRecord]] = {}
        self._complaint = ""

    def poll(self) -> None:
        """Look at the source and the folders once, and do all that follows from it.

        A version that does not load stays out of service until its files change, or RETRY_SECONDS have
        passed; meanwhile an older one goes on. A version is unloaded when all that should be served
        instead are available.
        """
        self.poll_wanted.clear()
        complaints = self._adopt()
        with self._lock:
            self._polling = True
            configs = self._configs
            names = sorted({*configs, *self._records})
        for name in names:
            try:
                self._settle(name, configs.get(name))
            except OSError as error:
                complaints.append(
                    f"Could not find base path {error.filename} for servable {name} with error "
                    f"{error.strerror}; what is loaded of it goes on"
                )
        self._complain("; ".join(complaints))
        with self._polled:
            self._polls += 1
            self._polling = False
            self._polled.notify_all()

    def reload(self, configs: Configs, timeout_seconds: float) -> None:
        """Serve this from now on, until the source changes; waits for models that are new.

        Raises: LabelError: nothing is changed. ModelsUnavailableError: a new model has no version that loads.
        """
        with self._polled:
            self._check_labels(configs)
            new = [name for name in configs if name not in self._configs]
            self._configs, self._proposed = configs, None
            self._source.supersede()
            # A poll that is under way does not know of it yet; the one after it does.
            enough = self._polls + (2 if self._polling else 1)
            self.poll_wanted.set()
            if new and not self._polled.wait_for(lambda: self._polls >= enough, timeout_seconds):
                log.warning("new models are still loading: %s", ", ".join(new))
            failed = [name for name in new if not self._available_of(name)]
            told = "".join(f"{{{self._describe(name)}}}, " for name in failed)
        if failed:
            raise ModelsUnavailableError(f"{len(failed)} model(s) did not become available: {{{told}}}")

    def served(self, name: str, version: int | None) -> ServedModel:
        """The version that answers; None asks for the newest.

        Raises: NotServedError: it is not available.
        """
        with self._lock:
            records = self._records.get(name, {})
            for number in sorted(records, reverse=True) if version is None else [version]:
                record = records.get(number)
                if record is not None and record.state == AVAILABLE and record.served is not None:
                    return record.served
        which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise NotServedError(f"Servable not found for request: {which}")

    def labelled(self, name: str, label: str) -> int:
        """The version that carries a label. Raises: InvalidRequestError: none does."""
        with self._lock:
            config = self._configs.get(name)
        version = None if config is None else config.labels.get(label)
        if version is None:
            raise InvalidRequestError(f"Unrecognized servable version label: {label}")
        return version

    def records(self, name: str) -> list[VersionRecord]:
        """Every known version of a model, newest first; empty for an unknown model."""
        with self._lock:
            return sorted(self._records.get(name, {}).values(), key=lambda r: r.version, reverse=True)

    def available(self) -> dict[str, list[int]]:
        """The versions in service of every model that has one, by name."""
        with self._lock:
            return {name: found for name in sorted(self._records) if (found := self._available_of(name))}

    def waiting(self) -> int:
        """How many predictions are queued and not yet started, over all models."""
        with self._lock:
            records = [record for versions in self._records.values() for record in versions.values()]
        return sum(record.served.batcher.waiting for record in records if record.served is not None)

    def close(self) -> None:
        """Unload everything, after what is queued has been answered."""
        for name in list(self._records):
            for record in self.records(name):
                self._unload(name, record)

    def _adopt(self) -> list[str]:
        """Take over what the source says now; what was refused before is tried again. Returns complaints."""
        try:
            told = self._source.look()
        except ConfigError as error:
            return [f"going on with what is configured: {error}"]
        except OSError as error:
            return [f"keeping what is loaded: {error}"]
        with self._lock:
            self._proposed = self._proposed if told is None else told
            if self._proposed is not None:
                try:
                    self._check_labels(self._proposed)
                except LabelError as error:
                    return [f"going on with what is configured: {error}"]
                self._configs, self._proposed = self._proposed, None
        return []

    def _check_labels(self, configs: Configs) -> None:
        for name, config in configs.items():
            available, known = self._available_of(name), self._configs.get(name)
            for label, version in config.labels.items():
                before = version if known is None else known.labels.get(label, version)
                moved = self._labels_need_available or before != version
                if moved and version not in available:
                    raise LabelError(
                        f"Request to assign label to version {version} of model {name}, "
                        "which is not currently available for inference"
                    )

    def _settle(self, name: str, config: ModelConfig | None) -> None:
        folders = {} if config is None else find_versions(config.base_path)
        held_back = {
            record.version
            for record in self.records(name)
            if record.version in folders and self._holds_back(record, folders[record.version])
        }
        versions = [] if config is None else config.policy.wanted(folders, held_back)
        while config and (missing := [v for v in versions if not self._is_available(name, v)]):
            if not self._try_load(name, missing[0], folders[missing[0]]):
                held_back.add(missing[0])
                versions = config.policy.wanted(folders, held_back)
        if folders and not versions:
            return  # nothing that should be served loads: better a version that should not than none
        for record in self.records(name):
            if record.version not in versions:
                self._unload(name, record)
            if record.version not in folders:
                self._forget(name, record.version)

    def _is_available(self, name: str, version: int) -> bool:
        record = self._records.get(name, {}).get(version)
        return record is not None and record.state == AVAILABLE

    def _available_of(self, name: str) -> list[int]:
        records = self._records.get(name, {})
        return sorted(version for version, record in records.items() if record.state == AVAILABLE)

    def _describe(self, name: str) -> str:
        """A model that is not available, as TensorFlow Serving tells of it."""
        failed = [record for record in self._records.get(name, {}).values() if record.error_message]
        if not failed:
            return f"{{name: {name}}}"
        newest = max(failed, key=lambda record: record.version)
        why = f"{newest.error_code.name}: {newest.error_message}"
        return f"{{name: {name} version: {newest.version}}} due to error: {why}"

    def _holds_back(self, record: VersionRecord, folder: Path) -> bool:
        """Whether the version failed to load, and there is no reason yet to try again."""
        if record.error_code is grpc.StatusCode.OK or self._clock() - record.failed_at >= RETRY_SECONDS:
            return False
        return stamp(folder) == record.failed_stamp

    def _try_load(self, name: str, version: int, folder: Path) -> bool:
        before = stamp(folder)  # files that change while they are read make it worth another try
        self._set(name, VersionRecord(version, LOADING))
        started_at = self._clock()
        try:
            model = self._load(folder)
        except LoadError as error:
            record = VersionRecord(version, END, error.status, str(error), None, before, self._clock())
            self._set(name, record)
            log.warning("%s %d does not load: %s", name, version, error)
            return False
        served = ServedModel(version, model, Batcher(model.run, self._batching, f"{name} {version}"))
        self._set(name, VersionRecord(version, AVAILABLE, served=served))
        log.info("%s %d is available after %.1f s", name, version, self._clock() - started_at)
        return True

    def _unload(self, name: str, record: VersionRecord) -> None:
        if record.served is None:
            return
        self._set(name, replace(record, state=UNLOADING))
        record.served.batcher.close()
        record.served.model.close()
        self._set(name, VersionRecord(record.version, END))
        log.info("%s %d is unloaded", name, record.version)

    def _set(self, name: str, record: VersionRecord) -> None:
        with self._lock:
            self._records.setdefault(name, {})[record.version] = record

    def _forget(self, name: str, version: int) -> None:
        with self._lock:
            del self._records[name][version]
            if not self._records[name]:
                del self._records[name]

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            log.warning("%s", one_line(complaint))
        self._complaint = complaint
