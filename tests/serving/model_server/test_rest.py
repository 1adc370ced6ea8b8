"""The REST API: what TensorFlow Serving's documentation and tests say of it, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.modelservers import running_server
from tests.savedmodels import export_half_plus_two, tiny_probabilities

MODEL, TEXTS = "half_plus_two", "review-sentiment"
CONFIG = """
model_config_list {{
  config {{
    name: "{model}" base_path: "{folder}/{model}" model_platform: "tensorflow"
    version_labels {{ key: "stable" value: 123 }}
  }}
  config {{ name: "{texts}" base_path: "{folder}/{texts}" model_platform: "tensorflow" }}
}}
"""


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory, model_versions: Path) -> Iterator[httpx.Client]:
    models_dir = tmp_path_factory.mktemp("models")
    export_half_plus_two(models_dir)
    shutil.copytree(model_versions / "1", models_dir / TEXTS / "1")
    (models_dir / "models.config").write_text(CONFIG.format(model=MODEL, texts=TEXTS, folder=models_dir))
    with running_server(models_dir) as server, httpx.Client(base_url=server.rest_url, timeout=30) as client:
        yield client


def post(rest: httpx.Client, path: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, str) else None
    answer = rest.post(f"/v1/models/{path}", content=content, json=None if content is not None else body)
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (f"{MODEL}:predict", {"instances": [1.0, 2.0, 5]}, {"predictions": [2.5, 3.0, 4.5]}),
        (f"{MODEL}/versions/123:predict", {"instances": [1.0]}, {"predictions": [2.5]}),
        (f"{MODEL}/labels/stable:predict", {"instances": [1.0]}, {"predictions": [2.5]}),
        (f"{MODEL}:predict", {"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
        (f"{MODEL}:predict", {"inputs": [1.0, 2.0]}, {"outputs": [2.5, 3.0]}),
        (f"{MODEL}:predict", {"inputs": {"x": [0.2]}, "signature_name": ""}, {"outputs": [2.1]}),
        (
            f"{MODEL}:predict",
            {"signature_name": "matrix", "instances": [[1, 2], [3, 4]]},
            {"predictions": [{"pairs": [1.0, 2.0], "sum": 3.0}, {"pairs": [3.0, 4.0], "sum": 7.0}]},
        ),
        (
            f"{MODEL}:predict",
            {"signature_name": "matrix", "inputs": [[1, 2]]},
            {"outputs": {"pairs": [[1.0, 2.0]], "sum": [3.0]}},
        ),
        (
            f"{MODEL}:predict",
            {"signature_name": "shout", "instances": ["ab", {"b64": "Y2Q="}]},
            {
                "predictions": [
                    {"loud": "AB", "loud_bytes": {"b64": "QUI="}},
                    {"loud": "CD", "loud_bytes": {"b64": "Q0Q="}},
                ]
            },
        ),
        (f"{MODEL}:predict", '{"instances": [NaN, Infinity]}', None),
        (f"{MODEL}:regress", {"signature_name": "regress", "examples": [{"x": 80.0}]}, {"results": [42.0]}),
        (
            f"{MODEL}:regress",
            {"signature_name": "regress", "context": {"x": [2.0]}, "examples": [{"z": 1}, {}]},
            {"results": [3.0, 3.0]},
        ),
        (
            f"{MODEL}:classify",
            {"signature_name": "classify", "examples": [{"x": 20.0}]},
            {"results": [[["up", 12.0], ["down", -12.0]]]},
        ),
    ],
)
def test_a_request_is_answered(rest: httpx.Client, path: str, body: Any, answer: Any) -> None:
    status, document = post(rest, path, body)
    assert status == 200, document
    if answer is None:
        nan, infinity = document["predictions"]
        assert nan != nan
        assert infinity == float("inf")
    else:
        assert document == answer


def test_several_named_inputs_come_by_row_or_by_column(rest: httpx.Client) -> None:
    expected = tiny_probabilities([2, 9, 17]).tolist()
    row = {"input_ids": [2, 9, 17], "attention_mask": [1, 1, 1]}
    for body, key in (
        ({"instances": [row]}, "predictions"),
        ({"inputs": {name: [values] for name, values in row.items()}}, "outputs"),
    ):
        status, document = post(rest, f"{TEXTS}:predict", body)
        assert (status, document[key][0]) == (200, pytest.approx(expected, abs=1e-6))


BOTH = {"inputs": [1.0], "instances": [1.0]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("none:predict", {"instances": [1.0]}, 404, "Servable not found for request: Latest(none)"),
        (f"{MODEL}/versions/9:predict", {"instances": [1.0]}, 404, f"Specific({MODEL}, 9)"),
        (f"{MODEL}/labels/x:predict", {"instances": [1]}, 400, "Unrecognized servable version label: x"),
        (f"{MODEL}/versions/99999999999999999999:predict", {}, 400, "Failed to convert version: 9999"),
        (
            f"{MODEL}/version/1:predict",
            {},
            400,
            f"Malformed request: POST /v1/models/{MODEL}/version/1:predict",
        ),
        (MODEL, {}, 400, f"Malformed request: POST /v1/models/{MODEL}"),
        (f"{MODEL}:predict", "", 400, "JSON Parse error: The document is empty"),
        (f"{MODEL}:predict", "instances = [1, 2]", 400, "JSON Parse error: "),
        (f"{MODEL}:predict", "[1]", 400, "JSON Value: [1] Is not object"),
        (f"{MODEL}:predict", {"x": 1}, 400, "Missing 'inputs' or 'instances' key"),
        (f"{MODEL}:predict", BOTH, 400, "expecting only one of 'inputs' or 'instances' keys"),
        (f"{MODEL}:predict", {"instances": []}, 400, "No values in 'instances' array"),
        (f"{MODEL}:predict", {"instances": 1}, 400, "Excepting 'instances' to be an list/array"),
        (
            f"{MODEL}:predict",
            {"instances": ["x", "y"]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "x" Type: String is not of expected type: float',
        ),
        (f"{MODEL}:predict", {"instances": [1.0, [2.0]]}, 400, "Expecting shape [] but got: [1]"),
        (
            f"{MODEL}:predict",
            {"instances": [1.0, {"x": 1.0}]},
            400,
            "Expecting value/list but got object at item 1",
        ),
        (
            f"{MODEL}:predict",
            {"instances": [{"x": 1.0}, 1.0]},
            400,
            "Expecting object but got list at item 1",
        ),
        (f"{MODEL}:predict", {"instances": [{"z": 1.0}]}, 400, "JSON object: does not have named input: z"),
        (f"{MODEL}:predict", {"instances": [2**24]}, 400, "to float without loss of precision."),
        (f"{MODEL}:predict", {"inputs": [[1.0], 2.0]}, 400, "JSON Value: 2.0 found at incorrect level: 2"),
        (f"{MODEL}:predict", {"inputs": [[1.0], [2.0, 3.0]]}, 400, "Encountered list at unexpected size: 2"),
        (
            f"{MODEL}:predict",
            {"inputs": [1.0, [2.0]]},
            400,
            "Encountered list at unexpected level: 1 expected < 1",
        ),
        (f"{MODEL}:predict", '{"inputs": ' + "[" * 900 + "]" * 900 + "}", 400, "32 lists in one another"),
        (f"{MODEL}:predict", {"signature_name": 100}, 400, "'signature_name' key must be a string value."),
        (
            f"{MODEL}:predict",
            {"signature_name": "x", "inputs": [1.0]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        (
            f"{TEXTS}:predict",
            {"instances": [1]},
            400,
            "instances is a plain list, but expecting list of objects",
        ),
        (f"{TEXTS}:predict", {"inputs": [1]}, 400, "inputs is a plain value/list, but expecting an object"),
        (
            f"{TEXTS}:predict",
            {"inputs": {"input_ids": [[1]]}},
            400,
            "Missing named input: attention_mask in 'inputs'",
        ),
        (
            f"{TEXTS}:predict",
            {"instances": [{"input_ids": [1]}]},
            400,
            "keys must be equal to: attention_mask,input_ids",
        ),
        (
            f"{TEXTS}:predict",
            {"inputs": {"input_ids": [[1.5]], "attention_mask": [[1]]}},
            400,
            "JSON Value: 1.5 Type: Number is not of expected type: int32",
        ),
        (
            f"{MODEL}:predict",
            {"signature_name": "shout", "inputs": [{"b64": "%"}]},
            400,
            "Unable to base64 decode",
        ),
        (
            f"{MODEL}:classify",
            {"signature_name": "classify"},
            400,
            "key 'examples' is expected and was not found",
        ),
        (f"{MODEL}:classify", {"examples": []}, 400, "'examples' value is an empty array"),
        (f"{MODEL}:classify", {"examples": [1]}, 400, "Example must be JSON object but got JSON Number"),
        (
            f"{MODEL}:regress",
            {"examples": [{"x": [1.0, "a"]}]},
            400,
            "Unexpected element type in feature: x expecting type: float",
        ),
        (
            f"{MODEL}:regress",
            {"examples": [{"x": None}]},
            400,
            "Feature: x has element with unexpected JSON type: Null",
        ),
        (
            f"{MODEL}:regress",
            {"examples": [{"x": 1.0}]},
            400,
            "Expected regression signature method_name to be",
        ),
    ],
)
def test_a_bad_request_is_refused_in_tensorflow_servings_words(
    rest: httpx.Client, path: str, body: Any, status: int, message: str
) -> None:
    got, document = post(rest, path, body)
    assert got == status
    assert document.keys() == {"error"}
    assert message in document["error"]


def test_the_state_of_versions_is_told(rest: httpx.Client) -> None:
    expected = {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    for path in (MODEL, f"{MODEL}/versions/123", f"{MODEL}/labels/stable"):
        assert rest.get(f"/v1/models/{path}").json() == expected
    for path, status, message in (
        ("none", 404, "Could not find any versions of model none"),
        (f"{MODEL}/versions/9", 404, f"Could not find version 9 of model {MODEL}"),
        ("", 400, "Malformed request: GET /v1/models/"),
    ):
        answer = rest.get(f"/v1/models/{path}")
        assert (answer.status_code, answer.json()) == (status, {"error": message})
    assert rest.get("/v1/models").json() == {"error": "Missing model name in request."}


def test_metadata_describe_the_signatures(rest: httpx.Client) -> None:
    document = rest.get(f"/v1/models/{MODEL}/metadata").json()
    assert document["model_spec"] == {"name": MODEL, "signature_name": "", "version": "123"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]


def test_requests_by_rest_are_counted_beside_those_by_grpc(rest: httpx.Client) -> None:
    post(rest, f"{TEXTS}:predict", {"instances": [{"input_ids": [2], "attention_mask": [1]}]})
    counters = rest.get("/monitoring/prometheus/metrics").text
    labels = f'model_name="{TEXTS}",API="Predict",entrypoint="REST"'
    assert f":tensorflow:serving:request_latency_count{{{labels}}}" in counters


def test_what_is_no_api_is_not_found_and_a_body_needs_a_length(rest: httpx.Client) -> None:
    assert rest.get("/status").status_code == 404
    assert rest.post(f"/v1/models/{MODEL}:predict", content=iter([b"{}"])).status_code == 411
