"""`python -m training.cli` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from click.testing import CliRunner
from tensorflow.python.summary.summary_iterator import summary_iterator  # type: ignore[import-untyped]

from tests.training.checkpoints import write_checkpoint
from training.cli import train


def refused(*options: str) -> str:
    """What standard error says of a training that must fail, in this process for speed."""
    done = CliRunner().invoke(train, options)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def places(folder: Path) -> list[str]:
    return ["--models-dir", str(folder / "models"), "--training-dir", str(folder / "costs")]


def event_in(folder: Path) -> dict[str, Any]:
    [file] = folder.glob("*.jsonl")
    [line] = file.read_text("utf-8").splitlines()
    event: dict[str, Any] = json.loads(line)
    assert file.name == f"{event['id']}.jsonl"
    assert (event["specversion"], event["type"]) == ("1.0", "tallybook.training.v1")
    return event


def letters(folder: Path) -> Path:
    """Texts of a few letters, of which one says the label: learnt at once."""
    rows = []
    for n in range(900):
        label = "xyz"[n % 3]
        others = " ".join("abcdefghij"[(n // 3**place) % 3 + place] for place in range(6))
        rows.append(f"{label} {others},{label}")
    file = folder / "letters.csv"
    file.write_text("\n".join(["words,kind", *rows]), "utf-8")
    return file


def test_a_quick_training_reports_itself_without_noise_and_exports_a_version(tmp_path: Path) -> None:
    options = ["--limit", "400", "--epochs", "1", "--model-name", "quick", "--publish-anyway", "a quick try"]
    command = [sys.executable, "-m", "training.cli", *options, *places(tmp_path), "--pool-price", "12.50 CNY"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""  # neither TensorFlow's native libraries nor a progress bar outside a terminal
    assert done.returncode == 0
    assert "epoch 1" in done.stdout
    assert "the model" in done.stdout
    assert "logistic regression" in done.stdout
    folder = tmp_path / "models" / "quick" / "1"
    assert done.stdout.endswith(f"exported {folder}\n")
    card = json.loads((folder / "assets.extra" / "model_card.json").read_text("utf-8"))
    assert sum(map(sum, card["metrics"]["test"]["confusion"])) == card["data"]["counts"]["test"] > 20
    assert card["labels"][0] == {"name": "negative", "explanation": "这是一条负面评价"}
    assert (card["training"]["seed"], card["training"]["epoch_kept"]) == (7, 1)
    assert card["gate"]["override"] == "a quick try"
    for picture in ("learning_curves.png", "confusion_matrix.png"):
        assert (folder / "assets.extra" / picture).read_bytes().startswith(b"\x89PNG")
    event = event_in(tmp_path / "costs")
    data = event["data"]
    assert event["subject"] == data["model"] == "quick"
    assert 0 < data["device_seconds"] <= data["wall_seconds"]
    assert (data["model_version"], data["device"]) == ("1", card["training"]["device"])
    assert data["examples"] == card["data"]["counts"]["train"]
    assert data["code_version"] == card["code_version"]
    assert (data["pool_price_per_hour"], data["currency"]) == ("12.50", "CNY")


def test_a_bert_tuned_on_any_labels_is_kept_out_when_it_does_not_beat_the_baseline(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "bert")
    options = ["--init-from", str(weights), "--data", str(letters(tmp_path)), "--model-name", "letters"]
    options += ["--text-column", "words", "--label-column", "kind", "--epochs", "1", "--learning-rate", "0"]
    done = CliRunner().invoke(train, [*options, *places(tmp_path)])
    assert (done.exit_code, done.stderr) == (3, "")
    assert "gate: refused: it has " in done.stdout
    assert not (tmp_path / "models").exists()
    [kept] = (tmp_path / "costs" / "refused").iterdir()
    assert done.stdout.endswith(f"not published; its card is in {kept}\n")
    card = json.loads((kept / "model_card.json").read_text("utf-8"))
    assert card["gate"]["passed"] is False
    assert [label["name"] for label in card["labels"]] == ["x", "y", "z"]
    assert card["checkpoint"]["source"] == str(weights)
    assert card["training"]["learnt_anew"] == ["head"]
    assert card["training"]["model"]["kind"] == "BertClassifier"
    assert event_in(tmp_path / "costs")["data"]["model_version"] == "refused"
    [curves] = (tmp_path / "costs" / "runs").glob("letters-*/tensorboard/*/events*")
    tags = {value.tag for event in summary_iterator(str(curves)) for value in event.summary.value}
    assert tags == {"loss/training", "loss/validation", "accuracy/validation"}
    assert not list((tmp_path / "costs" / "runs").glob("*/checkpoint.npz"))


def test_a_version_that_is_worse_than_the_one_in_service_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.pipeline.in_service", lambda *given: rival(given[-1]))
    options = ["--limit", "400", "--epochs", "1", *places(tmp_path)]
    done = CliRunner().invoke(train, options)
    assert done.exit_code == 3
    assert "version 9, in service, has" in done.stdout
    assert "(worse;" in done.stdout


def rival(held_out: Any) -> Any:
    from training.gate import Rival

    return Rival("9", tf.ones(len(held_out.texts), tf.bool).numpy())


def test_data_to_learn_nothing_from_ends_in_a_coded_error(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("text,label\nfine,good\nbetter,good\n")
    assert refused("--data", str(file), *places(tmp_path)).startswith("error: one_class: ")
    told = refused("--data", str(file), "--label-column", "stars", *places(tmp_path))
    assert told.startswith("error: wrong_columns: ")
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / "costs").iterdir()) == []


def test_a_checkpoint_of_another_architecture_ends_in_a_coded_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bert", hidden_size=24)
    told = refused("--init-from", str(folder), *places(tmp_path))
    assert told.startswith("error: checkpoint_mismatch: ")
    assert "embeddings.word_embeddings.weight is [80, 16], not [80, 24]" in told


def test_a_bad_name_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    told = refused("--model-name", "../elsewhere", "--models-dir", str(tmp_path))
    assert told.startswith("error: invalid_model_name: ")


@pytest.mark.parametrize("price", ["12.50", "12.50CNY", "-1 CNY", "1e3 CNY", "NaN CNY", "1.5 cny"])
def test_a_price_that_is_not_exact_or_has_no_currency_is_refused(tmp_path: Path, price: str) -> None:
    told = refused("--pool-price", price, "--models-dir", str(tmp_path), "--training-dir", str(tmp_path))
    assert told.startswith("error: invalid_pool_price: ")


def test_costs_that_can_not_be_written_are_noticed_before_the_work_begins(tmp_path: Path) -> None:
    file = tmp_path / "costs"
    file.write_text("not a folder")
    told = refused("--models-dir", str(tmp_path / "models"), "--training-dir", str(file / "below"))
    assert told.startswith("error: training_dir_unwritable: ")
    assert not (tmp_path / "models").exists()


def test_models_go_where_the_settings_of_the_other_packages_say(tmp_path: Path) -> None:
    file = tmp_path / "models"
    file.write_text("not a folder")
    done = CliRunner().invoke(train, [], env={"TALLYBOOK_MODELS_DIR": str(file)})
    assert done.exit_code == 2
    assert str(file) in done.stderr


def test_help_is_quick_because_it_loads_no_tensorflow() -> None:
    code = "import sys, training.cli; print(sorted({'tensorflow', 'numpy', 'sklearn'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "[]\n"
