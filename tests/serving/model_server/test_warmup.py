"""Warm-up requests of an export are computed before it is served, and it must be able to answer them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from serving.model_server.errors import LoadError
from serving.model_server.loaded_model import LoadedModel
from serving.model_server.warmup import FILE, replay
from serving.protos import prediction_log_pb2, tensor_of
from tests.savedmodels import export_half_plus_two


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_half_plus_two(tmp_path_factory.mktemp("models"))


def predict_log(signature: str, values: Any) -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["x"].CopyFrom(tensor_of(values))
    return log


def classify_log() -> Any:
    log = prediction_log_pb2.PredictionLog()
    request = log.classify_log.request
    request.model_spec.signature_name = "classify"
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1.0)
    return log


def multi_log() -> Any:
    log = prediction_log_pb2.PredictionLog()
    request = log.multi_inference_log.request
    request.tasks.add().model_spec.signature_name = "regress"
    request.tasks.add().model_spec.signature_name = "scores"
    request.input.CopyFrom(classify_log().classify_log.request.input)
    return log


def write(version: Path, *logs: Any) -> None:
    (version / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version / FILE)) as out:
        for log in logs:
            out.write(log.SerializeToString())


def test_every_kind_of_request_is_replayed(version: Path) -> None:
    write(version, predict_log("", np.ones(3, np.float32)), classify_log(), multi_log())
    model = LoadedModel(version, compute_threads=1)
    ran: list[str] = []

    def run(name: str, inputs: Any) -> Any:
        ran.append(name)
        return model.run(name, inputs)

    assert replay(version, model.signature, run) == 3
    assert ran == ["serving_default", "classify", "regress", "scores"]
    model.close()


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (predict_log("nope", np.ones(1, np.float32)), 'Serving signature key "nope" not found'),
        (predict_log("", np.ones(1, np.int32)), "Expects arg.0. to be float but int32 is provided"),
    ],
)
def test_a_version_that_can_not_answer_them_does_not_load(version: Path, log: Any, why: str) -> None:
    write(version, log)
    with pytest.raises(LoadError, match=why):
        LoadedModel(version, compute_threads=1)


def test_more_of_them_than_tensorflow_serving_takes_are_refused(version: Path) -> None:
    write(version, *[predict_log("", np.ones(1, np.float32))] * 1_001)
    with pytest.raises(LoadError, match=r"exceeds the maximum \(1000\)"):
        LoadedModel(version, compute_threads=1)
