"""The server as its clients meet it: over gRPC, with real SavedModels."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from modelservers import TIMEOUT_SECONDS, Calls, Gate, predict_request, running_server, wait_until
from savedmodels import VOCABULARY, tiny_probabilities

from serving.model_server.server import ModelServer, create_server
from serving.model_server.settings import ModelServerSettings
from serving.protos import (
    array_of,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

NAME = "review-sentiment"
CODE = grpc.StatusCode


class Stubs:
    """The services of one server."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self._predict = prediction.Predict
        self._metadata = prediction.GetModelMetadata
        self._status = model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus
        self.classify = prediction.Classify

    def predict(self, inputs: Any, version: int | None = None, name: str = NAME, **spec: Any) -> Any:
        return self.send(predict_request(name, version, inputs, **spec))

    def send(self, request: Any, timeout: float = TIMEOUT_SECONDS) -> Any:
        return self._predict(request, timeout=timeout)

    def later(self, request: Any, timeout: float) -> Any:
        """A call under way, to wait for or to cancel."""
        return self._predict.future(request, timeout=timeout)

    def metadata(self, *fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        request.model_spec.name = NAME
        return self._metadata(request, timeout=TIMEOUT_SECONDS)

    def status(self, name: str = NAME, version: int | None = None) -> dict[int, tuple[str, int, str]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        if version is not None:
            request.model_spec.version.value = version
        name_of = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            one.version: (name_of(one.state), one.status.error_code, one.status.error_message)
            for one in self._status(request, timeout=TIMEOUT_SECONDS).model_version_status
        }


def text(*ids: int) -> dict[str, Any]:
    row = np.array([ids], np.int32)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}


