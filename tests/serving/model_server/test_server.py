"""What the server answers and refuses over gRPC, with real SavedModels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.model_server.server import ModelServer
from serving.protos import get_model_metadata_pb2
from tests.modelservers import (
    TIMEOUT_SECONDS,
    Gate,
    Stubs,
    predict_request,
    probabilities,
    running_server,
    text,
    wait_until,
)
from tests.savedmodels import VOCABULARY, tiny_probabilities

NAME = "review-sentiment"
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_versions: Path) -> Iterator[Stubs]:
    """A server that keeps versions 1 and 2."""
    models_dir = tmp_path_factory.mktemp("models")
    shutil.copytree(model_versions, models_dir / NAME)
    with (
        running_server(models_dir, model_server_versions_kept=2) as server,
        Stubs(server.address) as stubs,
    ):
        yield stubs


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(models_dir: Path, gate: Gate) -> Iterator[tuple[Stubs, ModelServer]]:
    """A server whose predictions wait for the gate, which does not count as slow; it takes four at a time."""
    patient = {"model_server_max_pending": 4, "model_server_batch_seconds": 1e6}
    with running_server(models_dir, gate.load, **patient) as server:
        with Stubs(server.address) as stubs:
            yield stubs, server
        gate.open()


@pytest.mark.parametrize(("version", "answering"), [(1, 1), (2, 2), (None, 2)])
def test_the_version_that_was_asked_for_answers(served: Stubs, version: int | None, answering: int) -> None:
    answer = served.predict(text(2, 9, 17, 3), version)
    assert probabilities(answer)[0] == pytest.approx(tiny_probabilities([2, 9, 17, 3], answering), abs=1e-6)
    assert answer.model_spec.name == NAME
    assert answer.model_spec.version.value == answering
    assert answer.model_spec.signature_name == "serving_default"


def test_several_rows_are_answered_in_order(served: Stubs) -> None:
    ids = np.array([[2, 9, 3], [2, 17, 3], [5, 5, 5]], np.int32)
    rows = probabilities(served.predict({"input_ids": ids, "attention_mask": np.ones_like(ids)}, 1))
    assert rows == pytest.approx(np.array([tiny_probabilities(row, 1) for row in ids]), abs=1e-6)


def bad(**changes: Any) -> dict[str, Any]:
    inputs = {**text(2, 3), **changes}
    return {key: array for key, array in inputs.items() if array is not None}


ONES = np.ones((1, 2), np.int32)


@pytest.mark.parametrize(
    ("inputs", "spec", "code", "message"),
    [
        (bad(), {"version": 7}, CODE.NOT_FOUND, f"Servable not found for request: Specific({NAME}, 7)"),
        (bad(), {"name": "none"}, CODE.NOT_FOUND, "Servable not found for request: Latest(none)"),
        (bad(), {"name": "a\nb\x00"}, CODE.NOT_FOUND, "Servable not found for request: Latest(a b\x00)"),
        (bad(), {"name": ""}, CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (bad(), {"version_label": "x"}, CODE.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        (bad(), {"signature_name": "x"}, CODE.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        (
            bad(),
            {"signature_name": "__saved_model_init_op"},
            CODE.INTERNAL,
            "Expected prediction signature method_name to be one of {tensorflow/serving/predict, ",
        ),
        (
            bad(attention_mask=None, mask=ONES),
            {},
            CODE.INVALID_ARGUMENT,
            "Signature input alias: attention_mask(feed name: serving_default_attention_mask:0) not found in "
            "request and no default value provided. Inputs expected to be in the request {input_ids,mask}, ",
        ),
        (
            bad(input_ids=np.ones((1, 2), np.int64)),
            {},
            CODE.INVALID_ARGUMENT,
            "Expects arg[1] to be int32 but int64 is provided",
        ),
        (bad(input_ids=np.ones(3, np.int32)), {}, CODE.INVALID_ARGUMENT, "Incompatible shapes: [3,2] vs. "),
        (bad(input_ids=np.ones((1, 5), np.int32)), {}, CODE.INVALID_ARGUMENT, "Incompatible shapes"),
        (text(2, 99_999), {}, CODE.INVALID_ARGUMENT, "indices[0,1] = 99999 is not in [0, "),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    served: Stubs, inputs: Any, spec: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.predict(inputs, **spec)
    assert caught.value.code() is code
    assert str(caught.value.details()).startswith(message)


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused(served: Stubs) -> None:
    request = predict_request(NAME, None, text(2, 3))
    request.inputs["input_ids"].tensor_content += b"\0"
    with pytest.raises(grpc.RpcError) as caught:
        served.send(request)
    assert caught.value.code() is CODE.INVALID_ARGUMENT
    assert caught.value.details() == (
        "tensor parsing error: input_ids: int32 [1, 2] takes 8 bytes, tensor_content has 9"
    )


def test_a_very_long_name_does_not_outgrow_the_answer(served: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.predict(bad(), name="x" * 100_000)
    assert caught.value.code() is CODE.NOT_FOUND
    assert str(caught.value.details()).endswith("…")


@pytest.mark.parametrize(
    ("output_filter", "code"), [(["probabilities"], None), (["logits"], CODE.INVALID_ARGUMENT)]
)
def test_only_the_outputs_asked_for_are_sent(
    served: Stubs, output_filter: list[str], code: grpc.StatusCode | None
) -> None:
    request = predict_request(NAME, None, text(2, 3))
    request.output_filter.extend(output_filter)
    if code is None:
        assert list(served.send(request).outputs) == output_filter
        return
    with pytest.raises(grpc.RpcError) as caught:
        served.send(request)
    assert caught.value.code() is code
    assert caught.value.details() == (
        "output tensor alias not found in signature: logits "
        "Outputs expected to be in the set {probabilities}."
    )


def test_metadata_describe_the_signatures(served: Stubs) -> None:
    answer = served.metadata("signature_def")
    assert (answer.model_spec.name, answer.model_spec.version.value) == (NAME, 2)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert sorted(signature.inputs) == ["attention_mask", "input_ids"]
    assert list(signature.outputs) == ["probabilities"]
    assert signature.method_name == "tensorflow/serving/predict"


@pytest.mark.parametrize("fields", [(), ("weights",)])
def test_other_metadata_are_refused(served: Stubs, fields: tuple[str, ...]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.metadata(*fields)
    assert caught.value.code() is CODE.INVALID_ARGUMENT


def test_the_state_of_versions_is_told(served: Stubs) -> None:
    assert served.status() == {2: ("AVAILABLE", 0, ""), 1: ("AVAILABLE", 0, "")}
    assert served.status(version=1) == {1: ("AVAILABLE", 0, "")}
    for unknown in ({"name": "none"}, {"version": 9}):
        with pytest.raises(grpc.RpcError) as caught:
            served.status(**unknown)
        assert caught.value.code() is CODE.NOT_FOUND


def test_texts_answered_in_one_batch_are_answered_as_if_alone(
    gated: tuple[Stubs, ModelServer], gate: Gate
) -> None:
    stubs, server = gated
    lengths = [3, 16, 9]
    random = np.random.default_rng(0)
    texts = [random.integers(4, len(VOCABULARY), length).tolist() for length in lengths]
    first = stubs.later(predict_request(NAME, None, text(2, 3)), TIMEOUT_SECONDS)
    gate.wait_for_run()
    calls = [stubs.later(predict_request(NAME, None, text(*ids)), TIMEOUT_SECONDS) for ids in texts]
    wait_until(lambda: server.manager.waiting() == 3)
    gate.open()
    first.result()
    for ids, call in zip(texts, calls, strict=True):
        assert probabilities(call.result())[0] == pytest.approx(tiny_probabilities(ids), abs=1e-6)
    assert gate.runs == [1, 3]


def test_a_full_server_refuses_at_once_and_still_tells_its_state(
    gated: tuple[Stubs, ModelServer], gate: Gate
) -> None:
    stubs, server = gated
    calls = [stubs.later(predict_request(NAME, None, text(2, n)), TIMEOUT_SECONDS) for n in range(4, 8)]
    gate.wait_for_run()
    wait_until(lambda: sum(gate.runs) + server.manager.waiting() == 4)
    with pytest.raises(grpc.RpcError) as caught:
        stubs.predict(text(2, 3))
    assert caught.value.code() is CODE.UNAVAILABLE
    assert caught.value.details() == "4 predictions are waiting or running; try again later"
    assert stubs.status() == {1: ("AVAILABLE", 0, "")}
    gate.open()
    for n, call in zip(range(4, 8), calls, strict=True):
        assert probabilities(call.result())[0] == pytest.approx(tiny_probabilities([2, n]), abs=1e-6)


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
def test_a_request_nobody_waits_for_is_not_computed_and_gives_its_place_back(
    how: str, gated: tuple[Stubs, ModelServer], gate: Gate
) -> None:
    stubs, server = gated
    running = stubs.later(predict_request(NAME, None, text(2, 3)), TIMEOUT_SECONDS)
    gate.wait_for_run()
    seconds = 2 if how == "deadline" else TIMEOUT_SECONDS
    waiting = [stubs.later(predict_request(NAME, None, text(2, 4)), seconds) for _ in range(3)]
    wait_until(lambda: server.manager.waiting() == 3)
    for call in waiting:
        if how == "cancelled":
            call.cancel()
        else:
            assert call.code() is CODE.DEADLINE_EXCEEDED
    wait_until(lambda: not refused(stubs))
    last = stubs.later(predict_request(NAME, None, text(2, 5)), TIMEOUT_SECONDS)
    gate.open()
    assert probabilities(running.result())[0] == pytest.approx(tiny_probabilities([2, 3]), abs=1e-6)
    assert probabilities(last.result())[0] == pytest.approx(tiny_probabilities([2, 5]), abs=1e-6)
    assert gate.runs == [1, 1]


def refused(stubs: Stubs) -> bool:
    """Whether the server has no place for one more prediction just now."""
    try:
        stubs.send(predict_request(NAME, None, text(2, 3)), timeout=0.2)
    except grpc.RpcError as error:
        return error.code() is CODE.UNAVAILABLE
    return False
