"""Versions come into service, stay out of it, replace each other and go; with real SavedModels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.model_server.batcher import Batching, Prediction
from serving.model_server.errors import LoadError, NotServedError
from serving.model_server.loaded_model import LoadedModel
from serving.model_server.manager import RETRY_SECONDS, Model, ModelManager
from serving.model_server.wanted import FolderSource
from tests.savedmodels import export_tiny_model, tiny_probabilities

NAME = "review-sentiment"
IDS = [2, 9, 17, 3]


class Clock:
    """Stands still until told otherwise."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Loader:
    """Loads real models, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.refused: set[int] = set()
        self.look: Callable[[], object] = lambda: None

    def __call__(self, folder: Path) -> Model:
        self.versions.append(int(folder.name))
        self.look()
        if int(folder.name) in self.refused:
            raise LoadError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory just now")
        return LoadedModel(folder, compute_threads=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def make_manager(models_dir: Path, loader: Loader, clock: Clock) -> Iterator[Callable[..., ModelManager]]:
    managers: list[ModelManager] = []

    def make(versions_kept: int = 1) -> ModelManager:
        manager = ModelManager(FolderSource(models_dir, versions_kept), loader, Batching(), clock=clock)
        managers.append(manager)
        return manager

    yield make
    for manager in managers:
        manager.close()


@pytest.fixture
def manager(make_manager: Callable[..., ModelManager]) -> ModelManager:
    return make_manager()


def add_version_2(model_versions: Path, models_dir: Path) -> Path:
    return Path(shutil.copytree(model_versions / "2", models_dir / NAME / "2"))


def states(manager: ModelManager) -> dict[int, str]:
    return {record.version: record.state for record in manager.records(NAME)}


def answer(manager: ModelManager, version: int | None = None) -> Any:
    ids = np.array([IDS], np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    prediction = Prediction("serving_default", inputs, None, float("inf"))
    manager.served(NAME, version).batcher.submit(prediction)
    return prediction.outputs.result(30)["probabilities"][0]


def test_a_version_in_the_folder_is_served(manager: ModelManager) -> None:
    manager.poll()
    assert manager.available() == {NAME: [1]}
    assert answer(manager) == pytest.approx(tiny_probabilities(IDS, 1), abs=1e-6)
    assert manager.served(NAME, None) is manager.served(NAME, 1)


def test_a_new_version_replaces_the_old(
    manager: ModelManager, model_versions: Path, models_dir: Path
) -> None:
    manager.poll()
    add_version_2(model_versions, models_dir)
    manager.poll()
    assert states(manager) == {2: "AVAILABLE", 1: "END"}
    assert answer(manager) == pytest.approx(tiny_probabilities(IDS, 2), abs=1e-6)
    with pytest.raises(
        NotServedError, match=r"^Servable not found for request: Specific\(review-sentiment, 1\)$"
    ):
        manager.served(NAME, 1)


def test_as_many_versions_stay_as_are_wanted(
    make_manager: Callable[..., ModelManager], model_versions: Path, models_dir: Path
) -> None:
    add_version_2(model_versions, models_dir)
    shutil.copytree(models_dir / NAME / "1", models_dir / NAME / "3")
    manager = make_manager(versions_kept=2)
    manager.poll()
    assert states(manager) == {3: "AVAILABLE", 2: "AVAILABLE"}
    assert answer(manager, 2) == pytest.approx(tiny_probabilities(IDS, 2), abs=1e-6)


def test_the_old_version_answers_until_the_new_one_does(
    manager: ModelManager, loader: Loader, model_versions: Path, models_dir: Path
) -> None:
    manager.poll()
    add_version_2(model_versions, models_dir)
    seen = []
    loader.look = lambda: seen.append((states(manager), manager.served(NAME, None).version))
    manager.poll()
    assert seen == [({1: "AVAILABLE", 2: "LOADING"}, 1)]


BREAKS: dict[str, Callable[[Path], object]] = {
    "half a graph": lambda v: (v / "saved_model.pb").write_bytes((v / "saved_model.pb").read_bytes()[:500]),
    "no graph": lambda v: (v / "saved_model.pb").unlink(),
    "an empty graph": lambda v: (v / "saved_model.pb").write_bytes(b""),
    "no variables": lambda v: shutil.rmtree(v / "variables"),
    "half the variables": lambda v: next(v.glob("variables/*.data*")).write_bytes(b"\0" * 40),
    "damaged variables": lambda v: next(v.glob("variables/*.data*")).write_bytes(
        bytes(next(v.glob("variables/*.data*")).stat().st_size)
    ),
    "noise": lambda v: (v / "saved_model.pb").write_bytes(bytes(range(256)) * 9),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_version_stays_out_and_the_old_one_goes_on(
    how: str, manager: ModelManager, loader: Loader, model_versions: Path, models_dir: Path
) -> None:
    manager.poll()
    broken = add_version_2(model_versions, models_dir)
    BREAKS[how](broken)
    for _ in range(3):
        manager.poll()
    assert states(manager) == {2: "END", 1: "AVAILABLE"}
    record = manager.records(NAME)[0]
    assert record.error_code is not grpc.StatusCode.OK
    assert record.error_message
    assert "\n" not in record.error_message
    assert answer(manager) == pytest.approx(tiny_probabilities(IDS, 1), abs=1e-6)
    assert loader.versions == [1, 2]  # once, while its files stay as they are

    shutil.rmtree(broken)
    add_version_2(model_versions, models_dir)
    manager.poll()
    assert states(manager) == {2: "AVAILABLE", 1: "END"}


def test_a_version_that_refuses_zeros_is_served(manager: ModelManager, models_dir: Path) -> None:
    import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

    class Choosy(tf.Module):  # type: ignore[misc]  # tf is untyped
        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])  # type: ignore[untyped-decorator]  # tf is untyped
        def serve(self, input_ids: Any) -> Any:
            return {"y": tf.gather(tf.zeros([4]), input_ids - 1)}

    manager.poll()
    export_tiny_model(models_dir, version=2, model=Choosy())
    manager.poll()
    assert states(manager) == {2: "AVAILABLE", 1: "END"}


def test_after_a_restart_the_newest_version_that_loads_is_served(
    manager: ModelManager, loader: Loader, model_versions: Path, models_dir: Path
) -> None:
    BREAKS["no variables"](add_version_2(model_versions, models_dir))
    manager.poll()
    assert states(manager) == {2: "END", 1: "AVAILABLE"}
    assert loader.versions == [2, 1]


def test_a_version_that_failed_is_tried_again_after_a_while(
    manager: ModelManager, loader: Loader, clock: Clock, model_versions: Path, models_dir: Path
) -> None:
    manager.poll()
    add_version_2(model_versions, models_dir)
    loader.refused = {2}
    manager.poll()
    assert manager.records(NAME)[0].error_message == "no memory just now"
    loader.refused = set()
    clock.seconds = RETRY_SECONDS - 1
    manager.poll()
    assert states(manager) == {2: "END", 1: "AVAILABLE"}
    clock.seconds = RETRY_SECONDS
    manager.poll()
    assert states(manager) == {2: "AVAILABLE", 1: "END"}


def test_removing_the_newest_version_brings_the_one_before_back(
    manager: ModelManager, model_versions: Path, models_dir: Path
) -> None:
    second = add_version_2(model_versions, models_dir)
    manager.poll()
    assert states(manager) == {2: "AVAILABLE"}
    shutil.rmtree(second)
    manager.poll()
    assert states(manager) == {1: "AVAILABLE"}
    assert answer(manager) == pytest.approx(tiny_probabilities(IDS, 1), abs=1e-6)


def test_a_loaded_version_stays_when_its_folder_goes_and_nothing_else_loads(
    manager: ModelManager, model_versions: Path, models_dir: Path
) -> None:
    manager.poll()
    BREAKS["no graph"](add_version_2(model_versions, models_dir))
    shutil.rmtree(models_dir / NAME / "1")
    manager.poll()
    assert states(manager) == {2: "END", 1: "AVAILABLE"}


def test_a_model_whose_folder_is_removed_is_no_longer_served(manager: ModelManager, models_dir: Path) -> None:
    manager.poll()
    shutil.rmtree(models_dir / NAME)
    manager.poll()
    assert manager.records(NAME) == []
    with pytest.raises(NotServedError, match=r"^Servable not found for request: Latest\(review-sentiment\)$"):
        manager.served(NAME, None)


def test_a_folder_that_can_not_be_read_leaves_everything_as_it_is(
    manager: ModelManager, models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager.poll()
    models_dir.rename(models_dir.with_name("elsewhere"))
    manager.poll()
    manager.poll()
    assert states(manager) == {1: "AVAILABLE"}
    assert [r.getMessage().split(":")[0] for r in caplog.records if r.levelname == "WARNING"] == [
        "keeping what is loaded"
    ]


def test_several_models_are_served_side_by_side(
    manager: ModelManager, models_dir: Path, model_versions: Path
) -> None:
    shutil.copytree(model_versions / "2", models_dir / "other" / "2")
    BREAKS["noise"](Path(shutil.copytree(model_versions / "2", models_dir / "broken" / "5")))
    manager.poll()
    assert manager.available() == {"other": [2], NAME: [1]}


def test_closing_unloads_everything(models_dir: Path, clock: Clock) -> None:
    load = partial(LoadedModel, compute_threads=1)
    manager = ModelManager(FolderSource(models_dir, 1), load, Batching(), clock=clock)
    manager.poll()
    manager.close()
    assert states(manager) == {1: "END"}
    assert manager.available() == {}
