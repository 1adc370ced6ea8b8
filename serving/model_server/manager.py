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

from serving.model_server.batcher import Batcher, BatchLimits
from serving.model_server.errors import LoadError, NotServedError, one_line
from serving.model_server.repository import Stamp, find_models, find_versions, stamp, wanted
from serving.model_server.signature import Arrays, Signature
from serving.protos import Message

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
    """Follows the folder of models. `poll` belongs to one thread; the other methods to any."""

    def __init__(
        self,
        models_dir: Path,
        load: Callable[[Path], Model],
        limits: BatchLimits,
        versions_kept: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` makes a model ready to answer, or raises LoadError."""
        self._models_dir = models_dir
        self._load = load
        self._limits = limits
        self._versions_kept = versions_kept
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, dict[int, VersionRecord]] = {}
        self._complaint = ""

    def poll(self) -> None:
        """Look at the folder once, and do all that follows from it.

        A version that does not load stays out of service until its files change, or RETRY_SECONDS have
        passed; meanwhile an older one goes on. A version is unloaded when all that should be served
        instead are available.
        """
        complaints = []
        try:
            models = find_models(self._models_dir)
        except OSError as error:
            self._complain(f"keeping what is loaded: {error}")
            return
        for name in sorted({*models, *self._records}):
            try:
                folders = find_versions(models[name]) if name in models else {}
            except OSError as error:
                complaints.append(f"keeping what is loaded of {name}: {error}")
                continue
            self._settle(name, folders)
        self._complain("; ".join(complaints))

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

    def records(self, name: str) -> list[VersionRecord]:
        """Every known version of a model, newest first; empty for an unknown model."""
        with self._lock:
            return sorted(self._records.get(name, {}).values(), key=lambda r: r.version, reverse=True)

    def available(self) -> dict[str, list[int]]:
        """The versions in service of every model that has one, by name."""
        with self._lock:
            available = {
                name: sorted(version for version, record in records.items() if record.state == AVAILABLE)
                for name, records in sorted(self._records.items())
            }
        return {name: versions for name, versions in available.items() if versions}

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

    def _settle(self, name: str, folders: Mapping[int, Path]) -> None:
        held_back = {
            record.version
            for record in self.records(name)
            if record.version in folders and self._holds_back(record, folders[record.version])
        }
        versions = wanted(folders, held_back, self._versions_kept)
        while missing := [version for version in versions if not self._is_available(name, version)]:
            if not self._try_load(name, missing[0], folders[missing[0]]):
                held_back.add(missing[0])
                versions = wanted(folders, held_back, self._versions_kept)
        if folders and not versions:
            return  # nothing that is there loads: better a version whose folder is gone than none
        for record in self.records(name):
            if record.version not in versions:
                self._unload(name, record)
            if record.version not in folders:
                self._forget(name, record.version)

    def _is_available(self, name: str, version: int) -> bool:
        record = self._records.get(name, {}).get(version)
        return record is not None and record.state == AVAILABLE

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
        served = ServedModel(version, model, Batcher(model.run, self._limits, f"{name} {version}"))
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
