"""Requests that an export brings along to be warmed up with, as TensorFlow Serving replays them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from serving.model_server.errors import LoadError
from serving.model_server.examples import INPUTS, serialized
from serving.model_server.signature import Arrays, Signature
from serving.protos import Message, array_of, prediction_log_pb2

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST_RECORDS = 1_000


def replay(folder: Path, signature: Callable[[str], Signature], run: Callable[[str, Arrays], Arrays]) -> int:
    """Compute every request in the version's file of PredictionLogs; how many there were, 0 without a file.

    Raises: LoadError: too many. Whatever a request of the file raises: a version that can't answer those that
        it brings along is broken.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    count = 0
    for raw in tf.compat.v1.io.tf_record_iterator(str(path)):
        count += 1
        if count > _MOST_RECORDS:
            raise LoadError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({_MOST_RECORDS}) at {path}",
            )
        for name, inputs in _requests(prediction_log_pb2.PredictionLog.FromString(raw)):
            wanted = signature(name)
            run(wanted.name, wanted.complete(inputs))
    return count


def _requests(log: Message) -> Iterator[tuple[str, Arrays]]:
    """Signature and inputs of a logged request."""
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        yield request.model_spec.signature_name, {k: array_of(t) for k, t in request.inputs.items()}
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        yield request.model_spec.signature_name, {INPUTS: serialized(request.input)}
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        for task in request.tasks:
            yield task.model_spec.signature_name, {INPUTS: serialized(request.input)}
