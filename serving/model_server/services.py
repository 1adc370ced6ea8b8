"""TensorFlow Serving's gRPC services, PredictionService and ModelService, as far as they are served here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import grpc

from serving.model_server.batcher import Prediction, RetiredError
from serving.model_server.counters import Counters
from serving.model_server.errors import (
    InvalidRequestError,
    LateError,
    ModelServerError,
    NotServedError,
    OverloadedError,
    one_line,
)
from serving.model_server.manager import ModelManager, ServedModel
from serving.model_server.signature import Arrays, Signature
from serving.protos import (
    Message,
    TensorError,
    array_of,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    tensor_of,
)

log = logging.getLogger(__name__)

Method = Callable[[Any, grpc.ServicerContext], Any]


class Services:
    """The methods of both services over one manager; at most `max_pending` predictions at a time."""

    def __init__(self, manager: ModelManager, max_pending: int, counters: Counters) -> None:
        self._manager = manager
        self._counters = counters
        self._places = threading.BoundedSemaphore(max_pending)
        self._max_pending = max_pending

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """What a gRPC server needs to route to these methods; it answers UNIMPLEMENTED to all others."""
        metadata, status = get_model_metadata_pb2, get_model_status_pb2
        return (
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.PredictionService",
                {
                    "Predict": _handler(self.predict, predict_pb2.PredictRequest),
                    "GetModelMetadata": _handler(self.get_model_metadata, metadata.GetModelMetadataRequest),
                },
            ),
            grpc.method_handlers_generic_handler(
                "tensorflow.serving.ModelService",
                {"GetModelStatus": _handler(self.get_model_status, status.GetModelStatusRequest)},
            ),
        )

    def predict(self, request: Message, context: grpc.ServicerContext) -> Message:
        """Compute the outputs of one request, in a batch with others where that changes nothing."""
        started = time.monotonic()
        status = grpc.StatusCode.INTERNAL
        try:
            answer = self._predict(request, context)
            status = grpc.StatusCode.OK
        except ModelServerError as error:
            status = error.status
            raise
        finally:
            self._count(request.model_spec.name, status, time.monotonic() - started)
        return answer

    def _predict(self, request: Message, context: grpc.ServicerContext) -> Message:
        filled = sorted(set(request.output_filter))
        inputs = _arrays(request)
        with self._place():
            while True:
                served, signature = self._find(request.model_spec)
                signature.check_inputs(inputs)
                _check_filter(signature, request.output_filter)
                try:
                    outputs = _outputs(served, signature, inputs, context)
                    break
                except RetiredError:
                    # Unloaded since it was found. A successor serves now, or a named version is gone.
                    continue
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = served.version
        answer.model_spec.signature_name = signature.name
        for key in filled or outputs:
            answer.outputs[key].CopyFrom(tensor_of(outputs[key]))
        return answer

    def get_model_metadata(self, request: Message, context: grpc.ServicerContext) -> Message:
        """The signatures of a version."""
        if not request.metadata_field:
            raise InvalidRequestError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise InvalidRequestError(f"Metadata field {field!r} is not supported")
        served = self._served(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in served.model.signature_definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = served.version
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    def get_model_status(self, request: Message, context: grpc.ServicerContext) -> Message:
        """The state of every version of a model, or of one, and why it is not available."""
        spec = request.model_spec
        version = _version(spec)
        records = self._manager.records(spec.name)
        if not records:
            raise NotServedError(f"Could not find any versions of model {spec.name}")
        if version is not None:
            records = [record for record in records if record.version == version]
            if not records:
                raise NotServedError(f"Could not find version {version} of model {spec.name}")
        answer = get_model_status_pb2.GetModelStatusResponse()
        for record in records:
            status = answer.model_version_status.add(version=record.version)
            status.state = get_model_status_pb2.ModelVersionStatus.State.Value(record.state)
            status.status.error_code = record.error_code.value[0]
            status.status.error_message = record.error_message
        return answer

    def _count(self, name: str, status: grpc.StatusCode, seconds: float) -> None:
        # Names that clients make up would fill the memory.
        if status is grpc.StatusCode.OK or self._manager.records(name):
            self._counters.count(name, status, seconds)

    def _find(self, spec: Message) -> tuple[ServedModel, Signature]:
        served = self._served(spec)
        return served, served.model.signature(spec.signature_name)

    def _served(self, spec: Message) -> ServedModel:
        if not spec.name:
            raise InvalidRequestError("Missing ModelSpec")
        return self._manager.served(spec.name, _version(spec))

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise OverloadedError(f"{self._max_pending} predictions are waiting or running; try again later")
        try:
            yield
        finally:
            self._places.release()


def _outputs(
    served: ServedModel, signature: Signature, inputs: Arrays, context: grpc.ServicerContext
) -> Arrays:
    remaining = context.time_remaining()
    deadline = float("inf") if remaining is None else time.monotonic() + remaining
    prediction = Prediction(signature.name, inputs, signature.batch_key(inputs), deadline)
    # A client that leaves, or whose deadline passes, takes its request out of the queue.
    if not context.add_callback(lambda: _drop(prediction)):
        raise LateError("the client left")
    served.batcher.submit(prediction)
    try:
        return prediction.outputs.result()
    except CancelledError:
        raise LateError("the client left, or its deadline passed, before the prediction started") from None


def _drop(prediction: Prediction) -> None:
    prediction.outputs.cancel()


def _arrays(request: Message) -> Arrays:
    arrays = {}
    for key, tensor in request.inputs.items():
        try:
            arrays[key] = array_of(tensor)
        except TensorError as error:
            raise InvalidRequestError(f"input {key!r}: {error}") from error
    return arrays


def _check_filter(signature: Signature, output_filter: Any) -> None:
    for key in output_filter:
        if key not in signature.outputs:
            expected = ", ".join(sorted(signature.outputs))
            raise InvalidRequestError(
                f"output {key!r} is not in signature {signature.name!r}, which has {expected}"
            )


def _version(spec: Message) -> int | None:
    if spec.WhichOneof("version_choice") == "version_label":
        raise InvalidRequestError(f"Unrecognized servable version label: {spec.version_label}")
    return int(spec.version.value) if spec.HasField("version") else None


def _handler(method: Method, request_type: Any) -> grpc.RpcMethodHandler[Any, Any]:
    def answer(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return method(request, context)
        except ModelServerError as error:
            context.abort(error.status, str(error))
        except Exception as error:
            log.exception("%s failed", method.__name__)
            context.abort(grpc.StatusCode.INTERNAL, one_line(f"{type(error).__name__}: {error}"))

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_type.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