def probabilities(answer: Any) -> Any:
    return array_of(answer.outputs["probabilities"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, _exported: Path) -> Iterator[Stubs]:
    """A server that keeps versions 1 and 2."""
    models_dir = tmp_path_factory.mktemp("models")
    shutil.copytree(_exported, models_dir / NAME)
    with running_server(models_dir, model_server_versions_kept=2) as server:
        stubs = Stubs(server.address)
        yield stubs
        stubs.channel.close()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(models_dir: Path, gate: Gate) -> Iterator[tuple[Stubs, ModelServer]]:
    """A server whose predictions wait for the gate; it takes four at a time."""
    with running_server(models_dir, gate.load, model_server_max_pending=4) as server:
        stubs = Stubs(server.address)
        yield stubs, server
        gate.open()
        stubs.channel.close()


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
        (bad(), {"name": ""}, CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
        (bad(), {"version_label": "x"}, CODE.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        (bad(), {"signature_name": "x"}, CODE.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        (
            bad(),
            {"signature_name": "__saved_model_init_op"},
            CODE.UNIMPLEMENTED,
            "signature '__saved_model_init_op': output '__saved_model_init_op' is invalid, "
            "which needs the real TensorFlow Serving",
        ),
        (
            bad(attention_mask=None, mask=ONES),
            {},
            CODE.INVALID_ARGUMENT,
            "inputs do not match signature 'serving_default': missing: attention_mask; unknown: mask",
        ),
        (
            bad(input_ids=np.ones((1, 2), np.int64)),
            {},
            CODE.INVALID_ARGUMENT,
            "input 'input_ids' must be int32 [-1, -1], got int64 [1, 2]",
        ),
        (
            bad(input_ids=np.ones(2, np.int32)),
            {},
            CODE.INVALID_ARGUMENT,
            "input 'input_ids' must be int32 [-1, -1], got int32 [2]",
        ),
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
    assert caught.value.details() == ("input 'input_ids': int32 [1, 2] takes 8 bytes, tensor_content has 9")


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
        "output 'logits' is not in signature 'serving_default', which has probabilities"
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


def test_a_method_that_is_not_served_says_so(served: Stubs) -> None:
    from tensorflow_serving.apis import classification_pb2  # type: ignore[import-untyped]  # ships no types

    with pytest.raises(grpc.RpcError) as caught:
        served.classify(classification_pb2.ClassificationRequest(), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is CODE.UNIMPLEMENTED


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


def test_a_new_version_takes_over_without_one_failed_request(models_dir: Path, model_versions: Path) -> None:
    ids = [2, 9, 17, 3]
    stop = threading.Event()

    def ask(address: str) -> list[int]:
        stubs, seen = Stubs(address), []
        while not stop.is_set():
            answer = stubs.predict(text(*ids))
            version = answer.model_spec.version.value
            assert probabilities(answer)[0] == pytest.approx(tiny_probabilities(ids, version), abs=1e-6)
            seen.append(version)
        stubs.channel.close()
        return seen

    with running_server(models_dir) as server, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, server.address) for _ in range(8)]
        stubs = Stubs(server.address)
        try:
            shutil.copytree(model_versions / "2", models_dir / NAME / ".2")
            (models_dir / NAME / ".2").rename(models_dir / NAME / "2")
            wait_until(lambda: stubs.status().get(1, ("",))[0] == "END")
        finally:
            stop.set()
        for seen in (call.result(TIMEOUT_SECONDS) for call in asking):
            assert seen == sorted(seen)
            assert {1, 2} >= set(seen)
        assert stubs.predict(text(*ids)).model_spec.version.value == 2
        with pytest.raises(grpc.RpcError) as caught:
            stubs.predict(text(*ids), version=1)
        assert caught.value.code() is CODE.NOT_FOUND
        stubs.channel.close()


def test_a_replaced_version_first_answers_what_it_took(
    gated: tuple[Stubs, ModelServer], gate: Gate, models_dir: Path, model_versions: Path
) -> None:
    stubs, _ = gated
    taken = stubs.later(predict_request(NAME, 1, text(2, 9)), TIMEOUT_SECONDS)
    gate.wait_for_run()
    shutil.copytree(model_versions / "2", models_dir / NAME / ".2")
    (models_dir / NAME / ".2").rename(models_dir / NAME / "2")
    wait_until(lambda: stubs.status().get(1, ("",))[0] == "UNLOADING")
    assert stubs.status()[2][0] == "AVAILABLE"
    gate.open()
    assert probabilities(taken.result())[0] == pytest.approx(tiny_probabilities([2, 9], 1), abs=1e-6)
    wait_until(lambda: stubs.status()[1][0] == "END")


def test_a_version_that_does_not_load_says_why_over_grpc(models_dir: Path, model_versions: Path) -> None:
    shutil.copytree(model_versions / "2", models_dir / NAME / "2")
    (models_dir / NAME / "2" / "saved_model.pb").write_bytes(b"noise")
    with running_server(models_dir) as server:
        stubs = Stubs(server.address)
        state, code, message = stubs.status()[2]
        assert (state, code != 0) == ("END", True)
        assert "saved_model.pb" in message
        assert stubs.predict(text(2, 3)).model_spec.version.value == 1
        stubs.channel.close()


def test_a_server_without_models_waits_for_the_first(tmp_path: Path, model_versions: Path) -> None:
    with running_server(tmp_path / "models") as server:
        stubs = Stubs(server.address)
        with pytest.raises(grpc.RpcError) as caught:
            stubs.predict(text(2, 3))
        assert caught.value.code() is CODE.NOT_FOUND
        shutil.copytree(model_versions, tmp_path / "models" / NAME)
        wait_until(lambda: available(stubs))
        assert stubs.predict(text(2, 3)).model_spec.version.value == 2
        stubs.channel.close()


def available(stubs: Stubs) -> bool:
    try:
        return "AVAILABLE" in {state for state, _, _ in stubs.status().values()}
    except grpc.RpcError:
        return False


def test_a_second_server_on_the_same_port_is_told(models_dir: Path) -> None:
    with running_server(models_dir) as server:
        taken = ModelServerSettings(models_dir=models_dir, model_server_port=server.port)
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{server.port}"):
            create_server(taken)


def test_stopping_answers_what_runs_and_refuses_what_comes(models_dir: Path, gate: Gate) -> None:
    stopping = Calls()
    with running_server(models_dir, gate.load) as server:
        stubs = Stubs(server.address)
        running = stubs.later(predict_request(NAME, None, text(2, 9)), TIMEOUT_SECONDS)
        gate.wait_for_run()
        stopping.start(server.stop)
        wait_until(lambda: unreachable(server.address))
        gate.open()
        assert probabilities(running.result())[0] == pytest.approx(tiny_probabilities([2, 9]), abs=1e-6)
        stopping.wait()
        stubs.channel.close()
    assert not stopping.errors


def unreachable(address: str) -> bool:
    stubs = Stubs(address)
    try:
        stubs.status()
    except grpc.RpcError as error:
        return error.code() is CODE.UNAVAILABLE
    finally:
        stubs.channel.close()
    return False


def refused(stubs: Stubs) -> bool:
    """Whether the server has no place for one more prediction just now."""
    try:
        stubs.send(predict_request(NAME, None, text(2, 3)), timeout=0.2)
    except grpc.RpcError as error:
        return error.code() is CODE.UNAVAILABLE
    return False
