"""tf.Examples in, classes and regressions out: what Classify, Regress and MultiInference have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError, SignatureMismatchError
from serving.model_server.signature import CLASSIFY, REGRESS, Arrays, Signature
from serving.protos import Message, numpy_dtype_name

INPUTS = "inputs"  # the one input of signatures of both methods
_CLASSES, _SCORES = "classes", "scores"
_OUTPUTS = "outputs"


def serialized(examples: Message) -> NDArray[np.object_]:
    """The examples of an Input, each serialized: [batch] of bytes. A context is put before each of them.

    Raises: InvalidRequestError: there is none.
    """
    kind = examples.WhichOneof("kind")
    if kind == "example_list_with_context":
        within = examples.example_list_with_context
        # Two messages in a row are one that has the fields of both.
        context = within.context.SerializeToString()
        found = [context + example.SerializeToString() for example in within.examples]
    else:
        found = [example.SerializeToString() for example in examples.example_list.examples]
    if not found:
        raise InvalidRequestError("Input is empty.")
    array = np.empty(len(found), object)
    array[:] = found
    return array


def check_classifies(signature: Signature) -> None:
    """Raises: InvalidRequestError, SignatureMismatchError: Classify can't run this signature."""
    _check_method(signature, "classification", CLASSIFY)
    if len(signature.outputs) not in (1, 2):
        raise InvalidRequestError(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise SignatureMismatchError(f"No classification inputs found in SignatureDef: {signature.name}")
    if not signature.outputs.keys() & {_CLASSES, _SCORES}:
        raise SignatureMismatchError(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or '
            f'"{_SCORES}". Signature was: {signature.name}'
        )


def check_regresses(signature: Signature) -> None:
    """Raises: InvalidRequestError, SignatureMismatchError: Regress can't run this signature."""
    _check_method(signature, "regression", REGRESS)
    if len(signature.outputs) != 1:
        raise InvalidRequestError("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise SignatureMismatchError(f"No regression inputs found in SignatureDef: {signature.name}")
    if _OUTPUTS not in signature.outputs:
        raise SignatureMismatchError(f"No regression outputs found in SignatureDef: {signature.name}")


def _check_method(signature: Signature, kind: str, method: str) -> None:
    if signature.method != method:
        raise InvalidRequestError(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method}"
        )
    if len(signature.inputs) != 1:
        raise InvalidRequestError("Expected one input Tensor.")


def fill_classifications(result: Message, outputs: Arrays, examples: int) -> None:
    """Write the classes and scores of each example into a ClassificationResult.

    Raises: InvalidRequestError: the outputs are not [batch_size num_classes] of strings and of floats.
    """
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for name, array, dtype in (
        (_CLASSES, classes, np.dtype(object)),
        (_SCORES, scores, np.dtype(np.float32)),
    ):
        if array is None:
            continue
        if array.ndim != 2:
            raise InvalidRequestError(
                f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array)}"
            )
        if array.dtype != dtype:
            wanted, got = _enum_name(dtype), _enum_name(array.dtype)
            raise InvalidRequestError(f"Expected {name} Tensor of {wanted}. Got: {got}")
        if array.shape[0] != examples:
            raise InvalidRequestError(
                f"Expected {name} output batch size of {examples}. Got: {array.shape[0]}"
            )
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise InvalidRequestError(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    for number in range(examples):
        found = result.classifications.add()
        for label, score in zip(
            classes[number]
            if classes is not None
            else [b""] * (scores.shape[1] if scores is not None else 0),
            scores[number]
            if scores is not None
            else [0.0] * (classes.shape[1] if classes is not None else 0),
            strict=True,
        ):
            found.classes.add(label=label, score=float(score))


def fill_regressions(result: Message, outputs: Arrays, examples: int) -> None:
    """Write the value of each example into a RegressionResult.

    Raises: InvalidRequestError: the output is not [batch_size] or [batch_size, 1] of floats.
    """
    array = outputs[_OUTPUTS]
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise InvalidRequestError(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {shape_text(array)}"
        )
    if array.shape[0] != examples:
        raise InvalidRequestError(
            f"Input batch size did not match output batch size: {examples} vs. {array.shape[0]}"
        )
    if array.dtype != np.float32:
        raise InvalidRequestError(f"Expected output Tensor of DT_FLOAT.  Got: {_enum_name(array.dtype)}")
    for value in array.reshape(-1):
        result.regressions.add(value=float(value))


def shape_text(array: NDArray[np.generic]) -> str:
    """A shape as TensorFlow writes it: [2,3]."""
    return "[" + ",".join(map(str, array.shape)) + "]"


def _enum_name(dtype: np.dtype[Any]) -> str:
    return f"DT_{numpy_dtype_name(dtype).upper()}"
