"""Classify, Regress and MultiInference of tf.Examples, and strings in and out, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.protos import (
    array_of,
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tests.modelservers import TIMEOUT_SECONDS, Stubs, predict_request, running_server
from tests.savedmodels import export_half_plus_two

CODE = grpc.StatusCode
MODEL = "half_plus_two"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    models_dir = tmp_path_factory.mktemp("models")
    export_half_plus_two(models_dir)
    with running_server(models_dir) as server, Stubs(server.address) as found:
        yield found


@pytest.fixture(scope="module")
def service(stubs: Stubs) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(stubs.channel)


def examples(*values: float, context: float | None = None) -> Any:
    """An Input with an example for each value of x; with a context, x is there and the examples are empty."""
    made = input_pb2.Input()
    within = made.example_list if context is None else made.example_list_with_context
    if context is not None:
        within.context.features.feature["x"].float_list.value.append(context)
    for value in values:
        example = within.examples.add()
        if context is None:
            example.features.feature["x"].float_list.value.append(value)
        else:
            example.features.feature["other"].float_list.value.append(value)
    return made


def asked(kind: Any, signature: str, given: Any, **spec: Any) -> Any:
    request = kind(input=given)
    request.model_spec.name = spec.get("name", MODEL)
    request.model_spec.signature_name = signature
    return request


def test_examples_are_classified(service: Any) -> None:
    request = asked(classification_pb2.ClassificationRequest, "classify", examples(2.0, 4.0))
    answer = service.Classify(request, timeout=TIMEOUT_SECONDS)
    found = [[(c.label, c.score) for c in one.classes] for one in answer.result.classifications]
    assert found == [[("up", 3.0), ("down", -3.0)], [("up", 4.0), ("down", -4.0)]]
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (MODEL, 123, "classify")


def test_a_signature_may_give_scores_alone(service: Any) -> None:
    request = asked(classification_pb2.ClassificationRequest, "scores", examples(2.0))
    answer = service.Classify(request, timeout=TIMEOUT_SECONDS)
    assert [(c.label, c.score) for c in answer.result.classifications[0].classes] == [("", 3.0), ("", -3.0)]


def test_examples_are_regressed_and_a_context_belongs_to_each(service: Any) -> None:
    for given, expected in ((examples(2.0, 80.0), [3.0, 42.0]), (examples(1, 1, context=6.0), [5.0, 5.0])):
        request = asked(regression_pb2.RegressionRequest, "regress", given)
        answer = service.Regress(request, timeout=TIMEOUT_SECONDS)
        assert [regression.value for regression in answer.result.regressions] == expected


def multi(*tasks: tuple[str, str, str], given: Any = None) -> Any:
    request = inference_pb2.MultiInferenceRequest(input=examples(2.0) if given is None else given)
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    return request


def test_several_inferences_of_the_same_examples_are_answered_in_order(service: Any) -> None:
    request = multi((MODEL, "classify", CLASSIFY), (MODEL, "regress", REGRESS))
    classified, regressed = service.MultiInference(request, timeout=TIMEOUT_SECONDS).results
    assert classified.classification_result.classifications[0].classes[0].label == "up"
    assert regressed.regression_result.regressions[0].value == 3.0
    assert [r.model_spec.signature_name for r in (classified, regressed)] == ["classify", "regress"]


CLASSIFICATION, REGRESSION = classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest


@pytest.mark.parametrize(
    ("method", "request_", "code", "message"),
    [
        ("Classify", CLASSIFICATION(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
        (
            "Classify",
            asked(CLASSIFICATION, "classify", examples(1.0), name="none"),
            CODE.NOT_FOUND,
            "Servable not found for request: Latest(none)",
        ),
        (
            "Classify",
            asked(CLASSIFICATION, "nope", examples(1.0)),
            CODE.INVALID_ARGUMENT,
            "No signature was found with the name: nope",
        ),
        (
            "Classify",
            asked(CLASSIFICATION, "regress", examples(1.0)),
            CODE.INVALID_ARGUMENT,
            f"Expected classification signature method_name to be {CLASSIFY}. Was: {REGRESS}",
        ),
        ("Classify", asked(CLASSIFICATION, "classify", examples()), CODE.INVALID_ARGUMENT, "Input is empty."),
        (
            "Regress",
            asked(REGRESSION, "", examples(1.0)),
            CODE.INVALID_ARGUMENT,
            f"Expected regression signature method_name to be {REGRESS}. Was: tensorflow/serving/predict",
        ),
        (
            "Regress",
            asked(REGRESSION, "regress", input_pb2.Input()),
            CODE.INVALID_ARGUMENT,
            "Input is empty.",
        ),
        ("MultiInference", multi(), CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (
            "MultiInference",
            multi((MODEL, "regress", REGRESS), ("other", "classify", CLASSIFY)),
            CODE.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            "MultiInference",
            multi((MODEL, "regress", REGRESS), (MODEL, "regress", REGRESS)),
            CODE.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: regress",
        ),
        (
            "MultiInference",
            multi((MODEL, "nope", REGRESS)),
            CODE.INVALID_ARGUMENT,
            "Requested signature not found in model graph: nope",
        ),
        (
            "MultiInference",
            multi((MODEL, "serving_default", "tensorflow/serving/predict")),
            CODE.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_what_can_not_be_inferred_is_refused_in_tensorflow_servings_words(
    service: Any, method: str, request_: Any, code: grpc.StatusCode, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(service, method)(request_, timeout=TIMEOUT_SECONDS)
    assert (caught.value.code(), caught.value.details()) == (code, message)


def test_an_example_without_a_feature_is_the_models_to_refuse(service: Any) -> None:
    given = examples(1.0)
    del given.example_list.examples[0].features.feature["x"]
    with pytest.raises(grpc.RpcError) as caught:
        service.Regress(asked(REGRESSION, "regress", given), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is CODE.INVALID_ARGUMENT
    assert "Feature: x (data type: float) is required but could not be found." in str(caught.value.details())


def test_strings_go_in_and_come_out(stubs: Stubs) -> None:
    words = np.array([b"abc", b"", b"\xff"], object)
    answer = stubs.send(predict_request(MODEL, None, {"words": words}, signature_name="shout"))
    assert array_of(answer.outputs["loud"]).tolist() == [b"ABC", b"", b"\xff"]
    assert answer.outputs["loud"].dtype == 7


def test_a_signature_of_several_outputs_is_filtered_and_a_repetition_refused(stubs: Stubs) -> None:
    pairs = np.array([[1, 2], [3, 4]], np.float32)
    request = predict_request(MODEL, None, {"x": pairs}, signature_name="matrix")
    request.output_filter.append("sum")
    assert array_of(stubs.send(request).outputs["sum"]).tolist() == [3.0, 7.0]
    request.output_filter.append("sum")
    with pytest.raises(grpc.RpcError) as caught:
        stubs.send(request)
    assert caught.value.details() == "duplicate output tensor alias: sum"
