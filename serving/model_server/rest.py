"""TensorFlow Serving's REST API: predict, classify, regress, status and metadata of models."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
from google.protobuf import json_format  # type: ignore[import-untyped]  # ships no types

from serving.model_server import json_answers, json_tensors
from serving.model_server.counters import Counters
from serving.model_server.errors import InvalidRequestError, ModelServerError, one_line
from serving.model_server.inference import SIGNATURE_DEF, Inference, client_for
from serving.protos import (
    Message,
    array_of,
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    tensor_of,
)

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0  # as TensorFlow Serving's --rest_api_timeout_in_ms
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION = re.compile(rf"(?i)/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)")
_MODEL = re.compile(rf"(?i)/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?")
_GREATEST_VERSION = 2**63 - 1
_HTTP = {
    grpc.StatusCode.OK: HTTPStatus.OK,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}


class Answer(NamedTuple):
    """An HTTP answer: the status, and a JSON body."""

    status: int
    body: bytes


class Rest:
    """The REST API over the same methods as gRPC's."""

    def __init__(self, inference: Inference, counters: Counters) -> None:
        self._inference = inference
        self._counters = counters

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Answer a request whose path begins with /v1/."""
        try:
            return Answer(HTTPStatus.OK, self._answer(method, path, body))
        except ModelServerError as error:
            return _refusal(error.status, str(error))
        except Exception as error:
            log.exception("a request failed")
            return _refusal(grpc.StatusCode.INTERNAL, one_line(f"{type(error).__name__}: {error}"))

    def _answer(self, method: str, path: str, body: bytes) -> bytes:
        found = (_PREDICTION if method == "POST" else _MODEL).fullmatch(path)
        if method not in ("GET", "POST") or found is None:
            raise InvalidRequestError(f"Malformed request: {method} {path}")
        spec = _spec(found)
        if method == "GET":
            if not spec.name:
                raise InvalidRequestError("Missing model name in request.")
            return self._metadata(spec) if found["metadata"] else self._status(spec)
        api = found["method"].capitalize()
        call: Callable[[Message, bytes], bytes] = getattr(self, f"_{api.lower()}")
        with self._counters.counting(api, "REST", spec.name, self._inference.knows):
            return call(spec, body)

    def _predict(self, spec: Message, body: bytes) -> bytes:
        document = json_tensors.parse(body)
        spec.signature_name = json_tensors.signature_name(document)
        inputs, by_row = json_tensors.predict_inputs(document, self._inference.inputs_of(spec))
        request = predict_pb2.PredictRequest(model_spec=spec)
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(tensor_of(array))
        answer = self._inference.predict(request, client_for(TIMEOUT_SECONDS))
        return json_answers.predictions({k: array_of(t) for k, t in answer.outputs.items()}, by_row)

    def _classify(self, spec: Message, body: bytes) -> bytes:
        request = _examples(classification_pb2.ClassificationRequest(model_spec=spec), body)
        answer = self._inference.classify(request, client_for(TIMEOUT_SECONDS))
        return json_answers.classifications(answer.result)

    def _regress(self, spec: Message, body: bytes) -> bytes:
        request = _examples(regression_pb2.RegressionRequest(model_spec=spec), body)
        answer = self._inference.regress(request, client_for(TIMEOUT_SECONDS))
        return json_answers.regressions(answer.result)

    def _status(self, spec: Message) -> bytes:
        answer = self._inference.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
        return _json(answer)

    def _metadata(self, spec: Message) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[SIGNATURE_DEF]
        )
        answer = self._inference.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata[SIGNATURE_DEF].Unpack(signatures)
        told = b'{\n"model_spec":%s,\n"metadata": {"signature_def": %s}\n}\n'
        return told % (_json(answer.model_spec), _json(signatures))


def _spec(found: re.Match[str]) -> Message:
    spec = model_pb2.ModelSpec(name=unquote(found["model"] or ""))
    if found["version"]:
        if int(found["version"]) > _GREATEST_VERSION:
            raise InvalidRequestError(f"Failed to convert version: {found['version']} to numeric.")
        spec.version.value = int(found["version"])
    if found["label"]:
        spec.version_label = unquote(found["label"])
    return spec


def _examples(request: Any, body: bytes) -> Any:
    document = json_tensors.parse(body)
    request.model_spec.signature_name = json_tensors.signature_name(document)
    json_tensors.fill_examples(document, request.input)
    return request


def _json(message: Message) -> bytes:
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return text.encode()


def _refusal(status: grpc.StatusCode, message: str) -> Answer:
    code = _HTTP.get(status, HTTPStatus.INTERNAL_SERVER_ERROR)
    return Answer(int(code), json_answers.error(message))
