"""The embedded model server: TensorFlow Serving's protocols over exported models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path

import grpc

from serving.model_server.batcher import Batching
from serving.model_server.batching import read_batching
from serving.model_server.counters import Counters
from serving.model_server.http_server import METRICS_PATH, HttpServer
from serving.model_server.inference import Inference
from serving.model_server.loaded_model import LoadedModel, default_compute_threads
from serving.model_server.manager import Model, ModelManager
from serving.model_server.rest import Rest
from serving.model_server.services import Services
from serving.model_server.settings import ModelServerSettings
from serving.model_server.wanted import FileSource
from serving.release.files import ConfigError

log = logging.getLogger(__name__)

_SPARE_THREADS = 8  # so that states and refusals are answered while every prediction waits
_SERVER_OPTIONS = [
    # Two servers on one port would share its clients at random; the second one is told instead.
    ("grpc.so_reuseport", 0),
    # As TensorFlow Serving: tensors may be larger than gRPC's 4 MB.
    ("grpc.max_receive_message_length", -1),
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
        inference = Inference(manager, settings.model_server_max_pending, settings.model_server_batching)
        self._server.add_generic_rpc_handlers(Services(inference, manager, counters).handlers())
        wanted = f"{settings.model_server_host}:{settings.model_server_port}"
        try:
            self.port = self._server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise OSError(f"can't listen on {wanted}: is another server running there?") from error
        self.address = f"{settings.model_server_host}:{self.port}"
        try:
            self._http = HttpServer(
                settings.model_server_host,
                settings.model_server_rest_port,
                counters.exposition,
                Rest(inference, counters).answer,
            )
        except OSError:
            self._server.stop(None)  # else the port stays taken
            raise
        self.rest_url = f"http://{settings.model_server_host}:{self._http.port}"
        self.counters_url = self.rest_url + METRICS_PATH

    def start(self) -> dict[str, list[int]]:
        """Load what should be served, then answer and follow it; returns each model's versions in service."""
        self.manager.poll()
        self._server.start()
        self._http.start()
        self._watcher.start()
        log.info("the REST API is at %s, counters at %s", self.rest_url, METRICS_PATH)
        return self.manager.available()

    def stop(self) -> None:
        """Accept nothing more, let running predictions finish within the grace, and unload everything."""
        self._stopping.set()
        self.manager.poll_wanted.set()
        self._server.stop(self._settings.model_server_grace_seconds).wait()
        if self._watcher.is_alive():
            self._watcher.join()
        self.manager.close()
        self._http.stop()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self.manager.poll_wanted.wait(self._settings.model_server_poll_seconds)
            if self._stopping.is_set():
                return
            try:
                self.manager.poll()
            except Exception:
                log.exception("looking for new versions failed; trying again")


def create_server(settings: ModelServerSettings, load: Callable[[Path], Model] | None = None) -> ModelServer:
    """A server that is bound to its addresses and answers from `start` to `stop`.

    gRPC is at `server.address`, REST at `server.rest_url`, what it has counted at `server.counters_url`.

    `load` makes a model of a version's folder, or raises LoadError; by default with TensorFlow.
    Raises: OSError: an address can't be bound. ConfigError: a model config file that is named does not exist.
        BatchingError: the batching parameters file can't be used.
    """
    if settings.model_config_file is not None and not settings.model_config_file.exists():
        raise ConfigError(f"{settings.model_config_file} can't be read: No such file or directory")
    threads = settings.model_server_compute_threads or default_compute_threads()
    manager = ModelManager(
        FileSource(settings.model_config_path, settings.models_dir, settings.model_server_versions_kept),
        load or partial(LoadedModel, compute_threads=threads),
        _batching(settings),
        settings.model_server_labels_need_available,
    )
    return ModelServer(settings, manager)


def _batching(settings: ModelServerSettings) -> Batching:
    made = Batching(
        rows=settings.model_server_max_batch_rows,
        cells=settings.model_server_max_batch_cells,
        seconds=settings.model_server_batch_seconds,
        long_length=settings.model_server_long_length,
    )
    file = settings.model_server_batching_parameters_file
    return made if file is None else read_batching(file, made)
