"""Configs that change while the server answers: labels, policies and models, by file and by request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # ships no types

from serving.model_server.server import ModelServer
from serving.protos import model_management_pb2, model_service_pb2_grpc
from tests.modelservers import TIMEOUT_SECONDS, Stubs, running_server, text, wait_until

NAME = "review-sentiment"
CODE = grpc.StatusCode


def entry(models_dir: Path, policy: str, name: str = NAME, folder: str = NAME, **labels: int) -> str:
    said = "".join(f' version_labels {{ key: "{label}" value: {n} }}' for label, n in labels.items())
    return (
        f'config {{ name: "{name}" base_path: "{models_dir / folder}" model_platform: "tensorflow"'
        f" model_version_policy {{ {policy} }}{said} }}"
    )


def reload(stubs: Stubs, *entries: str) -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(f"model_config_list {{ {' '.join(entries)} }}", request.config)
    service = model_service_pb2_grpc.ModelServiceStub(stubs.channel)
    return service.HandleReloadConfigRequest(request, timeout=TIMEOUT_SECONDS)


def refused(stubs: Stubs, *entries: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        reload(stubs, *entries)
    return caught.value.code(), str(caught.value.details())


def states(stubs: Stubs) -> dict[int, str]:
    return {version: state for version, (state, _, _) in stubs.status().items()}


@pytest.fixture
def models_dir(tmp_path: Path, model_versions: Path) -> Path:
    shutil.copytree(model_versions, tmp_path / "models" / NAME)
    (tmp_path / "models" / "models.config").write_text(
        f"model_config_list {{ {entry(tmp_path / 'models', 'specific { versions: 1 }', stable=1)} }}"
    )
    return tmp_path / "models"


@pytest.fixture
def server(models_dir: Path) -> Iterator[ModelServer]:
    with running_server(models_dir) as running:
        yield running


@pytest.fixture
def stubs(server: ModelServer) -> Iterator[Stubs]:
    with Stubs(server.address) as found:
        yield found


def answering(stubs: Stubs, label: str) -> int:
    return int(stubs.predict(text(2, 9), version_label=label).model_spec.version.value)


def test_the_file_says_which_version_is_loaded_and_what_it_is_called(stubs: Stubs) -> None:
    assert states(stubs) == {1: "AVAILABLE"}
    assert answering(stubs, "stable") == 1
    with pytest.raises(grpc.RpcError) as caught:
        answering(stubs, "canary")
    assert caught.value.code() is CODE.INVALID_ARGUMENT
    assert caught.value.details() == "Unrecognized servable version label: canary"


def test_a_label_moves_only_to_a_version_that_is_available(stubs: Stubs, models_dir: Path) -> None:
    both = "specific { versions: 1 versions: 2 }"
    assert refused(stubs, entry(models_dir, both, stable=2)) == (
        CODE.FAILED_PRECONDITION,
        f"Request to assign label to version 2 of model {NAME}, "
        "which is not currently available for inference",
    )
    assert states(stubs) == {1: "AVAILABLE"}
    assert answering(stubs, "stable") == 1

    reload(stubs, entry(models_dir, both, stable=1, canary=2))  # a new label may wait for its version
    wait_until(lambda: states(stubs) == {2: "AVAILABLE", 1: "AVAILABLE"})
    assert answering(stubs, "canary") == 2
    reload(stubs, entry(models_dir, both, stable=2))
    assert answering(stubs, "stable") == 2


def test_labels_may_be_held_to_available_versions_altogether(models_dir: Path) -> None:
    (models_dir / "models.config").unlink()
    with (
        running_server(models_dir, model_server_labels_need_available=True) as server,
        Stubs(server.address) as stubs,
    ):
        code, _ = refused(stubs, entry(models_dir, "all { }", canary=1))
        assert code is CODE.FAILED_PRECONDITION
        reload(stubs, entry(models_dir, "all { }", stable=2))
        assert answering(stubs, "stable") == 2


def test_a_changed_file_is_followed_and_a_broken_one_is_not(
    stubs: Stubs, models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = models_dir / "models.config"
    file.write_text("model_config_list { config { nam")
    wait_until(lambda: "is not a model config" in caplog.text)
    assert answering(stubs, "stable") == 1
    file.write_text(f"model_config_list {{ {entry(models_dir, 'all { }', newest=2)} }}")
    wait_until(lambda: states(stubs) == {2: "AVAILABLE", 1: "AVAILABLE"})
    wait_until(lambda: answering(stubs, "newest") == 2)


def test_a_new_model_answers_when_the_reload_does_and_one_that_is_dropped_does_not(
    stubs: Stubs, models_dir: Path
) -> None:
    reload(stubs, entry(models_dir, "latest { }", "other"))
    assert stubs.predict(text(2, 9), name="other").model_spec.version.value == 2
    wait_until(lambda: not is_known(stubs))


def is_known(stubs: Stubs) -> bool:
    """Whether the server has, or had, the model of the file."""
    try:
        return bool(stubs.status())
    except grpc.RpcError:
        return False


def test_a_new_model_that_does_not_load_is_told(stubs: Stubs, models_dir: Path) -> None:
    shutil.copytree(models_dir / NAME / "1", models_dir / "broken" / "5")
    (models_dir / "broken" / "5" / "saved_model.pb").write_bytes(b"noise")
    code, message = refused(
        stubs,
        entry(models_dir, "latest { }", stable=1),
        entry(models_dir, "latest { }", "broken", "broken"),
        entry(models_dir, "latest { }", "absent", "absent"),
    )
    assert code is CODE.UNKNOWN
    assert message.startswith(
        "2 model(s) did not become available: {{{name: broken version: 5} due to error: "
    )
    assert "{{name: absent}}" in message


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            model_management_pb2.ReloadConfigRequest(),
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported",
        ),
    ],
)
def test_another_kind_of_config_is_refused(stubs: Stubs, request_: Any, message: str) -> None:
    service = model_service_pb2_grpc.ModelServiceStub(stubs.channel)
    with pytest.raises(grpc.RpcError) as caught:
        service.HandleReloadConfigRequest(request_, timeout=TIMEOUT_SECONDS)
    assert (caught.value.code(), caught.value.details()) == (CODE.INVALID_ARGUMENT, message)
