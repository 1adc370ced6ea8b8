"""What a signature accepts, and which requests may share a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError, ModelServerError, UnsupportedError
from serving.model_server.signature import Signature
from serving.protos import get_model_metadata_pb2, tensor_of

Shape = tuple[int | None, ...] | None


def empty_proto() -> Any:
    return get_model_metadata_pb2.SignatureDefMap().signature_def["s"]


def signature(inputs: dict[str, Shape], output: Shape = (None, 2)) -> Signature:
    proto = empty_proto()
    for key, shape in inputs.items():
        write(proto.inputs[key], 3, shape)
        proto.inputs[key].name = "x:0" if key == "attention_mask" else "a:0"
    write(proto.outputs["y"], 1, output)
    return Signature.from_proto("s", proto)


def write(info: Any, data_type: int, shape: Shape) -> None:
    info.name, info.dtype = "x:0", data_type
    if shape is None:
        info.tensor_shape.unknown_rank = True
        return
    for size in shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)


def zeros(*shape: int) -> NDArray[np.int32]:
    return np.zeros(shape, np.int32)


TEXT = signature({"input_ids": (None, None), "attention_mask": (None, None)})


@pytest.mark.parametrize(
    ("inputs", "output", "batches", "pads"),
    [
        ({"input_ids": (None, None), "attention_mask": (None, None)}, (None, 2), True, True),
        ({"input_ids": (None, None)}, (None, 2), True, False),  # no mask: zeros would be words
        ({"input_ids": (None, None), "attention_mask": (None, None)}, (None, None), True, False),
        ({"input_ids": (None, 32), "attention_mask": (None, 32)}, (None, 2), True, False),
        ({"pixels": (None, 8, 8)}, (None, 10), True, False),
        ({"pixels": (1, 8)}, (1, 10), False, False),
        ({"pixels": (None, 8)}, (), False, False),  # one number for the whole batch
        ({"pixels": None}, (None, 2), False, False),
    ],
)
def test_rows_are_joined_only_where_that_changes_nothing(
    inputs: dict[str, Shape], output: Shape, batches: bool, pads: bool
) -> None:
    found = signature(inputs, output)
    assert (found.batches, found.pads) == (batches, pads)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"input_ids": zeros(1, 3)},
            "input size does not match signature: 1!=2 len({input_ids}) != len({attention_mask,input_ids}). "
            "Sent extra: {}. Missing but required: {attention_mask}.",
        ),
        (
            {"input_ids": zeros(1, 3), "attention_mask": zeros(1, 3), "x": zeros(1)},
            "input size does not match signature: 3!=2 len({attention_mask,input_ids,x}) != "
            "len({attention_mask,input_ids}). Sent extra: {x}. Missing but required: {}.",
        ),
        (
            {"input_ids": zeros(1, 3), "mask": zeros(1, 3)},
            "Signature input alias: attention_mask(feed name: x:0) not found in request and no default value "
            "provided. Inputs expected to be in the request {input_ids,mask}, or default input alias set: ",
        ),
        (
            {"input_ids": np.zeros((1, 3), np.int64), "attention_mask": zeros(1, 3)},
            "Expects arg[0] to be int32 but int64 is provided",
        ),
        (
            {"input_ids": zeros(1, 3), "attention_mask": np.zeros((1, 3), np.float32)},
            "Expects arg[1] to be int32 but float is provided",
        ),
    ],
)
def test_inputs_that_are_not_the_signatures_are_told_as_tensorflow_serving_does(
    inputs: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        TEXT.complete(inputs)
    assert str(caught.value) == message.strip()


def test_an_input_that_is_left_out_takes_its_default() -> None:
    proto = empty_proto()
    for key in ("x", "scale"):
        write(proto.inputs[key], 3, (None,))
    proto.defaults["scale"].CopyFrom(tensor_of(np.array([3], np.int32)))
    signature = Signature.from_proto("s", proto)
    complete = signature.complete({"x": zeros(2)})
    assert {key: array.tolist() for key, array in complete.items()} == {"x": [0, 0], "scale": [3]}
    with pytest.raises(InvalidRequestError, match="Signature input alias: x"):
        signature.complete({"scale": zeros(1)})
    with pytest.raises(InvalidRequestError, match="Used request inputs: x, request input: x,y"):
        signature.complete({"x": zeros(1), "y": zeros(1)})


def test_a_shape_is_left_to_the_graph_and_such_a_request_is_computed_alone() -> None:
    images = signature({"pixels": (None, 8, 8)})
    for shape, together in (((5, 8, 8), True), ((5, 8, 9), False), ((8, 8), False)):
        inputs = images.complete({"pixels": zeros(*shape)})
        assert (images.batch_key(inputs) is not None) is together


def test_what_only_initialises_is_not_predicted_with() -> None:
    with pytest.raises(ModelServerError, match="Expected prediction signature method_name to be one of"):
        Signature.from_proto("s", empty_proto()).check_method()


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [(1, 32, True), (32, 33, False), (33, 64, True), (65, 128, True), (128, 129, False)],
)
def test_lengths_share_a_batch_up_to_a_power_of_two(one: int, other: int, together: bool) -> None:
    keys = [
        TEXT.batch_key({"input_ids": zeros(1, length), "attention_mask": zeros(1, length)})
        for length in (one, other)
    ]
    assert (keys[0] == keys[1]) is together


@pytest.mark.parametrize(("ids", "mask"), [((1, 5), (1, 3)), ((2, 5), (1, 5))])
def test_inputs_of_unequal_shapes_are_left_for_the_model_to_refuse(
    ids: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    assert TEXT.batch_key({"input_ids": zeros(*ids), "attention_mask": zeros(*mask)}) is None


def test_without_a_mask_only_equal_shapes_share_a_batch() -> None:
    unmasked = signature({"input_ids": (None, None)})
    keys = [unmasked.batch_key({"input_ids": zeros(*shape)}) for shape in ((1, 5), (3, 5), (1, 6))]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("data_type", [11, 0], ids=["quantized", "none"])
def test_a_tensor_of_another_kind_is_left_to_the_real_server(data_type: int) -> None:
    proto = empty_proto()
    write(proto.inputs["text"], data_type, (None,))
    with pytest.raises(UnsupportedError, match=r"input 'text' is (qint8|invalid), which needs the real"):
        Signature.from_proto("s", proto).check_supported()


def test_a_sparse_tensor_is_left_to_the_real_server() -> None:
    proto = empty_proto()
    proto.inputs["words"].dtype = 3
    proto.inputs["words"].coo_sparse.values_tensor_name = "v:0"
    with pytest.raises(UnsupportedError, match="input 'words' is a coo_sparse tensor"):
        Signature.from_proto("s", proto).check_supported()
