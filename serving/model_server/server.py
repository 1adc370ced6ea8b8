"""The embedded model server: TensorFlow Serving's gRPC protocol over a folder of exported models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path

import grpc

from serving.model_server.batcher import BatchLimits
from serving.model_server.counters import Counters
from serving.model_server.loaded_model import LoadedModel, default_compute_threads
from serving.model_server.manager import Model, ModelManager
from serving.model_server.monitoring import PATH, Monitoring
from serving.model_server.services import Services
from serving.model_server.settings import ModelServerSettings

log = logging.getLogger(__name__)

_SPARE_THREADS = 8  # so that states and refusals are answered while every prediction waits
_SERVER_OPTIONS = [
    # Two servers on one port would share its clients at random; the second one is told instead.
    ("grpc.so_reuseport", 0),
]


class ModelServer:
    """A bound, not yet serving, model server; made by `create_server`."""

    def __init__(self, settings: ModelServerSettings, manager: ModelManager) -> None:
        """Raises: OSError: an address can't be bound."""
        self._settings = settings
        self.manager = manager
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="model watcher", daemon=True)
        workers = futures.ThreadPoolExecutor(settings.model_server_max_pending + _SPARE_THREADS, "request")
        self._server = grpc.server(workers, options=_SERVER_OPTIONS)
        counters = Counters()
        services = Services(manager, settings.model_server_max_pending, counters)
        self._server.add_generic_rpc_handlers(services.handlers())
        wanted = f"{settings.model_server_host}:{settings.model_server_port}"
        try:
            self.port = self._server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise OSError(f"can't listen on {wanted}: is another server running there?") from error
        self.address = f"{settings.model_server_host}:{self.port}"
        try:
            self._monitoring = Monitoring(
                settings.model_server_host, settings.model_server_rest_port, counters.exposition
            )
        except OSError:
            self._server.stop(None)  # else the port stays taken
            raise
        self.counters_url = f"http://{settings.model_server_host}:{self._monitoring.port}{PATH}"

    def start(self) -> dict[str, list[int]]:
        """Load what is there, then answer and follow the folder; returns each model's versions in service."""
        self.manager.poll()
        self._server.start()
        self._monitoring.start()
        self._watcher.start()
        log.info("counters are told at %s", self.counters_url)
        return self.manager.available()

    def stop(self) -> None:
        """Accept nothing more, let running predictions finish within the grace, and unload everything."""
        self._stopping.set()
        self._server.stop(self._settings.model_server_grace_seconds).wait()
        if self._watcher.is_alive():
            self._watcher.join()
        self.manager.close()
        self._monitoring.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(self._settings.model_server_poll_seconds):
            try:
                self.manager.poll()
            except Exception:
                log.exception("looking for new versions failed; trying again")


def create_server(settings: ModelServerSettings, load: Callable[[Path], Model] | None = None) -> ModelServer:
    """A server that is bound to its addresses and answers from `start` to `stop`.

    gRPC is at `server.address`, what it has counted at `server.counters_url`.

    `load` makes a model of a version's folder, or raises LoadError; by default with TensorFlow.
    Raises: OSError: an address can't be bound.
    """
    threads = settings.model_server_compute_threads or default_compute_threads()
    manager = ModelManager(
        settings.models_dir,
        load or partial(LoadedModel, compute_threads=threads),
        BatchLimits(settings.model_server_max_batch_rows, settings.model_server_max_batch_cells),
        settings.model_server_versions_kept,
    )
    return ModelServer(settings, manager)
