"""What the workflow reads of the commands that it runs; a stand-in answers for them, which are slow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tallybook import release_steps
from tallybook.release_steps import Gate, StepError, Verdict


class Commands:
    """Not the command line: remembers what was run, and answers what the test says."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.answer = (0, "", "")

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.ran.append(" ".join(command[3:]))
        return subprocess.CompletedProcess(command, *self.answer)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(subprocess, "run", made)
    return made


def test_what_answers_is_adopted_and_nothing_need_answer(commands: Commands) -> None:
    commands.answer = (0, "reviews 3 is the stable version.\n", "a notice\n")
    release_steps.adopt("reviews")
    commands.answer = (1, "", "Error: nothing_served: the model server has no version of reviews\n")
    release_steps.adopt("reviews")
    commands.answer = (1, "", "Error: server_unreachable: it is away\n")
    with pytest.raises(StepError, match="release adopt reviews --by airflow: it is away") as caught:
        release_steps.adopt("reviews")
    assert caught.value.code == "server_unreachable"


@pytest.mark.parametrize(
    ("status", "last", "folder"),
    [
        (0, "exported models/reviews/4", "models/reviews/4"),
        (3, "not published; its card is in var/training/refused/1", "var/training/refused/1"),
    ],
)
def test_training_says_where_the_version_or_its_card_is(
    commands: Commands, status: int, last: str, folder: str
) -> None:
    commands.answer = (status, f"epoch 1\n{last}\n", "")
    assert release_steps.train("reviews", None, ["--epochs", "1"]) == folder
    assert commands.ran == ["train --model-name reviews --epochs 1"]


def test_a_version_that_is_there_is_not_trained(commands: Commands) -> None:
    assert release_steps.train("reviews", 7, []) == str(Path("models/reviews/7"))
    assert commands.ran == []


def test_a_training_that_fails_is_told_by_its_code(commands: Commands) -> None:
    commands.answer = (1, "", "a notice\nerror: no_texts: data.tsv is empty\n")
    with pytest.raises(StepError) as caught:
        release_steps.train("reviews", None, [])
    assert (caught.value.code, str(caught.value)) == (
        "no_texts",
        "train --model-name reviews: data.tsv is empty",
    )
    commands.answer = (-9, "", "")
    with pytest.raises(StepError, match="it said nothing") as caught:
        release_steps.train("reviews", None, [])
    assert caught.value.code == "step_failed"


@pytest.mark.parametrize(
    ("card", "gate"),
    [
        ({}, Gate(True, "its card tells of no gate")),
        ({"gate": {"passed": True, "reason": "better"}}, Gate(True, "better")),
        ({"gate": {"passed": False, "reason": "worse", "override": None}}, Gate(False, "worse")),
        (
            {"gate": {"passed": False, "reason": "worse", "override": "a fix"}},
            Gate(True, "worse; published anyway: a fix"),
        ),
    ],
)
def test_the_gate_is_read_of_the_card(tmp_path: Path, card: dict[str, Any], gate: Gate) -> None:
    (tmp_path / "model_card.json").write_text(json.dumps(card))
    assert release_steps.gate(str(tmp_path)) == gate


def test_the_evaluation_is_read_of_the_card(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="has no model card"):
        release_steps.evaluation(str(tmp_path))
    (tmp_path / "assets.extra").mkdir()
    card = tmp_path / "assets.extra" / "model_card.json"
    card.write_text("{}")
    assert "has no metrics" in release_steps.evaluation(str(tmp_path))
    accuracy = {"test": {"accuracy": 0.875}}
    card.write_text(json.dumps({"metrics": accuracy, "baseline": {"name": "TF-IDF", **accuracy}}))
    assert release_steps.evaluation(str(tmp_path)) == "87.5% of the held-out texts right; TF-IDF: 87.5%"


@pytest.mark.parametrize(("status", "passed"), [(0, True), (1, False), (3, None)])
def test_a_comparison_is_read_whatever_its_exit_code(
    commands: Commands, status: int, passed: bool | None
) -> None:
    commands.answer = (status, json.dumps({"passed": passed, "reasons": ["a", "b"]}), "")
    since = "2026-11-26T20:00:00+00:00"
    assert release_steps.compare("reviews", 4, since, 200) == Verdict(passed, "a; b")
    commands.answer = (1, "", "Error: ledger_unavailable: the database went away\n")
    with pytest.raises(StepError) as caught:
        release_steps.compare("reviews", 4, since, 200)
    assert caught.value.code == "ledger_unavailable"
