"""The client of TensorFlow Serving, and of the embedded model server, over gRPC.

Failures are those of serving/errors.py: ModelUnavailableError, ModelVersionNotFoundError,
ModelTimeoutError and ModelRejectedError, each with the gRPC error as its cause. Their messages are for
callers of the API; what the model server said is in the cause, and in ModelRejectedError's message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.errors import (
    ApiError,
    ModelRejectedError,
    ModelTimeoutError,
    ModelUnavailableError,
    ModelVersionNotFoundError,
)
from serving.protos import (
    Message,
    TensorError,
    array_of,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    tensor_of,
)

__all__ = [
    "ModelClient",
    "ModelRejectedError",
    "ModelTimeoutError",
    "ModelUnavailableError",
    "ModelVersionNotFoundError",
    "VersionState",
]

Metadata = tuple[tuple[str, str], ...]  # of a call: headers in lower case, such as traceparent
Rows = NDArray[np.float32]  # [inputs, columns]
# Model, version, token ids of one text or of several, the most seconds, metadata.
AskOne = Callable[[str, int, Sequence[int], float, Metadata], NDArray[np.float32]]
AskMany = Callable[[str, int, Sequence[Sequence[int]], float, Metadata], Rows]
_CHANNEL_OPTIONS = [
    # A restarted server is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # A peer that vanished without a word is noticed while calls wait for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The model server is a neighbour; http_proxy is not for it.
    ("grpc.enable_http_proxy", 0),
    # Clients of one address do not share connections, nor their waiting times.
    ("grpc.use_local_subchannel_pool", 1),
]


class VersionState(NamedTuple):
    """A version as the model server has it, and what is wrong with it."""

    state: str
    error: str


class _Output(NamedTuple):
    """What is asked of a version: float32 [rows, columns]."""

    model: str
    version: int
    name: str
    rows: int
    columns: str  # what they are called


class ModelClient:
    """Asks one model server, `host:port`, by TensorFlow Serving's protocol; safe to share among threads.

    Connects on first use, and again by itself after the server was away. Make it after forking.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel).Predict
        models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._status = models.GetModelStatus
        self._reload = models.HandleReloadConfigRequest

    def predict(
        self,
        model: str,
        version: int,
        input_ids: Sequence[int],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """The probabilities, float32 [labels], that exactly this version gives for one text's token ids.

        `metadata` goes with the call, for whoever traces it.
        Raises: ModelUnavailableError: not reachable, shutting down or overloaded; ask again later.
            ModelVersionNotFoundError: this version is not served. ModelTimeoutError: no answer in time.
            ModelRejectedError: the server refused the request, or its answer is not what was asked for.
            ValueError, OverflowError: the ids are none, or not int32.
        """
        ids = np.array([input_ids], dtype=np.int32)
        if ids.ndim != 2 or not ids.size:
            raise ValueError("input_ids must be a sequence of one or more token ids")
        output = _Output(model, version, "probabilities", 1, "labels")
        row: NDArray[np.float32] = self._ask(output, ids, np.ones_like(ids), timeout_seconds, metadata)[0]
        return row

    def embed(
        self,
        model: str,
        version: int,
        inputs: Sequence[Sequence[int]],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """The embeddings, float32 [inputs, dimension], of several texts' token ids, asked as one batch.

        Shorter ones are padded with 0 and masked.
        Raises: as `predict`.
        """
        output = _Output(model, version, "embeddings", len(inputs), "dimension")
        return self._ask_batch(output, inputs, timeout_seconds, metadata)

    def classify(
        self,
        model: str,
        version: int,
        inputs: Sequence[Sequence[int]],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """The probabilities, float32 [inputs, labels], of several texts' token ids, likewise."""
        output = _Output(model, version, "probabilities", len(inputs), "labels")
        return self._ask_batch(output, inputs, timeout_seconds, metadata)

    def _ask_batch(
        self, output: _Output, inputs: Sequence[Sequence[int]], timeout_seconds: float, metadata: Metadata
    ) -> NDArray[np.float32]:
        longest = max(map(len, inputs), default=0)
        if not longest or not all(inputs):
            raise ValueError("inputs must be one or more sequences of one or more token ids")
        ids, mask = np.zeros((2, len(inputs), longest), np.int32)
        for row, one in enumerate(inputs):
            ids[row, : len(one)], mask[row, : len(one)] = one, 1
        return self._ask(output, ids, mask, timeout_seconds, metadata)

    def _ask(
        self,
        output: _Output,
        ids: NDArray[np.int32],
        mask: NDArray[np.int32],
        timeout_seconds: float,
        metadata: Metadata,
    ) -> NDArray[np.float32]:
        request = predict_pb2.PredictRequest(output_filter=[output.name])
        request.model_spec.name = output.model
        request.model_spec.version.value = output.version
        request.inputs["input_ids"].CopyFrom(tensor_of(ids))
        request.inputs["attention_mask"].CopyFrom(tensor_of(mask))
        asked = f"model {output.model} version {output.version}"
        return _values(_call(self._predict, request, timeout_seconds, asked, metadata), output)

    def version_states(self, model: str, timeout_seconds: float) -> dict[int, str]:
        """Every version that the server knows of, with its state: START, LOADING, AVAILABLE, UNLOADING, END.

        Raises: as `predict`; ModelVersionNotFoundError: the server knows no version of this model.
        """
        return {version: known.state for version, known in self.versions(model, timeout_seconds).items()}

    def versions(self, model: str, timeout_seconds: float) -> dict[int, VersionState]:
        """As `version_states`, and why a version is not available."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        answer = _call(self._status, request, timeout_seconds, f"model {model}")
        name_of = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            status.version: VersionState(name_of(status.state), status.status.error_message)
            for status in answer.model_version_status
        }

    def reload(self, config: Message, timeout_seconds: float) -> None:
        """Have the server serve what a ModelServerConfig says, and nothing else.

        Raises: as `predict`; ModelRejectedError: it refused, and goes on as before.
        """
        request = model_management_pb2.ReloadConfigRequest(config=config)
        _call(self._reload, request, timeout_seconds, "the model config")

    def close(self) -> None:
        """Close the connection; calls under way and later ones fail."""
        self._channel.close()


def _call(
    method: Callable[..., Any], request: Message, timeout_seconds: float, asked: str, metadata: Metadata = ()
) -> Message:
    try:
        return method(request, timeout=timeout_seconds, metadata=metadata)
    except grpc.RpcError as error:
        raise _translated(error, timeout_seconds, asked) from error


def _translated(error: grpc.RpcError, timeout_seconds: float, asked: str) -> ApiError:
    code, details = error.code(), error.details()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ModelUnavailableError("the model server can't be reached or is overloaded")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ModelTimeoutError(f"{asked} did not answer within {timeout_seconds:g} s")
    if code is grpc.StatusCode.NOT_FOUND:
        return ModelVersionNotFoundError(f"{asked} is not served")
    return ModelRejectedError(f"the model server refused {asked}: {code.name}: {details}")


def _values(answer: Message, output: _Output) -> NDArray[np.float32]:
    model, version, name, rows, columns = output
    answered = answer.model_spec
    if (answered.name, answered.version.value) != (model, version):
        raise ModelRejectedError(
            f"asked for model {model} version {version}, "
            f"got an answer of {answered.name!r} version {answered.version.value}"
        )
    if name not in answer.outputs:
        raise ModelRejectedError(f"model {model} version {version} answered without {name}")
    try:
        values = array_of(answer.outputs[name])
    except TensorError as error:
        raise ModelRejectedError(f"model {model} version {version}, {name}: {error}") from error
    if values.dtype != np.float32 or values.ndim != 2 or values.shape[0] != rows or not values.size:
        raise ModelRejectedError(
            f"model {model} version {version} answered {name} as {values.dtype} {list(values.shape)}, "
            f"not float32 [{rows}, {columns}]"
        )
    if not np.isfinite(values).all():
        raise ModelRejectedError(f"model {model} version {version} answered {name} that are not numbers")
    return values
