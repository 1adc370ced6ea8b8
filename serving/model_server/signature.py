"""A model's signatures: what goes in and comes out by name, type and shape, and what may share a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError, UnsupportedError
from serving.protos import Message, dtype_name, numpy_dtype

Arrays = Mapping[str, NDArray[Any]]

_MASK = "attention_mask"
_SHORTEST_BUCKET = 32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name in the graph, and its type and shape; None stands for a free axis."""

    graph_name: str
    type_name: str
    dtype: np.dtype[Any] | None  # None: a type that this server does not take
    shape: tuple[int | None, ...] | None  # None: any rank

    def accepts(self, array: NDArray[Any]) -> bool:
        """Whether an array has this type and a shape that fits."""
        if array.dtype != self.dtype:
            return False
        if self.shape is None:
            return True
        return len(array.shape) == len(self.shape) and all(
            wanted is None or wanted == got for wanted, got in zip(self.shape, array.shape, strict=True)
        )

    def __str__(self) -> str:
        shape = "of any shape" if self.shape is None else [-1 if n is None else n for n in self.shape]
        return f"{self.type_name} {shape}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model.

    `batches`: its first axis is free in every input and output, so rows of several requests may be
    computed together. `pads`: every input is [batch, length] and one of them is the attention mask,
    so a row may be filled up with zeros to the length of its neighbours: the mask says that they are
    nothing. Without a mask, filling up would change answers, and only equal shapes share a batch.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batches: bool
    pads: bool

    @classmethod
    def from_proto(cls, name: str, definition: Message) -> Signature:
        """Read a SignatureDef."""
        inputs = {key: _spec(info) for key, info in definition.inputs.items()}
        outputs = {key: _spec(info) for key, info in definition.outputs.items()}
        batches = bool(inputs) and all(
            spec.shape and spec.shape[0] is None for spec in (*inputs.values(), *outputs.values())
        )
        pads = (
            batches
            and _MASK in inputs
            and all(spec.shape == (None, None) for spec in inputs.values())
            # An output with a length of its own would come back filled up as well.
            and all(None not in spec.shape[1:] for spec in outputs.values() if spec.shape)
        )
        return cls(name, inputs, outputs, batches, pads)

    def check_supported(self) -> None:
        """Raises: UnsupportedError: a tensor is of a type, or of a kind, that this server does not take."""
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            for key, spec in specs.items():
                if spec.dtype is None or not spec.graph_name:
                    raise UnsupportedError(
                        f"signature {self.name!r}: {kind} {key!r} is {spec.type_name}, "
                        "which needs the real TensorFlow Serving"
                    )

    def check_inputs(self, inputs: Arrays) -> None:
        """Raises: InvalidRequestError: an input is missing, unknown, or of another type or shape."""
        if inputs.keys() != self.inputs.keys():
            extra = ", ".join(sorted(inputs.keys() - self.inputs.keys())) or "none"
            missing = ", ".join(sorted(self.inputs.keys() - inputs.keys())) or "none"
            raise InvalidRequestError(
                f"inputs do not match signature {self.name!r}: missing: {missing}; unknown: {extra}"
            )
        for key, spec in self.inputs.items():
            array = inputs[key]
            if not spec.accepts(array):
                raise InvalidRequestError(
                    f"input {key!r} must be {spec}, got {array.dtype} {list(array.shape)}"
                )

    def batch_key(self, inputs: Arrays) -> Hashable | None:
        """Requests with equal keys may be computed together; None: this one must be computed alone.

        Lengths share a key up to the next power of two: so filling up at most doubles a row, and one very
        long text does not make short ones as slow as itself.
        """
        shapes = {array.shape for array in inputs.values()}
        rows = {shape[0] for shape in shapes if shape}
        if not self.batches or len(rows) != 1:
            return None
        if self.pads:
            # Inputs of unequal lengths are an error, which filling up would hide.
            length = next(iter(shapes))[1]
            bucket = max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length()) if length else 0
            return (self.name, bucket) if len(shapes) == 1 else None
        return (self.name, *((key, inputs[key].shape[1:]) for key in self.inputs))


def _spec(info: Message) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
    # Sparse and composite tensors are several graph tensors; `name` is empty for them.
    kind = dtype_name(info.dtype) if info.name else f"a {info.WhichOneof('encoding')} tensor"
    return TensorSpec(info.name, kind, numpy_dtype(info.dtype), shape)
