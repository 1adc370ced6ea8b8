"""Tensors and examples in the JSON of TensorFlow Serving's REST API: by row, or by column."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError, UnsupportedError
from serving.model_server.signature import Signature, TensorSpec
from serving.protos import Message

BASE64 = "b64"
_MOST_AXES = 32  # numpy's limit on some versions
_MOST_EXACT = {np.dtype(np.float32): 2**24 - 1, np.dtype(np.float64): 2**53 - 1}

Json = Any


def parse(body: bytes) -> dict[str, Json]:
    """The object in a request's body; NaN and Infinity are numbers.

    Raises: InvalidRequestError: not JSON, or no object.
    """
    if not body:
        raise InvalidRequestError("JSON Parse error: The document is empty")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(body)
        except json.JSONDecodeError as error:
            raise InvalidRequestError(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
        except (UnicodeDecodeError, RecursionError):
            raise InvalidRequestError("JSON Parse error: Invalid value. at offset: 0") from None
    if not isinstance(document, dict):
        raise InvalidRequestError(f"JSON Value: {_text(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Json]) -> str:
    """The name of the signature that is asked for; "": the default one. Raises: InvalidRequestError."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"JSON Value: {_text(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def predict_inputs(
    document: Mapping[str, Json], signature: Signature
) -> tuple[dict[str, NDArray[Any]], bool]:
    """The tensors of a Predict request, and whether they came by row.

    Raises: InvalidRequestError: neither rows nor columns, or values that are not the signature's.
    """
    signature.check_supported()
    if not signature.inputs:
        raise InvalidRequestError(f"Failed to get input map for signature: {signature.name}")
    if "instances" in document:
        if "inputs" in document:
            raise InvalidRequestError(
                f"JSON Value: {_text(document)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise InvalidRequestError(
                f"JSON Value: {_text(document)} Excepting 'instances' to be an list/array"
            )
        if not instances:
            raise InvalidRequestError(f"JSON Value: {_text(document)} No values in 'instances' array")
        return _by_row(instances, signature.inputs), True
    if "inputs" in document:
        return _by_column(document["inputs"], signature.inputs), False
    raise InvalidRequestError("Missing 'inputs' or 'instances' key")


def _by_column(value: Json, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    if not isinstance(value, dict) or _is_base64(value):
        if len(specs) > 1:
            raise InvalidRequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        name, spec = next(iter(specs.items()))
        return {name: _array(value, spec)}
    missing = next((name for name in sorted(specs) if name not in value), None)
    if missing is not None:
        raise InvalidRequestError(f"Missing named input: {missing} in 'inputs' object.")
    return {name: _array(value[name], spec) for name, spec in specs.items()}


def _by_row(instances: list[Json], specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    first = instances[0]
    if not isinstance(first, dict) and len(specs) > 1:
        raise InvalidRequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    named = isinstance(first, dict) and not _is_base64(first)
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in specs}
    only = next(iter(specs))
    for number, element in enumerate(instances):
        if (isinstance(element, dict) and not _is_base64(element)) != named:
            raise InvalidRequestError(
                f"Expecting object but got list at item {number} of input list"
                if named
                else f"Expecting value/list but got object at item {number} of input list"
            )
        for name, value in element.items() if named else [(only, element)]:
            at = f"Failed to process element: {number} " + (f"key: {name} " if named else "")
            try:
                _add_row(rows, name, value, specs)
            except InvalidRequestError as error:
                raise InvalidRequestError(
                    f"{at}of 'instances' list. Error: INVALID_ARGUMENT: {error}"
                ) from None
        if named and element.keys() != specs.keys():
            raise InvalidRequestError(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_text(element)} "
                f"keys must be equal to: {','.join(sorted(specs))}"
            )
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _add_row(
    rows: Mapping[str, list[NDArray[Any]]], name: str, value: Json, specs: Mapping[str, TensorSpec]
) -> None:
    spec = specs.get(name)
    if spec is None:
        raise InvalidRequestError(f"JSON object: does not have named input: {name}")
    array, before = _array(value, spec), rows[name]
    if before and before[0].size != array.size:
        raise InvalidRequestError(f"Expecting tensor size: {before[0].size} but got: {array.size}")
    if before and before[0].shape != array.shape:
        raise InvalidRequestError(f"Expecting shape {_shape(before[0])} but got: {_shape(array)}")
    before.append(array)


def _array(value: Json, spec: TensorSpec) -> NDArray[Any]:
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if len(shape) > _MOST_AXES:
            raise InvalidRequestError(
                f"Encountered list at unexpected level: {_MOST_AXES} lists in one another"
            )
        inner = inner[0] if inner else None
    values: list[Any] = []
    _collect(value, 0, shape, spec, values)
    array = np.empty(len(values), spec.dtype)
    try:
        array[:] = values
    except OverflowError as error:
        raise InvalidRequestError(str(error)) from None
    return array.reshape(shape)


def _collect(value: Json, level: int, shape: list[int], spec: TensorSpec, values: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise InvalidRequestError(
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        values.append(_scalar(value, spec))
        return
    if level >= len(shape):
        raise InvalidRequestError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise InvalidRequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for inner in value:
        _collect(inner, level + 1, shape, spec, values)


def _scalar(value: Json, spec: TensorSpec) -> Any:
    dtype = spec.dtype
    if dtype is None:
        pass
    elif dtype.kind == "O":
        if isinstance(value, dict):
            return _decoded(value)
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass")
    elif dtype.kind == "b":
        if isinstance(value, bool):
            return value
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if isinstance(value, int) and not isinstance(value, bool) and limits.min <= value <= limits.max:
            return value
    elif dtype in _MOST_EXACT:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_exact(value, dtype, spec.type_name)
            return value
    else:
        raise UnsupportedError(f"Conversion of JSON Value: {_text(value)} to type: {spec.type_name}")
    raise InvalidRequestError(
        f"JSON Value: {_text(value)} Type: {_kind(value)} is not of expected type: {spec.type_name}"
    )


def _check_exact(value: float, dtype: np.dtype[Any], name: str) -> None:
    lost = isinstance(value, int) and abs(value) > _MOST_EXACT[dtype]
    if lost or (np.isfinite(value) and not np.finfo(dtype).min <= value <= np.finfo(dtype).max):
        raise InvalidRequestError(
            f"Cannot convert JSON value: {_text(value)} to {name} without loss of precision."
        )


def fill_examples(document: Mapping[str, Json], examples: Message) -> None:
    """Write the examples of a Classify or Regress request, and their context, into an Input.

    Raises: InvalidRequestError: no list of objects, or features that are not of one kind.
    """
    within = examples.example_list
    if "context" in document:
        within = examples.example_list_with_context
        _fill_example(document["context"], within.context)
    if "examples" not in document:
        raise InvalidRequestError(
            f"JSON Value: {_text(document)} When method is classify, key 'examples' is expected and was "
            "not found"
        )
    given = document["examples"]
    if not isinstance(given, list):
        raise InvalidRequestError(
            f"JSON Value: {_text(document)} Expecting 'examples' value to be an list/array"
        )
    if not given:
        raise InvalidRequestError(f"JSON Value: {_text(document)} 'examples' value is an empty array")
    for example in given:
        _fill_example(example, within.examples.add())


def _fill_example(value: Json, example: Message) -> None:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Example must be JSON object but got JSON {_kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(feature, name, element)


def _add_to_feature(feature: Message, name: str, value: Json) -> None:
    kind, converted = _feature_value(name, value)
    known = feature.WhichOneof("kind")
    if known not in (None, kind):
        expected = known.removesuffix("_list")
        raise InvalidRequestError(f"Unexpected element type in feature: {name} expecting type: {expected}")
    try:
        getattr(feature, kind).value.append(converted)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"Cannot convert JSON value: {_text(value)} to float without loss of precision."
        ) from None


def _feature_value(name: str, value: Json) -> tuple[str, Json]:
    if isinstance(value, int):  # True and False too
        if value >= 2**63:
            raise InvalidRequestError(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", int(value)
    if isinstance(value, float):
        return "float_list", value
    if isinstance(value, str):
        return "bytes_list", value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and _is_base64(value):
        return "bytes_list", _decoded(value)
    raise InvalidRequestError(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")


def _is_base64(value: Mapping[str, Json]) -> bool:
    return value.keys() == {BASE64} and isinstance(value[BASE64], str)


def _decoded(value: Mapping[str, Json]) -> bytes:
    if not _is_base64(value):
        raise InvalidRequestError(f"JSON Value: {_text(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value[BASE64], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError("Unable to base64 decode") from None


def _kind(value: Json) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    kinds: Iterable[tuple[type, str]] = (
        (dict, "Object"), (list, "Array"), (str, "String"), (int, "Number"), (float, "Number"),
    )  # fmt: skip
    return next(name for kind, name in kinds if isinstance(value, kind))


def _text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shape(array: NDArray[Any]) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
