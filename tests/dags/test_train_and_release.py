"""The DAG from training to release: real trainings, and a real model server, journal and ledger."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.release.files import Release, ReleaseFiles
from tests.dags import dag_runs, release_runs
from tests.dags.conftest import AirflowProcess
from tests.modelservers import running_server
from tests.version_requests import MODEL, write_requests

STEPS = ["adopt", "train", "evaluate", "gate", "stage", "canary", "compare", "decide", "promote", "roll_back"]

FILLERS = ("bome", "dulk", "fipa", "gesh", "hord", "jumb", "keto", "lirp", "mund", "pola", "quib", "vork")


@pytest.fixture
def models_dir(tmp_path: Path, model_versions: Path) -> Path:
    shutil.copytree(model_versions / "1", tmp_path / "models" / MODEL / "1")
    return tmp_path / "models"


@pytest.fixture
def environment(settings: dict[str, str], models_dir: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    with running_server(models_dir) as server:
        yield settings | {
            "TALLYBOOK_MODELS_DIR": str(models_dir),
            "TALLYBOOK_MODEL_SERVER_ADDRESS": server.address,
            "TALLYBOOK_TRAINING_DIR": str(tmp_path / "training"),
        }


@pytest.fixture
def run(airflow: AirflowProcess, environment: dict[str, str]) -> Any:
    """Run the DAG with this configuration; two requests of each side are enough."""

    def call(**conf: Any) -> dag_runs.Outcome:
        asked = {"model": MODEL, "share": "50", "requests": 2, "hours": 0, **conf}
        outcome: dag_runs.Outcome = airflow.call(release_runs.run, environment, asked)
        return outcome

    return call


def release(models_dir: Path) -> Release | None:
    return ReleaseFiles(models_dir / "models.config", MODEL).read()


def stage_version_2(models_dir: Path, model_versions: Path) -> None:
    """Version 2 beside a release that holds version 1."""
    (models_dir / "models.config").write_text(
        f'model_config_list {{ config {{ name: "{MODEL}" base_path: "{models_dir / MODEL}" '
        'model_platform: "tensorflow" model_version_policy { specific { versions: 1 } } '
        'version_labels { key: "stable" value: 1 } } }'
    )
    shutil.copytree(model_versions / "2", models_dir / MODEL / "2")


def texts(tmp_path: Path, easy: bool = False) -> list[str]:
    """Labelled texts as arguments of a training of seconds.

    The label is whether two words that stand together agree. What tells these apart is further from each
    other than the three characters of the baseline, but not than two words. Easy ones say it in a word.
    """
    draw = random.Random(7)  # noqa: S311  not for cryptography
    rows = ["text,label"]
    for _ in range(300):
        first, second = draw.randrange(2), draw.randrange(2)
        said = ("minus", "plus")[first == second]
        words = draw.choices(FILLERS, k=8)
        words.insert(draw.randrange(9), said if easy else f"n{'ai'[first]}lo t{'ao'[second]}re")
        rows.append(f"{' '.join(words)},{said}")
    file = tmp_path / "texts.csv"
    file.write_text("\n".join(rows))
    return ["--data", str(file), "--epochs", "1"]


def serve(tmp_path: Path, label: str, version: str) -> None:
    """Three answered requests, a little later than the canary begins."""
    write_requests(tmp_path / "journal", label, version, 0.1, count=3, later=timedelta(minutes=10))


def test_the_steps_are_in_order(airflow: AirflowProcess) -> None:
    downstream, params = airflow.call(release_runs.structure)
    assert set(downstream) == set(STEPS)
    later: set[str] = {"adopt"}
    for step in STEPS[:8]:
        later |= downstream[step]
        assert downstream[step], step
    assert later == set(STEPS)
    assert downstream["decide"] == {"promote", "roll_back"}
    assert set(params) == {"model", "version", "train", "share", "requests", "hours"}


def test_a_version_is_trained_tried_and_promoted_when_the_ledger_finds_it_no_worse(
    run: Any, models_dir: Path, tmp_path: Path
) -> None:
    serve(tmp_path, "stable", "1")
    serve(tmp_path, "canary", "2")
    outcome = run(train=texts(tmp_path))
    done = dict.fromkeys(STEPS[:-1], "success")
    assert outcome.tasks == {**done, "roll_back": "skipped"}, outcome.log
    assert outcome.state == "success"
    assert "the baseline" in outcome.log
    assert "version 1, in service, has 0 right" in outcome.log  # it knows other labels
    assert release(models_dir) == Release({"stable": 2, "previous": 1})


def test_a_canary_that_too_few_have_asked_is_rolled_back_when_its_time_is_up(
    run: Any, models_dir: Path, model_versions: Path
) -> None:
    stage_version_2(models_dir, model_versions)
    outcome = run(version=2)
    assert (outcome.tasks["roll_back"], outcome.tasks["promote"]) == ("success", "skipped"), outcome.log
    assert "0 requests of the canary and 0 of the stable version; 2 of each are needed" in outcome.log
    assert release(models_dir) == Release({"stable": 1})


def test_a_trained_version_that_the_gate_refuses_is_not_staged_and_one_that_is_not_there_ends_the_run(
    run: Any, models_dir: Path, tmp_path: Path
) -> None:
    outcome = run(train=texts(tmp_path, easy=True))
    assert (outcome.state, outcome.tasks["gate"], outcome.tasks["stage"]) == ("success", "success", "skipped")
    assert "refused: it has " in outcome.log
    assert [folder.name for folder in (models_dir / MODEL).iterdir()] == ["1"]
    outcome = run(version=7)
    assert (outcome.state, outcome.tasks["evaluate"]) == ("failed", "failed")
    assert "card_missing" in outcome.log
    assert release(models_dir) == Release({"stable": 1})
