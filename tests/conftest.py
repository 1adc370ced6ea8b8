"""Fixtures for the tests of every package."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.savedmodels import export_tiny_model

# As the commands that load TensorFlow do, for the tests that load it here.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# How long an example takes is the machine's doing: no property here is one of time.
settings.register_profile("tallybook", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tallybook")

# They start whole systems and mostly wait: begun last, one of them would keep a single core busy at the end.
_FIRST = [Path(__file__).parent / name for name in ("dags", "training", "drills")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first; the Makefile tells xdist to keep this order."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in _FIRST))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: Python need not look through it for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with versions 1 and 2 of the tiny model, to copy from; not to be written to."""
    folder = tmp_path_factory.mktemp("exported")
    export_tiny_model(folder, version=1)
    return export_tiny_model(folder, version=2).parent


@pytest.fixture
def models_dir(model_versions: Path, tmp_path: Path) -> Path:
    """A fresh models_dir that holds version 1 of the tiny model `review-sentiment`."""
    shutil.copytree(model_versions / "1", tmp_path / "models" / "review-sentiment" / "1")
    return tmp_path / "models"
