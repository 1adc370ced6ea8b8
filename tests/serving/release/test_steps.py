"""The steps of a release with a real model server: what is loaded, labelled, written and recorded."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.errors import ModelUnavailableError
from serving.inference import ModelClient
from serving.model_server.server import ModelServer
from serving.release.files import ConfigError, Release, ReleaseFiles, read_config, read_shares
from serving.release.status import read_status, table
from serving.release.steps import Place, ReleaseError, Releases
from tallybook.processes import free_port
from tests.modelservers import running_server, wait_until

NAME = "review-sentiment"


@pytest.fixture
def models_dir(tmp_path: Path, model_versions: Path) -> Path:
    """Version 1 of the model and of another one."""
    for name in (NAME, "other"):
        shutil.copytree(model_versions / "1", tmp_path / "models" / name / "1")
    return tmp_path / "models"


@pytest.fixture
def server(models_dir: Path) -> Iterator[ModelServer]:
    with running_server(models_dir) as running:
        yield running


class Steps(Releases):
    """The steps, and the acts that they recorded."""

    def __init__(self, models_dir: Path, address: str, model: str = NAME) -> None:
        self.acts: list[str] = []
        self.client = ModelClient(address)
        self.place = Place(models_dir / "models.config", models_dir, models_dir)
        super().__init__(self.place, self.client, model, self.note)

    def note(self, deed: str, details: Mapping[str, Any]) -> None:
        self.acts.append(deed)

    @property
    def release(self) -> Release | None:
        return ReleaseFiles(self.place.config_path, NAME).read()

    def states(self) -> dict[int, str]:
        return self.client.version_states(NAME, 30)


@pytest.fixture
def steps(models_dir: Path, server: ModelServer) -> Iterator[Steps]:
    made = Steps(models_dir, server.address)
    yield made
    made.client.close()


def add(model_versions: Path, models_dir: Path, version: int) -> Path:
    """Export one more version; its card says which."""
    beside = models_dir / NAME / f".{version}"
    shutil.copytree(model_versions / "2", beside)
    card = beside / "assets.extra" / "model_card.json"
    card.write_text(card.read_text().replace('"version": 2', f'"version": {version}'))
    return beside.rename(models_dir / NAME / str(version))


def test_a_version_goes_from_staged_to_canary_to_stable_and_back(
    steps: Steps, models_dir: Path, model_versions: Path
) -> None:
    assert steps.adopt() == steps.adopt() == 1
    add(model_versions, models_dir, 2)
    assert steps.stage() == 2
    assert steps.release == Release({"stable": 1}, 0)
    assert steps.states() == {2: "AVAILABLE", 1: "AVAILABLE"}

    assert steps.canary(None, 500) == 2
    assert steps.release == Release({"stable": 1, "canary": 2}, 500)
    assert steps.canary(None, 2_500) == 2
    assert steps.release == Release({"stable": 1, "canary": 2}, 2_500)

    assert steps.promote() == 2
    assert steps.release == Release({"stable": 2, "previous": 1}, 0)
    assert steps.states() == {2: "AVAILABLE", 1: "AVAILABLE"}

    assert steps.rollback() == (2, 1)
    assert steps.release == Release({"stable": 1}, 0)
    wait_until(lambda: steps.states() == {2: "END", 1: "AVAILABLE"})
    assert steps.acts == ["adopted", "staged", "canaried", "canaried", "promoted", "rolled_back"]
    with pytest.raises(ReleaseError) as caught:
        steps.rollback()
    assert caught.value.code == "nothing_to_roll_back"


def test_a_canary_is_rolled_back_and_leaves_the_server(
    steps: Steps, models_dir: Path, model_versions: Path
) -> None:
    steps.adopt()
    add(model_versions, models_dir, 2)
    assert steps.canary(2, 10_000) == 2
    assert steps.rollback() == (2, 1)
    assert steps.release == Release({"stable": 1}, 0)
    assert read_shares(steps.place.config_path) == {}
    wait_until(lambda: steps.states() == {2: "END", 1: "AVAILABLE"})


def test_a_canary_never_has_the_share_of_the_one_before(
    steps: Steps, models_dir: Path, model_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(model_versions, models_dir, 2)
    steps.adopt()
    steps.canary(2, 5_000)
    add(model_versions, models_dir, 3)
    steps.stage(3)
    reload = steps.client.reload
    while_loading: list[int] = []

    def looked_at(config: Any, timeout_seconds: float) -> None:
        assert steps.release is not None
        while_loading.append(steps.release.share)
        if len(while_loading) == 1:
            raise ModelUnavailableError("away")
        reload(config, timeout_seconds)

    monkeypatch.setattr(steps.client, "reload", looked_at)
    with pytest.raises(ReleaseError, match="away"):
        steps.canary(3, 100)
    assert steps.release == Release({"stable": 1, "canary": 2}, 5_000)
    steps.canary(3, 100)
    assert steps.release == Release({"stable": 1, "canary": 3}, 100)
    assert while_loading == [0, 0]


def test_staging_first_keeps_what_answers(steps: Steps, models_dir: Path, model_versions: Path) -> None:
    broken = models_dir / ".held"
    add(model_versions, models_dir, 2).rename(broken)
    steps.stage(1)  # the only one there is
    assert steps.release == Release({"stable": 1}, 0)
    broken.rename(models_dir / NAME / "2")
    assert steps.stage(2) == 2
    assert steps.release == Release({"stable": 1}, 0)


def test_other_models_are_served_on(steps: Steps, models_dir: Path, model_versions: Path) -> None:
    steps.adopt()
    assert steps.client.version_states("other", 30) == {1: "AVAILABLE"}
    config = read_config(steps.place.config_path)
    assert config is not None
    assert [entry.name for entry in config.model_config_list.config] == ["other", NAME]
    other = Steps(models_dir, "unused", "other")
    other._server = steps.client
    other.adopt()
    assert steps.release == Release({"stable": 1}, 0)


def test_a_version_that_does_not_load_is_taken_back_and_said_why(
    steps: Steps, models_dir: Path, model_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.release.steps._STALE_SECONDS", 0.0)
    steps.adopt()
    (add(model_versions, models_dir, 2) / "saved_model.pb").write_bytes(b"noise")
    with pytest.raises(ReleaseError, match=r"does not load version 2 of .*saved_model\.pb") as caught:
        steps.canary(2, 500)
    assert caught.value.code == "version_not_loaded"
    assert steps.release == Release({"stable": 1}, 0)
    config = read_config(steps.place.config_path)
    assert config is not None
    (entry,) = (e for e in config.model_config_list.config if e.name == NAME)
    assert list(entry.model_version_policy.specific.versions) == [1]
    assert steps.acts == ["adopted", "staged", "undone"]
    assert steps.states()[1] == "AVAILABLE"


def test_what_the_server_refuses_leaves_the_files_as_they_were(
    steps: Steps, models_dir: Path, model_versions: Path
) -> None:
    steps.adopt()
    before = steps.place.config_path.read_bytes()
    add(model_versions, models_dir, 2)
    reload = steps.client.reload

    def refuse(config: Any, timeout_seconds: float) -> None:
        config.model_config_list.config.add(name=NAME, base_path="/x", model_platform="tensorflow")
        reload(config, timeout_seconds)

    steps.client.reload = refuse  # type: ignore[method-assign]  # sends what a server refuses
    with pytest.raises(ReleaseError, match="Illegal to list model") as caught:
        steps.stage(2)
    assert caught.value.code == "server_refused"
    assert steps.place.config_path.read_bytes() == before


def test_what_can_not_be_done_says_so_and_changes_nothing(
    steps: Steps, models_dir: Path, model_versions: Path
) -> None:
    def code(step: Any, *arguments: Any) -> str:
        with pytest.raises(ReleaseError) as caught:
            step(*arguments)
        return caught.value.code

    assert code(steps.canary, None, 500) == "no_stable_version"
    assert code(steps.promote) == "no_canary"
    assert code(steps.stage, 7) == "version_unknown"
    steps.adopt()
    before = steps.place.config_path.read_bytes()
    assert code(steps.canary, 1, 500) == "version_is_stable"
    assert code(steps.promote, 1) == "version_is_stable"
    shutil.rmtree(add(model_versions, models_dir, 3) / "assets.extra")
    assert code(steps.stage) == "version_refused"
    away = Steps(models_dir, f"127.0.0.1:{free_port()}")
    assert code(away.rollback) == "nothing_to_roll_back"
    add(model_versions, models_dir, 4)
    assert code(away.stage, 4) == "server_unreachable"
    with (models_dir / ".models.config.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert code(steps.stage) == "release_under_way"
    assert steps.place.config_path.read_bytes() == before
    steps.place.config_path.write_text("model_config_list {")
    assert code(steps.stage) == "config_invalid"


def test_the_status_tells_where_each_version_stands(
    steps: Steps, models_dir: Path, model_versions: Path
) -> None:
    steps.adopt()
    add(model_versions, models_dir, 2)
    steps.canary(2, 25)
    add(model_versions, models_dir, 3)
    found = read_status(steps.place.config_path, models_dir, NAME, steps.client)
    assert table(found) == [
        "version  state       label   users",
        "3        not loaded          0%",
        "2        AVAILABLE   canary  0.25%",
        "1        AVAILABLE   stable  99.75%",
    ]
    away = ModelClient(f"127.0.0.1:{free_port()}")
    found = read_status(steps.place.config_path, models_dir, NAME, away)
    away.close()
    assert found.problem == "the model server can't be reached or is overloaded"
    assert [row.label for row in found.rows] == ["", "canary", "stable"]


def test_a_model_without_a_release_is_told_as_it_is(steps: Steps, models_dir: Path) -> None:
    found = read_status(steps.place.config_path, models_dir, NAME, steps.client)
    assert (found.release, [tuple(row) for row in found.rows]) == (None, [(1, "AVAILABLE", "", None, "")])
    steps.place.config_path.write_text("?")
    with pytest.raises(ConfigError):
        read_status(steps.place.config_path, models_dir, NAME, steps.client)


def test_a_client_that_reloads_is_told_what_is_refused(steps: Steps, server: ModelServer) -> None:
    from serving.errors import ModelRejectedError
    from serving.protos import model_server_config_pb2

    with pytest.raises(ModelRejectedError, match="Only ModelConfigList is currently supported") as caught:
        steps.client.reload(model_server_config_pb2.ModelServerConfig(), 30)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
