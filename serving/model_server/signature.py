"""A model's signatures: what goes in and comes out by name, type and shape, and what may share a batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError, ModelServerError, UnsupportedError
from serving.protos import Message, TensorError, array_of, dtype_name, numpy_dtype, numpy_dtype_name

Arrays = Mapping[str, NDArray[Any]]

PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))
_MASK = "attention_mask"
_SHORTEST_BUCKET = 32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name in the graph, and its type and shape; None stands for a free axis."""

    graph_name: str
    type_name: str
    dtype: np.dtype[Any] | None  # None: a type that this server does not take
    shape: tuple[int | None, ...] | None  # None: any rank

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether the array has this shape."""
        if self.shape is None:
            return True
        return len(array.shape) == len(self.shape) and all(
            wanted is None or wanted == got for wanted, got in zip(self.shape, array.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model.

    `batches`: its first axis is free in every input and output, so rows of several requests may be
    computed together. `pads`: every input is [batch, length] and one of them is the attention mask,
    so a row may be filled up with zeros to the length of its neighbours: the mask says that they are
    nothing. Without a mask, filling up would change answers, and only equal shapes share a batch.
    `defaults`: values of inputs that a request leaves out.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batches: bool
    pads: bool
    method: str = PREDICT
    defaults: Arrays = field(default_factory=dict)

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
        return cls(name, inputs, outputs, batches, pads, definition.method_name, _defaults(definition))

    def check_supported(self) -> None:
        """Raises: UnsupportedError: a tensor is of a type, or of a kind, that this server does not take."""
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            for key, spec in specs.items():
                if spec.dtype is None or not spec.graph_name:
                    raise UnsupportedError(
                        f"signature {self.name!r}: {kind} {key!r} is {spec.type_name}, "
                        "which needs the real TensorFlow Serving"
                    )

    def check_method(self) -> None:
        """Raises: ModelServerError: it is of no method that Predict runs, such as one that initialises."""
        if self.method not in (PREDICT, CLASSIFY, REGRESS):
            raise ModelServerError(
                "Expected prediction signature method_name to be one of "
                f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {self.method}"
            )

    def complete(self, inputs: Arrays) -> Arrays:
        """The inputs of a request with the defaults of those that it left out.

        Shapes are left to the graph, as TensorFlow Serving leaves them.
        Raises: InvalidRequestError: an input is missing, unknown, or of another type.
        """
        given, wanted = len(inputs), len(self.inputs)
        if given > wanted or (given < wanted and not self.defaults):
            raise InvalidRequestError(
                f"input size does not match signature: {given}!={wanted} len({_set(inputs)}) != "
                f"len({_set(self.inputs)}). Sent extra: {_set(inputs.keys() - self.inputs.keys())}. "
                f"Missing but required: {_set(self.inputs.keys() - inputs.keys())}."
            )
        complete: dict[str, NDArray[Any]] = {}
        for key, spec in sorted(self.inputs.items()):
            array = inputs.get(key, self.defaults.get(key))
            if array is None:
                raise InvalidRequestError(
                    f"Signature input alias: {key}(feed name: {spec.graph_name}) not found in request and "
                    f"no default value provided. Inputs expected to be in the request {_set(inputs)}, "
                    f"or default input alias set: {','.join(sorted(self.defaults))}"
                )
            complete[key] = array
        if unknown := inputs.keys() - self.inputs.keys():
            raise InvalidRequestError(
                "Inputs contains invalid name. Used request inputs: "
                f"{','.join(sorted(inputs.keys() - unknown))}, request input: {','.join(sorted(inputs))}"
            )
        self._check_types(complete)
        return complete

    def _check_types(self, inputs: Arrays) -> None:
        # TensorFlow counts a graph's arguments in the order of their names there.
        for number, (key, spec) in enumerate(sorted(self.inputs.items(), key=lambda i: i[1].graph_name)):
            if inputs[key].dtype != spec.dtype:
                given = numpy_dtype_name(inputs[key].dtype)
                raise InvalidRequestError(
                    f"Expects arg[{number}] to be {spec.type_name} but {given} is provided"
                )

    def batch_key(self, inputs: Arrays) -> Hashable | None:
        """Requests with equal keys may be computed together; None: this one must be computed alone.

        Lengths share a key up to the next power of two: so filling up at most doubles a row, and one very
        long text does not make short ones as slow as itself.
        """
        shapes = {array.shape for array in inputs.values()}
        rows = {shape[0] for shape in shapes if shape}
        fits = all(spec.fits(inputs[key]) for key, spec in self.inputs.items())
        if not self.batches or not fits or len(rows) != 1 or rows == {0}:
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


def _defaults(definition: Message) -> Arrays:
    found = {}
    for key, tensor in definition.defaults.items():
        try:
            found[key] = array_of(tensor)
        except TensorError:
            continue  # of a type that can't be sent either
    return found


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
