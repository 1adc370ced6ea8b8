"""What the model server does with a request, whether it came by gRPC or by REST."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, NamedTuple

from serving.model_server.batcher import Prediction, RetiredError
from serving.model_server.errors import (
    InvalidRequestError,
    LateError,
    NotServedError,
    OverloadedError,
    UnknownSignatureError,
    UnsupportedError,
)
from serving.model_server.examples import (
    INPUTS,
    check_classifies,
    check_regresses,
    fill_classifications,
    fill_regressions,
    serialized,
)
from serving.model_server.manager import ModelManager, ServedModel
from serving.model_server.signature import CLASSIFY, REGRESS, Arrays, Signature
from serving.protos import (
    Message,
    TensorError,
    array_of,
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
    tensor_of,
)

_DEFAULT = "serving_default"
SIGNATURE_DEF = "signature_def"
_NO_NAME = "ModelSpec has no name specified."


class Client(NamedTuple):
    """Who waits: until when, in seconds of time.monotonic(), and how to be told that they have left.

    `when_gone` calls back when the client leaves; False: it is gone already.
    """

    deadline: float = float("inf")
    when_gone: Callable[[Callable[[], None]], bool] = lambda _: True


class Inference:
    """The methods of both services over one manager; at most `max_pending` computations at a time.

    All of them take and give TensorFlow Serving's messages, and raise ModelServerError.
    """

    def __init__(self, manager: ModelManager, max_pending: int, batches: bool = True) -> None:
        """`batches` False: every request is computed alone."""
        self._manager = manager
        self._places = threading.BoundedSemaphore(max_pending)
        self._max_pending = max_pending
        self._batches = batches

    def predict(self, request: Message, client: Client) -> Message:
        """PredictionService.Predict: the outputs of a signature for one request's tensors."""
        _check_spec(request)

        def start(served: ServedModel) -> tuple[ServedModel, Signature, Arrays]:
            signature = served.model.signature(request.model_spec.signature_name)
            signature.check_method()
            inputs = signature.complete(_arrays(request))
            signature.check_supported()
            _check_filter(signature, request.output_filter)
            return served, signature, inputs

        (served, signature, _), outputs = self._computed(request.model_spec, start, client)
        answer = predict_pb2.PredictResponse()
        _fill_spec(answer.model_spec, request.model_spec.name, served.version, signature.name)
        for key in request.output_filter or outputs:
            answer.outputs[key].CopyFrom(tensor_of(outputs[key]))
        return answer

    def classify(self, request: Message, client: Client) -> Message:
        """PredictionService.Classify: classes and scores of each example."""
        answer = classification_pb2.ClassificationResponse()
        outputs, examples = self._examples(request, check_classifies, answer.model_spec, client)
        fill_classifications(answer.result, outputs, examples)
        return answer

    def regress(self, request: Message, client: Client) -> Message:
        """PredictionService.Regress: a value for each example."""
        answer = regression_pb2.RegressionResponse()
        outputs, examples = self._examples(request, check_regresses, answer.model_spec, client)
        fill_regressions(answer.result, outputs, examples)
        return answer

    def multi_inference(self, request: Message, client: Client) -> Message:
        """PredictionService.MultiInference: several classifications and regressions of the same examples."""
        if not request.tasks:
            raise InvalidRequestError(_NO_NAME)
        names = [task.model_spec.signature_name or _DEFAULT for task in request.tasks]
        served = self._served(request.tasks[0].model_spec)
        _check_tasks(request, names, served)
        examples = serialized(request.input)
        answer = inference_pb2.MultiInferenceResponse()
        for task, name in zip(request.tasks, names, strict=True):
            spec = type(task.model_spec)(name=task.model_spec.name)
            spec.version.value = served.version

            def start(served: ServedModel, name: str = name) -> tuple[ServedModel, Signature, Arrays]:
                return served, served.model.signature(name), {INPUTS: examples}

            _, outputs = self._computed(spec, start, client)
            result = answer.results.add()
            _fill_spec(result.model_spec, task.model_spec.name, served.version, name)
            if task.method_name == CLASSIFY:
                fill_classifications(result.classification_result, outputs, len(examples))
            else:
                fill_regressions(result.regression_result, outputs, len(examples))
        return answer

    def metadata(self, request: Message) -> Message:
        """PredictionService.GetModelMetadata: the signatures of a version."""
        _check_spec(request)
        if not request.metadata_field:
            raise InvalidRequestError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise InvalidRequestError(f"Metadata field {field} is not supported")
        served = self._served(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in served.model.signature_definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = served.version
        answer.metadata[SIGNATURE_DEF].Pack(signatures)
        return answer

    def status(self, request: Message) -> Message:
        """ModelService.GetModelStatus: the state of a model's versions, or of one, and what is wrong."""
        _check_spec(request)
        name = request.model_spec.name
        version = self._version(request.model_spec)
        records = self._manager.records(name)
        if version is not None:
            records = [record for record in records if record.version == version]
            if not records:
                raise NotServedError(f"Could not find version {version} of model {name}")
        if not records:
            raise NotServedError(f"Could not find any versions of model {name}")
        answer = get_model_status_pb2.GetModelStatusResponse()
        for record in records:
            status = answer.model_version_status.add(version=record.version)
            status.state = get_model_status_pb2.ModelVersionStatus.State.Value(record.state)
            status.status.error_code = record.error_code.value[0]
            status.status.error_message = record.error_message
        return answer

    def inputs_of(self, spec: Message) -> Signature:
        """The signature that a Predict request in JSON is read by.

        Raises: InvalidRequestError: there is none of its name, in the words of the REST API.
        """
        try:
            return self._served(spec).model.signature(spec.signature_name)
        except UnknownSignatureError:
            name = spec.signature_name or _DEFAULT
            raise InvalidRequestError(
                f'Serving signature name: "{name}" not found in signature def'
            ) from None

    def knows(self, name: str) -> bool:
        """Whether there is, or was, such a model."""
        return bool(self._manager.records(name))

    def _examples(
        self, request: Message, check: Callable[[Signature], None], spec: Message, client: Client
    ) -> tuple[Arrays, int]:
        """The outputs for a request's examples, and how many these are; `spec` is told who answered."""
        _check_spec(request)

        def start(served: ServedModel) -> tuple[ServedModel, Signature, Arrays]:
            name = request.model_spec.signature_name or _DEFAULT
            try:
                signature = served.model.signature(name)
            except UnknownSignatureError:
                raise InvalidRequestError(f"No signature was found with the name: {name}") from None
            check(signature)
            return served, signature, {INPUTS: serialized(request.input)}

        (served, signature, inputs), outputs = self._computed(request.model_spec, start, client)
        _fill_spec(spec, request.model_spec.name, served.version, signature.name)
        return outputs, len(inputs[INPUTS])

    def _computed(
        self,
        spec: Message,
        start: Callable[[ServedModel], tuple[ServedModel, Signature, Arrays]],
        client: Client,
    ) -> tuple[tuple[ServedModel, Signature, Arrays], Arrays]:
        with self._place():
            while True:
                found = start(self._served(spec))
                try:
                    return found, self._outputs(*found, client)
                except RetiredError:
                    # Unloaded since it was found. A successor serves now, or a named version is gone.
                    continue

    def _outputs(self, served: ServedModel, signature: Signature, inputs: Arrays, client: Client) -> Arrays:
        key = signature.batch_key(inputs) if self._batches else None
        prediction = Prediction(signature.name, inputs, key, client.deadline)
        # A client that leaves, or whose deadline passes, takes its request out of the queue.
        if not client.when_gone(lambda: _drop(prediction)):
            raise LateError("the client left")
        served.batcher.submit(prediction)
        try:
            return prediction.outputs.result()
        except CancelledError:
            message = "the client left, or its deadline passed, before the prediction started"
            raise LateError(message) from None

    def _served(self, spec: Message) -> ServedModel:
        if not spec.name:
            raise InvalidRequestError(_NO_NAME)
        return self._manager.served(spec.name, self._version(spec))

    def _version(self, spec: Message) -> int | None:
        if spec.WhichOneof("version_choice") == "version_label":
            return self._manager.labelled(spec.name, spec.version_label)
        return int(spec.version.value) if spec.HasField("version") else None

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise OverloadedError(f"{self._max_pending} predictions are waiting or running; try again later")
        try:
            yield
        finally:
            self._places.release()


def client_for(seconds: float | None) -> Client:
    """A client that waits so long, and does not say when it leaves."""
    return Client() if seconds is None else Client(time.monotonic() + seconds)


def _check_tasks(request: Message, names: list[str], served: ServedModel) -> None:
    model = request.tasks[0].model_spec.name
    feeds = set()
    for number, (task, name) in enumerate(zip(request.tasks, names, strict=True)):
        if not task.model_spec.name:
            raise InvalidRequestError("Found ModelSpec with an empty model name.")
        if task.model_spec.name != model:
            raise InvalidRequestError(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if name in names[:number]:
            raise InvalidRequestError(f"Duplicate evaluation of signature: {name}")
        try:
            signature = served.model.signature(name)
        except UnknownSignatureError:
            raise InvalidRequestError(f"Requested signature not found in model graph: {name}") from None
        if task.method_name == CLASSIFY:
            check_classifies(signature)
        elif task.method_name == REGRESS:
            check_regresses(signature)
        else:
            raise UnsupportedError(f"Unsupported signature method_name: {task.method_name}")
        feeds.add(signature.inputs[INPUTS].graph_name)
    if len(feeds) > 1:
        raise InvalidRequestError("Input tensor must be the same for all Signatures.")


def _check_spec(request: Message) -> None:
    if not request.HasField("model_spec"):
        raise InvalidRequestError("Missing ModelSpec")


def _fill_spec(spec: Message, name: str, version: int, signature: str) -> None:
    spec.name, spec.version.value, spec.signature_name = name, version, signature


def _drop(prediction: Prediction) -> None:
    prediction.outputs.cancel()


def _arrays(request: Message) -> Arrays:
    arrays = {}
    for key, tensor in request.inputs.items():
        try:
            arrays[key] = array_of(tensor)
        except TensorError as error:
            raise InvalidRequestError(f"tensor parsing error: {key}: {error}") from error
    return arrays


def _check_filter(signature: Signature, output_filter: Any) -> None:
    for number, key in enumerate(output_filter):
        if key not in signature.outputs:
            raise InvalidRequestError(
                f"output tensor alias not found in signature: {key} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
        if key in output_filter[:number]:
            raise InvalidRequestError(f"duplicate output tensor alias: {key}")
