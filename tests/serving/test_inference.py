"""The client against the real model server, and against servers that answer wrongly."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.inference import (
    ModelClient,
    ModelRejectedError,
    ModelTimeoutError,
    ModelUnavailableError,
    ModelVersionNotFoundError,
)
from serving.model_server.server import ModelServer
from serving.protos import predict_pb2, tensor_of
from tests.modelservers import TIMEOUT_SECONDS, Gate, running_server, wait_until
from tests.savedmodels import tiny_probabilities

NAME = "review-sentiment"
IDS = [2, 9, 17, 3]


@contextmanager
def client_of(address: str) -> Iterator[ModelClient]:
    client = ModelClient(address)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def server(models_dir: Path) -> Iterator[ModelServer]:
    with running_server(models_dir) as server:
        yield server


@pytest.fixture
def client(server: ModelServer) -> Iterator[ModelClient]:
    with client_of(server.address) as client:
        yield client


def test_probabilities_are_those_of_the_model(client: ModelClient) -> None:
    row = client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)
    assert row.dtype == np.float32
    assert row.shape == (2,)
    assert row == pytest.approx(tiny_probabilities(IDS), abs=1e-6)


def test_many_threads_share_a_client(client: ModelClient) -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(4, 90, random.integers(1, 40)).tolist() for _ in range(200)]
    with ThreadPoolExecutor(32) as pool:
        rows = list(pool.map(lambda ids: client.predict(NAME, 1, ids, TIMEOUT_SECONDS), texts))
    for ids, row in zip(texts, rows, strict=True):
        assert row == pytest.approx(tiny_probabilities(ids), abs=1e-6)


def test_the_state_of_versions_is_told(client: ModelClient) -> None:
    assert client.version_states(NAME, TIMEOUT_SECONDS) == {1: "AVAILABLE"}


def test_an_unknown_model_or_version_is_told_apart(client: ModelClient) -> None:
    with pytest.raises(ModelVersionNotFoundError, match=r"^model review-sentiment version 2 is not served$"):
        client.predict(NAME, 2, IDS, TIMEOUT_SECONDS)
    with pytest.raises(ModelVersionNotFoundError, match=r"^model none is not served$"):
        client.version_states("none", TIMEOUT_SECONDS)


def test_what_the_model_refuses_is_told_with_its_reason(client: ModelClient) -> None:
    with pytest.raises(ModelRejectedError, match=r"INVALID_ARGUMENT: indices\[0,1\] = 99999 is not in"):
        client.predict(NAME, 1, [2, 99_999], TIMEOUT_SECONDS)


@pytest.mark.parametrize("ids", [[], [[1, 2], [3, 4]], [2**31]])
def test_ids_that_are_no_row_of_int32_are_not_sent(client: ModelClient, ids: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        client.predict(NAME, 1, ids, TIMEOUT_SECONDS)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # bound, so nobody else takes it, but not listening
        with client_of(f"127.0.0.1:{port}") as client:
            for ask in (
                lambda: client.predict(NAME, 1, IDS, TIMEOUT_SECONDS),
                lambda: client.version_states(NAME, TIMEOUT_SECONDS),
            ):
                with pytest.raises(ModelUnavailableError) as caught:
                    ask()
                assert not isinstance(caught.value, ModelVersionNotFoundError)
                assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_slow_model_is_a_timeout(models_dir: Path) -> None:
    gate = Gate()
    with running_server(models_dir, gate.load) as server, client_of(server.address) as client:
        with pytest.raises(
            ModelTimeoutError, match=r"^model review-sentiment version 1 did not answer within 0.5 s$"
        ):
            client.predict(NAME, 1, IDS, 0.5)
        gate.open()
        assert client.predict(NAME, 1, IDS, TIMEOUT_SECONDS).shape == (2,)


def test_a_full_server_is_unavailable(models_dir: Path) -> None:
    gate = Gate()
    with (
        running_server(models_dir, gate.load, model_server_max_pending=1) as server,
        client_of(server.address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.predict, NAME, 1, IDS, TIMEOUT_SECONDS)
        gate.wait_for_run()
        with pytest.raises(ModelUnavailableError):
            client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)
        gate.open()
        assert first.result().shape == (2,)


def test_a_server_that_comes_back_is_found_again(models_dir: Path) -> None:
    with running_server(models_dir) as server:
        port = server.port
        client = ModelClient(server.address)
        client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)
    with pytest.raises(ModelUnavailableError):
        client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)
    with running_server(models_dir, model_server_port=port):
        row = wait_until(lambda: answer_or_none(client))
    assert row == pytest.approx(tiny_probabilities(IDS), abs=1e-6)
    client.close()


def answer_or_none(client: ModelClient) -> Any:
    try:
        return client.predict(NAME, 1, IDS, TIMEOUT_SECONDS).tolist()
    except ModelUnavailableError:
        return None


def answer(**changes: Any) -> Any:
    """A right answer of version 1, but for the changes."""
    response = predict_pb2.PredictResponse()
    response.model_spec.name = changes.get("name", NAME)
    response.model_spec.version.value = changes.get("version", 1)
    output = changes.get("output", np.array([[0.25, 0.75]], np.float32))
    response.outputs[changes.get("key", "probabilities")].CopyFrom(tensor_of(output))
    return response


@contextmanager
def scripted_server(reply: Callable[[Any, grpc.ServicerContext], Any]) -> Iterator[ModelClient]:
    """A gRPC server whose Predict answers as told."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        reply,
        request_deserializer=predict_pb2.PredictRequest.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    service = {"Predict": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", service),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with client_of(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "asked for model review-sentiment version 1, got .* 'review-sentiment' version 2"),
        ({"name": "other"}, "got an answer of 'other' version 1"),
        ({"key": "logits"}, "answered without probabilities"),
        ({"output": np.zeros((1, 2))}, r"answered probabilities as float64 \[1, 2\], not float32"),
        ({"output": np.zeros((2, 2), np.float32)}, r"as float32 \[2, 2\]"),
        ({"output": np.zeros(2, np.float32)}, r"as float32 \[2\]"),
        ({"output": np.zeros((1, 0), np.float32)}, r"as float32 \[1, 0\]"),
        ({"output": np.array([[np.nan, 1]], np.float32)}, "that are not numbers"),
    ],
)
def test_an_answer_to_another_question_is_not_taken(changes: dict[str, Any], message: str) -> None:
    with (
        scripted_server(lambda request, context: answer(**changes)) as client,
        pytest.raises(ModelRejectedError, match=message),
    ):
        client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)


