"""One SavedModel in memory, run as TensorFlow Serving runs it: a session over its graph."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from tensorflow.core.protobuf import config_pb2  # type: ignore[import-untyped]  # ships no types

from serving.model_server.errors import (
    LoadError,
    ModelServerError,
    PredictionError,
    UnknownSignatureError,
    status_of,
)
from serving.model_server.signature import Arrays, Signature
from serving.model_server.warmup import replay
from serving.protos import Message

log = logging.getLogger(__name__)

_DEFAULT = "serving_default"
_WARM_UP_SIZE = 16  # of every free axis but the first


class LoadedModel:
    """The signatures of one exported version, and the session that computes them.

    A session, not `tf.saved_model.load`: half the time for each call of a small model, and closing it
    gives its memory back.
    """

    def __init__(self, folder: Path, compute_threads: int) -> None:
        """Load `folder`, and compute what it is warmed up with: the first client does not wait for that.

        Raises: LoadError: no SavedModel, half of one, a broken one, one that can't answer its own
            warm-up requests, or one that fails otherwise than by refusing zeros.
        """
        self._folder = folder
        self._session = tf.compat.v1.Session(
            graph=tf.Graph(),
            config=tf.compat.v1.ConfigProto(
                intra_op_parallelism_threads=compute_threads,
                inter_op_parallelism_threads=-1,  # the caller's own thread: no hand-over for small models
            ),
        )
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
            self.signature_definitions: Mapping[str, Message] = dict(meta_graph.signature_def)
            self._signatures = {
                name: Signature.from_proto(name, definition)
                for name, definition in self.signature_definitions.items()
            }
            self._calls: dict[str, Callable[..., list[NDArray[Any]]]] = {}
            self._warm_up()
        except Exception as error:
            self._session.close()
            # TensorFlow tells of broken files by a dozen kinds of exceptions.
            if isinstance(error, LoadError):
                raise
            raise LoadError(_load_status(error), _reason(error)) from error

    def signature(self, name: str) -> Signature:
        """The signature of this name; "" is `serving_default`, as in TensorFlow Serving.

        Raises: UnknownSignatureError: none.
        """
        signature = self._signatures.get(name or _DEFAULT)
        if signature is None:
            raise UnknownSignatureError(f'Serving signature key "{name or _DEFAULT}" not found.')
        return signature

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Compute all outputs of a signature; not to be called from two threads at once.

        Raises: PredictionError: TensorFlow failed on these inputs.
        """
        signature = self._signatures[name]
        call = self._calls.get(name)
        if call is None:
            # Much cheaper than `make_callable`; and shapes are the graph's matter, as in TensorFlow Serving.
            call = self._session._make_callable_from_options(
                config_pb2.CallableOptions(
                    feed=[spec.graph_name for spec in signature.inputs.values()],
                    fetch=[spec.graph_name for spec in signature.outputs.values()],
                )
            )
            self._calls[name] = call
        try:
            values = call(*(inputs[key] for key in signature.inputs))
        except tf.errors.OpError as error:
            raise PredictionError(status_of(error.error_code), _reason(error)) from error
        return dict(zip(signature.outputs, values, strict=True))

    def close(self) -> None:
        """Give the memory back; nothing may be running."""
        self._session.close()

    def _warm_up(self) -> None:
        if replay(self._folder, self.signature, self.run):
            return
        try:
            signature = self.signature(_DEFAULT)
            signature.check_supported()
        except ModelServerError:
            return  # none, or one that is never run here
        zeros: dict[str, NDArray[Any]] = {}
        for key, spec in signature.inputs.items():
            if spec.shape is None or spec.dtype == object:
                return  # nothing is known of what it takes
            sizes = [_WARM_UP_SIZE if size is None else size for size in spec.shape]
            if spec.shape and spec.shape[0] is None:
                sizes[0] = 1
            zeros[key] = np.zeros(sizes, spec.dtype)
        try:
            self.run(_DEFAULT, zeros)
        except PredictionError as error:
            if error.status is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            log.info("%s takes no zeros, so it is not warmed up: %s", self._folder, error)


def default_compute_threads() -> int:
    """One fewer than the cores that this process may use: the last one speaks with the clients."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _load_status(error: Exception) -> grpc.StatusCode:
    if isinstance(error, tf.errors.OpError):
        return status_of(error.error_code)
    if isinstance(error, ModelServerError):
        return error.status
    return grpc.StatusCode.NOT_FOUND if isinstance(error, OSError) else grpc.StatusCode.INTERNAL


def _reason(error: Exception) -> str:
    """The first line of an error: what failed. TensorFlow adds traces of hundreds of lines."""
    # A session tells its errors again, under a heading; the first telling is the context of that.
    told_first = error.__context__
    if isinstance(error, tf.errors.OpError) and isinstance(told_first, tf.errors.OpError):
        error = told_first
    text = getattr(error, "message", None) or str(error)
    return str(text).strip().partition("\n")[0] or type(error).__name__
