from pathlib import Path
from typing import Any

import pytest

import serving.routes.v1
from serving.errors import ApiError
from serving.openapi import codes, document
from tests.apis import Api, running_app

assert serving.routes.v1  # its errors are known from here on


ONLY_ON_THE_COMMAND_LINE = {(404, "unknown_api_key")}


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with running_app(tmp_path) as running:
        yield running


def test_the_document_names_every_route_and_no_other(api: Api) -> None:
    routes = {
        (rule.rule.replace("<", "{").replace(">", "}").replace("path:", ""), method.lower())
        for rule in api.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert documented == routes


def errors(kind: type[ApiError] = ApiError) -> list[type[ApiError]]:
    return [one for below in kind.__subclasses__() for one in (below, *errors(below))]


def test_the_document_names_the_code_and_status_of_every_error() -> None:
    documented = {
        (status, code)
        for path, methods in document()["paths"].items()
        for method in methods
        for status, found in codes(path, method).items()
        for code in found
    }
    raised = {(int(error.status), error.code) for error in errors() if "serving" in error.__module__}
    assert raised - documented == ONLY_ON_THE_COMMAND_LINE
    assert documented - raised - {(500, "internal_error")} == set()


def test_the_document_is_served(api: Api) -> None:
    response = api.client.get("/openapi.json")
    assert response.status_code == 200
    assert response.get_json() == document()


def test_an_answer_that_is_not_documented_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tests.apis` does for every test, which this proves to be able to fail."""
    monkeypatch.setattr("tests.apis.codes", lambda path, method: {})
    with pytest.raises(AssertionError, match="does not know"), running_app(tmp_path) as api:
        api.analyze("")