def test_values_may_come_in_the_field_of_their_type() -> None:
    response = answer()
    tensor = response.outputs["probabilities"]
    tensor.ClearField("tensor_content")
    tensor.float_val.extend([0.25, 0.75])
    with scripted_server(lambda request, context: response) as client:
        assert client.predict(NAME, 1, IDS, TIMEOUT_SECONDS).tolist() == [0.25, 0.75]


def test_the_request_names_version_inputs_and_output() -> None:
    seen = []

    def reply(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append((request, context.time_remaining()))
        return answer()

    with scripted_server(reply) as client:
        client.predict(NAME, 1, IDS, 5.0)
    [(request, remaining)] = seen
    assert (request.model_spec.name, request.model_spec.version.value) == (NAME, 1)
    assert list(request.output_filter) == ["probabilities"]
    assert request.inputs["input_ids"] == tensor_of(np.array([IDS], np.int32))
    assert request.inputs["attention_mask"] == tensor_of(np.array([[1, 1, 1, 1]], np.int32))
    assert remaining is not None
    assert 0 < remaining < 2 * 5.0  # gRPC rounds it up on the way; without a timeout it is years


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, ModelUnavailableError),
        (grpc.StatusCode.CANCELLED, ModelUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ModelTimeoutError),
        (grpc.StatusCode.NOT_FOUND, ModelVersionNotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, ModelRejectedError),
        (grpc.StatusCode.FAILED_PRECONDITION, ModelRejectedError),
        (grpc.StatusCode.INTERNAL, ModelRejectedError),
        (grpc.StatusCode.UNKNOWN, ModelRejectedError),
    ],
)
def test_every_status_is_one_of_four_failures(code: grpc.StatusCode, error: type[Exception]) -> None:
    def reply(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, "because")

    with scripted_server(reply) as client, pytest.raises(error) as caught:
        client.predict(NAME, 1, IDS, TIMEOUT_SECONDS)
    assert type(caught.value) is error
