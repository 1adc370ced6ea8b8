"""Every way the model server refuses a request, each with its gRPC status.

    ModelServerError
    ├── InvalidRequestError     INVALID_ARGUMENT     names, types or values are not the signature's
    ├── NotServedError          NOT_FOUND            no such model, or no such version in service
    ├── UnknownSignatureError   FAILED_PRECONDITION  the model has no such signature
    ├── SignatureMismatchError  FAILED_PRECONDITION  the signature is not of the kind that it says
    ├── LabelError              FAILED_PRECONDITION  a label for a version that is not available
    ├── ModelsUnavailableError  UNKNOWN              a new config has models that do not load
    ├── UnsupportedError        UNIMPLEMENTED        TensorFlow Serving could, this server can't
    ├── OverloadedError         UNAVAILABLE          too many predictions are waiting
    │   └── QueueFullError      UNAVAILABLE          max_enqueued_batches are waiting
    ├── LateError               DEADLINE_EXCEEDED    nobody waits for the answer any more
    └── PredictionError         TensorFlow's own     the model failed on this input

The codes, and the messages where clients may look at them, are TensorFlow Serving's. LoadError is apart:
it concerns a version, not a request, and GetModelStatus reports it.
"""

from __future__ import annotations

import grpc

_LONGEST_DETAILS = 1_000  # gRPC drops a whole answer whose details outgrow its metadata


class ModelServerError(Exception):
    """A refusal; the message is for the client, on one line."""

    status = grpc.StatusCode.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InvalidRequestError(ModelServerError):
    """The request does not fit the model's signature."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotServedError(ModelServerError):
    """Nothing in service has this name, or this version."""

    status = grpc.StatusCode.NOT_FOUND


class UnknownSignatureError(ModelServerError):
    """The model has no signature of this name."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class SignatureMismatchError(ModelServerError):
    """A signature says that it classifies or regresses, and has not the tensors for it."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class LabelError(ModelServerError):
    """A config puts a label on a version that may not carry it now."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class ModelsUnavailableError(ModelServerError):
    """Models that are new in a config did not become available."""

    status = grpc.StatusCode.UNKNOWN


class UnsupportedError(ModelServerError):
    """A signature with tensors that only the real TensorFlow Serving takes."""

    status = grpc.StatusCode.UNIMPLEMENTED


class OverloadedError(ModelServerError):
    """The server has as much waiting as it may."""

    status = grpc.StatusCode.UNAVAILABLE


class QueueFullError(OverloadedError):
    """As many batches are waiting as may."""


class LateError(ModelServerError):
    """The request's deadline passed, or its client left, before it was computed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class PredictionError(ModelServerError):
    """TensorFlow failed while computing; `status` is the code that it gave."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


class LoadError(Exception):
    """A version that can't be served, and why, on one line."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(one_line(message))
        self.status = status


def status_of(number: int) -> grpc.StatusCode:
    """The gRPC status with this number: TensorFlow's error codes are the same numbers."""
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def one_line(text: str) -> str:
    """The text on one line, for a log or gRPC's details; an ellipsis shows where a very long one was cut."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_DETAILS else line[: _LONGEST_DETAILS - 1] + "…"
