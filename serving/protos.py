"""TensorFlow Serving's protobuf messages without TensorFlow, and numpy arrays in and out of them.

Importing `tensorflow_serving.apis` the plain way runs all of TensorFlow: seconds, and 600 MB in every
process. The messages need only the generated `tensorflow.core.*_pb2` modules, so they are imported here
under a bare stand-in for the parent package, which is taken away again. A later `import tensorflow`
runs the real package, and shares the message modules. Import this module before starting threads that
import TensorFlow: for that moment they would see the stand-in.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The generated modules carry no types; their messages are Any.
Message = Any

_MAX_FILLED_ELEMENTS = 1 << 20


class TensorError(ValueError):
    """An array or a tensor message that can't be turned into the other; the message says why."""


@contextmanager
def _tensorflow_not_run() -> Iterator[None]:
    if "tensorflow" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("TensorFlow's message modules are missing: install tallybook[serving]")
    stand_in = ModuleType("tensorflow")
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules["tensorflow"] = stand_in
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


with _tensorflow_not_run():
    from tensorflow.core.framework import (  # type: ignore[import-untyped]  # ships no types
        tensor_pb2,
        types_pb2,
    )
    from tensorflow.core.protobuf import error_codes_pb2  # type: ignore[import-untyped]  # ships no types
    from tensorflow_serving.apis import (  # type: ignore[import-untyped]  # ships no types
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        input_pb2,
        model_management_pb2,
        model_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_log_pb2,
        prediction_service_pb2_grpc,
        regression_pb2,
    )
    from tensorflow_serving.config import (  # type: ignore[import-untyped]  # ships no types
        model_server_config_pb2,
    )

__all__ = [
    "Message",
    "TensorError",
    "array_of",
    "classification_pb2",
    "dtype_name",
    "error_codes_pb2",
    "get_model_metadata_pb2",
    "get_model_status_pb2",
    "inference_pb2",
    "input_pb2",
    "model_management_pb2",
    "model_pb2",
    "model_server_config_pb2",
    "model_service_pb2_grpc",
    "numpy_dtype",
    "numpy_dtype_name",
    "predict_pb2",
    "prediction_log_pb2",
    "prediction_service_pb2_grpc",
    "regression_pb2",
    "tensor_of",
]

_BYTES = np.dtype(object)  # arrays of `bytes` objects
# DataType → numpy's type, and the field that holds the values where tensor_content does not.
_DTYPES: dict[int, tuple[np.dtype[Any], str]] = {
    types_pb2.DT_FLOAT: (np.dtype(np.float32), "float_val"),
    types_pb2.DT_DOUBLE: (np.dtype(np.float64), "double_val"),
    types_pb2.DT_HALF: (np.dtype(np.float16), "half_val"),
    types_pb2.DT_INT8: (np.dtype(np.int8), "int_val"),
    types_pb2.DT_INT16: (np.dtype(np.int16), "int_val"),
    types_pb2.DT_INT32: (np.dtype(np.int32), "int_val"),
    types_pb2.DT_INT64: (np.dtype(np.int64), "int64_val"),
    types_pb2.DT_UINT8: (np.dtype(np.uint8), "int_val"),
    types_pb2.DT_UINT16: (np.dtype(np.uint16), "int_val"),
    types_pb2.DT_UINT32: (np.dtype(np.uint32), "uint32_val"),
    types_pb2.DT_UINT64: (np.dtype(np.uint64), "uint64_val"),
    types_pb2.DT_BOOL: (np.dtype(np.bool_), "bool_val"),
    types_pb2.DT_STRING: (_BYTES, "string_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in _DTYPES.items()}


def numpy_dtype(data_type: int) -> np.dtype[Any] | None:
    """numpy's type for a DataType number, `object` for strings; None for those that are not supported."""
    known = _DTYPES.get(data_type)
    return known[0] if known else None


def dtype_name(data_type: int) -> str:
    """TensorFlow's name of a DataType number: `int32`, `float`, `string`, or the number if it has none."""
    names = types_pb2.DataType.DESCRIPTOR.values_by_number
    return names[data_type].name.removeprefix("DT_").lower() if data_type in names else str(data_type)


def numpy_dtype_name(dtype: np.dtype[Any]) -> str:
    """TensorFlow's name of the type of an array that `array_of` gives."""
    return dtype_name(_NUMBERS[dtype])


def tensor_of(array: NDArray[Any]) -> Message:
    """A TensorProto with the array's type, shape and values, in `tensor_content` unless they are strings.

    Raises: TensorError: no tensor type for the array's type.
    """
    number = _NUMBERS.get(array.dtype)
    if number is None:
        raise TensorError(f"no tensor type for arrays of {array.dtype}")
    tensor = tensor_pb2.TensorProto(dtype=number)
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == _BYTES:
        tensor.string_val.extend(array.reshape(-1))
    else:
        tensor.tensor_content = array.tobytes()
    return tensor


def array_of(tensor: Message) -> NDArray[Any]:
    """The array that a TensorProto holds, in `tensor_content` or in the field of its type; read only.

    As in TensorFlow, fewer values than the shape needs repeat the last one, and none mean zeros.
    Raises: TensorError: unsupported type, unknown shape, or values that don't fit the shape.
    """
    known = _DTYPES.get(tensor.dtype)
    if known is None:
        raise TensorError(f"tensors of {dtype_name(tensor.dtype)} are not supported")
    dtype, field = known
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise TensorError("the shape is not fully known")
    try:
        if tensor.tensor_content and dtype != _BYTES:
            return _from_bytes(tensor.tensor_content, dtype, shape)
        return _from_values(getattr(tensor, field), dtype, shape)
    except (ValueError, OverflowError) as error:  # numpy's limits on ranks, sizes and values
        raise error if isinstance(error, TensorError) else TensorError(str(error)) from None


def _from_bytes(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise TensorError(f"{dtype} {list(shape)} takes {expected} bytes, tensor_content has {len(content)}")
    return np.frombuffer(content, dtype).reshape(shape)


def _from_values(values: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    elements = math.prod(shape)
    if len(values) > elements:
        raise TensorError(f"{dtype} {list(shape)} takes {elements} values, got {len(values)}")
    # A few bytes could otherwise ask for any amount of memory.
    if len(values) < elements > _MAX_FILLED_ELEMENTS:
        raise TensorError(f"{dtype} {list(shape)} takes {elements} values, got only {len(values)}")
    in_field = np.dtype(np.uint16) if dtype == np.float16 else dtype  # half_val holds the bits
    # From a list: numpy would take protobuf's own container as an array, and cut values that don't fit.
    given = np.array(list(values), in_field).view(dtype)
    nothing = b"" if dtype == _BYTES else 0
    array = np.full(shape, given[-1] if len(given) else nothing, dtype)
    array.reshape(-1)[: len(given)] = given
    array.flags.writeable = False
    return array
