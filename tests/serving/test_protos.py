"""Messages without TensorFlow, and arrays in and out of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.protos import TensorError, array_of, dtype_name, predict_pb2, tensor_of

TYPES = [
    np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64,
    np.uint8, np.uint16, np.uint32, np.uint64, np.bool_,
]  # fmt: skip
TensorProto: Any = type(predict_pb2.PredictRequest().inputs["x"])


def tensor(data_type: str, shape: tuple[int, ...], **values: Any) -> Any:
    number = TensorProto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name[data_type].number
    message = TensorProto(dtype=number, **values)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4)])
def test_an_array_comes_back_from_a_tensor_as_it_was(dtype: Any, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) - 2).astype(dtype).reshape(shape)
    back = array_of(TensorProto.FromString(tensor_of(array).SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_rows_of_a_larger_array_are_sent_alone() -> None:
    block = np.arange(12, dtype=np.int32).reshape(4, 3)
    assert np.array_equal(array_of(tensor_of(block[1:4:2])), block[1:4:2])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (tensor("DT_FLOAT", (1, 2), float_val=[0.25, 0.75]), np.array([[0.25, 0.75]], np.float32)),
        (tensor("DT_DOUBLE", (2,), double_val=[0.1, 0.2]), np.array([0.1, 0.2])),
        (tensor("DT_INT32", (2, 1), int_val=[7, -8]), np.array([[7], [-8]], np.int32)),
        (tensor("DT_INT64", (1,), int64_val=[2**40]), np.array([2**40])),
        (tensor("DT_UINT64", (1,), uint64_val=[2**63]), np.array([2**63], np.uint64)),
        (tensor("DT_BOOL", (2,), bool_val=[True, False]), np.array([True, False])),
        (tensor("DT_HALF", (2,), half_val=[0x3C00, 0xC000]), np.array([1, -2], np.float16)),
        (tensor("DT_FLOAT", (), float_val=[0.5]), np.array(0.5, np.float32)),
        (tensor("DT_STRING", (2,), string_val=[b"x", b"\xff"]), np.array([b"x", b"\xff"], object)),
        # As TensorFlow writes constants: the last value stands for the rest.
        (tensor("DT_FLOAT", (2, 2), float_val=[1, 2]), np.array([[1, 2], [2, 2]], np.float32)),
        (tensor("DT_INT32", (3,)), np.zeros(3, np.int32)),
    ],
)
def test_values_are_read_from_the_field_of_their_type(message: Any, expected: NDArray[Any]) -> None:
    array = array_of(message)
    assert array.dtype == expected.dtype
    assert np.array_equal(array, expected)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (tensor("DT_QINT8", (1,), int_val=[1]), "tensors of qint8 are not supported"),
        (tensor("DT_INVALID", ()), "tensors of invalid are not supported"),
        (tensor("DT_INT32", (1, 4), tensor_content=b"123"), r"int32 \[1, 4\] takes 16 bytes, .* has 3"),
        (tensor("DT_INT32", (1,), int_val=[1, 2]), r"int32 \[1\] takes 1 values, got 2"),
        (tensor("DT_INT32", (-1, 2), tensor_content=b"12345678"), "the shape is not fully known"),
        (tensor("DT_UINT8", (1,), int_val=[256]), "out of bounds"),
        (tensor("DT_FLOAT", (1 << 30, 1 << 30), float_val=[0]), "values, got only 1"),
        (tensor("DT_FLOAT", (0, *[1] * 99)), "dimension"),
    ],
)
def test_a_tensor_that_is_no_array_says_why(message: Any, reason: str) -> None:
    with pytest.raises(TensorError, match=reason):
        array_of(message)


def test_a_tensor_of_unknown_rank_is_no_array() -> None:
    message = tensor("DT_INT32", (), int_val=[1])
    message.tensor_shape.unknown_rank = True
    with pytest.raises(TensorError, match="not fully known"):
        array_of(message)


def test_an_array_without_a_tensor_type_says_so() -> None:
    with pytest.raises(TensorError, match="no tensor type for arrays of complex128"):
        tensor_of(np.zeros(1, np.complex128))


@pytest.mark.parametrize(("number", "name"), [(1, "float"), (7, "string"), (9999, "9999")])
def test_types_have_names_for_people(number: int, name: str) -> None:
    assert dtype_name(number) == name


WITHOUT_TENSORFLOW = """
import sys
import serving.inference
assert "tensorflow" not in sys.modules
assert not any(name.startswith(("tensorflow.python", "tensorflow._api", "keras")) for name in sys.modules)
memory = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print("megabytes", int(memory.split()[1]) // 1024)
"""

TENSORFLOW_AFTERWARDS = """
import numpy as np
from serving.protos import array_of, tensor_of
import tensorflow as tf
assert tf.reduce_sum(tf.ones([3])).numpy() == 3
assert type(tf.make_tensor_proto([1])) is type(tensor_of(np.zeros(1, np.int32)))
assert array_of(tf.make_tensor_proto([[1, 2]])).tolist() == [[1, 2]]
"""

TENSORFLOW_BEFORE = """
import tensorflow as tf
from serving.protos import array_of
import sys
assert sys.modules["tensorflow"] is tf
assert array_of(tf.make_tensor_proto([[1, 2]])).tolist() == [[1, 2]]
assert tf.reduce_sum(tf.ones([3])).numpy() == 3
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_does_not_run_tensorflow_and_stays_small(record_property: Any) -> None:
    megabytes = int(run(WITHOUT_TENSORFLOW).split()[1])
    record_property("client_megabytes", megabytes)
    assert megabytes < 150  # with TensorFlow: more than 600


@pytest.mark.parametrize("script", [TENSORFLOW_AFTERWARDS, TENSORFLOW_BEFORE], ids=["afterwards", "before"])
def test_tensorflow_works_in_the_same_process(script: str) -> None:
    run(script)


def test_a_missing_tensorflow_is_named() -> None:
    script = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else real(name, *a)\n"
        "import serving.protos"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ImportError: TensorFlow's message modules are missing: install tallybook[serving]" in done.stderr
