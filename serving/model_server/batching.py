"""TensorFlow Serving's batching parameters file: how requests are put together, in its own words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]  # ships no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.model_server.batcher import Batching

# The fields of TensorFlow Serving's BatchingParameters that say how to batch; its wheel has no module for it.
_WRAPPED = {
    "max_batch_size": ("Int64Value", 1),
    "batch_timeout_micros": ("Int64Value", 2),
    "max_enqueued_batches": ("Int64Value", 3),
    "num_batch_threads": ("Int64Value", 4),
    "thread_pool_name": ("StringValue", 5),
}
_ALLOWED, _PAD = ("allowed_batch_sizes", 6), ("pad_variable_length_inputs", 7)


class BatchingError(ValueError):
    """A batching parameters file that can't be used; the message names it and says why."""


def read_batching(path: Path, otherwise: Batching) -> Batching:
    """What the file says; of what it leaves out, what holds `otherwise`.

    `pad_variable_length_inputs` changes nothing: what may be filled up is by a signature's attention mask.
    Raises: BatchingError: unreadable, unknown fields, or values that contradict each other.
    """
    parameters = _message()
    try:
        text_format.Parse(path.read_text("utf-8"), parameters)
    except (OSError, UnicodeDecodeError) as error:
        raise BatchingError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    except text_format.ParseError as error:
        raise BatchingError(f"{path} is not a batching parameters file: {error}") from error
    changes: dict[str, Any] = {}
    for name, field in (
        ("max_batch_size", "rows"),
        ("max_enqueued_batches", "most_batches"),
        ("num_batch_threads", "threads"),
    ):
        if parameters.HasField(name):
            changes[field] = value = getattr(parameters, name).value
            if value < 1:
                raise BatchingError(f"{path}: {name} must be positive; was {value}")
    if parameters.HasField("batch_timeout_micros"):
        changes["wait_seconds"] = max(0, parameters.batch_timeout_micros.value) / 1e6
    allowed = tuple(parameters.allowed_batch_sizes)
    made = replace(otherwise, **changes, allowed_rows=allowed)
    if allowed and (list(allowed) != sorted(set(allowed)) or allowed[0] < 1):
        raise BatchingError(f"{path}: allowed_batch_sizes entries must be monotonically increasing")
    if allowed and allowed[-1] != made.rows:
        raise BatchingError(
            f"{path}: Last entry in allowed_batch_sizes must match max_batch_size; "
            f"last entry was {allowed[-1]}; expected {made.rows}"
        )
    return made


def _message() -> Any:
    """An empty BatchingParameters."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="tallybook", syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, (kind, number) in _WRAPPED.items():
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=kinds.LABEL_OPTIONAL,
            type_name=f".google.protobuf.{kind}",
        )
    message.field.add(name=_ALLOWED[0], number=_ALLOWED[1], type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED)
    message.field.add(name=_PAD[0], number=_PAD[1], type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tallybook.BatchingParameters"))()
