"""Model servers for tests: the real one in this process, and one whose predictions wait for a signal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving.model_server.manager import Model
from serving.model_server.server import ModelServer, create_server
from serving.model_server.settings import ModelServerSettings
from serving.model_server.signature import Arrays, Signature
from serving.protos import (
    Message,
    array_of,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    tensor_of,
)

_NAME = "review-sentiment"
TIMEOUT_SECONDS = 30.0  # of everything that should happen at once, on a machine that is busy


@contextmanager
def running_server(
    models_dir: Path, load: Callable[[Path], Model] | None = None, **settings: Any
) -> Iterator[ModelServer]:
    """A started model server on a free port, which looks for new versions 50 times a second."""
    defaults = {"model_server_port": 0, "model_server_rest_port": 0, "model_server_poll_seconds": 0.02}
    server = create_server(ModelServerSettings(models_dir=models_dir, **{**defaults, **settings}), load)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Gate:
    """Loads real models whose predictions, once loaded, wait at the gate until it is opened."""

    def __init__(self) -> None:
        self.runs: list[int] = []  # rows of every batch that came to the gate
        self.arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def load(self, folder: Path) -> Model:
        """Like the server's own loading."""
        from serving.model_server.loaded_model import LoadedModel

        return _GatedModel(LoadedModel(folder, compute_threads=1), self)

    def open(self) -> None:
        """Let everything pass from now on."""
        self._open.set()

    def wait_for_run(self) -> None:
        """Wait until one more batch stands before the gate."""
        assert self.arrived.acquire(timeout=TIMEOUT_SECONDS)

    def pass_through(self, inputs: Arrays) -> None:
        """Called by each batch before it is computed."""
        self.runs.append(max(len(array) for array in inputs.values()))
        self.arrived.release()
        assert self._open.wait(TIMEOUT_SECONDS)


class _GatedModel:
    def __init__(self, model: Model, gate: Gate) -> None:
        self._model = model
        self.signature_definitions = model.signature_definitions
        self.signature: Callable[[str], Signature] = model.signature
        self.close = model.close
        self._gate = gate

    def run(self, name: str, inputs: Arrays) -> Arrays:
        self._gate.pass_through(inputs)
        return self._model.run(name, inputs)


class Calls:
    """Calls running in threads of their own, and what came of them."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.results: list[Any] = []
        self.errors: list[Exception] = []

    def start(self, call: Callable[..., Any], *args: Any) -> None:
        """Run one call in the background."""
        thread = threading.Thread(target=self._run, args=(partial(call, *args),))
        self._threads.append(thread)
        thread.start()

    def wait(self) -> None:
        """Wait for all of them."""
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.results.append(call())
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.errors.append(error)


def predict_request(model: str, version: int | None, inputs: Arrays, **spec: Any) -> Message:
    """A PredictRequest for these arrays."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    for field, value in spec.items():
        setattr(request.model_spec, field, value)
    for key, array in inputs.items():
        request.inputs[key].CopyFrom(tensor_of(array))
    return request


def wait_until(condition: Callable[[], Any]) -> Any:
    """Poll until the condition holds, and return its value; fails after TIMEOUT_SECONDS."""
    tick, waited = threading.Event(), 0.0
    while not (value := condition()):
        assert waited < TIMEOUT_SECONDS, "the condition never held"
        tick.wait(0.01)
        waited += 0.01
    return value


class Stubs:
    """The services of one server."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self._predict = prediction.Predict
        self._metadata = prediction.GetModelMetadata
        self._status = model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus
        self.classify = prediction.Classify

    def __enter__(self) -> Stubs:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def predict(self, inputs: Any, version: int | None = None, name: str = _NAME, **spec: Any) -> Any:
        return self.send(predict_request(name, version, inputs, **spec))

    def send(self, request: Any, timeout: float = TIMEOUT_SECONDS) -> Any:
        return self._predict(request, timeout=timeout)

    def later(self, request: Any, timeout: float) -> Any:
        """A call under way, to wait for or to cancel."""
        return self._predict.future(request, timeout=timeout)

    def metadata(self, *fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        request.model_spec.name = _NAME
        return self._metadata(request, timeout=TIMEOUT_SECONDS)

    def status(self, name: str = _NAME, version: int | None = None) -> dict[int, tuple[str, int, str]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        if version is not None:
            request.model_spec.version.value = version
        name_of = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            one.version: (name_of(one.state), one.status.error_code, one.status.error_message)
            for one in self._status(request, timeout=TIMEOUT_SECONDS).model_version_status
        }


def text(*ids: int) -> dict[str, Any]:
    row = np.array([ids], np.int32)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}


def probabilities(answer: Any) -> Any:
    return array_of(answer.outputs["probabilities"])
