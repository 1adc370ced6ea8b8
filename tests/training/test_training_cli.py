"""`python -m training.cli` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.cli import train


def refused(*options: str) -> str:
    """What standard error says of a training that must fail, in this process for speed."""
    done = CliRunner().invoke(train, options)
    assert done.exit_code == 1
    assert done.stdout == ""
    return done.stderr


def test_a_quick_training_reports_itself_without_noise_and_exports_a_version(tmp_path: Path) -> None:
    options = ["--limit", "400", "--epochs", "1", "--models-dir", str(tmp_path), "--model-name", "quick"]
    options += ["--training-dir", str(tmp_path / "costs"), "--pool-price", "12.50 CNY"]
    command = [sys.executable, "-m", "training.cli", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""  # neither TensorFlow's native libraries nor a progress bar outside a terminal
    assert done.returncode == 0
    assert "epoch 1" in done.stdout
    assert "the model" in done.stdout
    assert "logistic regression" in done.stdout
    assert done.stdout.endswith(f"exported {tmp_path / 'quick' / '1'}\n")
    card = json.loads((tmp_path / "quick" / "1" / "assets.extra" / "model_card.json").read_text("utf-8"))
    test = card["metrics"]["test"]
    counted = sum(test[name] for name in test if name.endswith(("negatives", "positives")))
    assert counted == card["data"]["counts"]["test"] == 41
    assert card["training"]["seed"] == 7
    assert card["training"]["epoch_kept"] == 1
    [file] = (tmp_path / "costs").iterdir()
    [line] = file.read_text("utf-8").splitlines()
    event = json.loads(line)
    assert file.name == f"{event['id']}.jsonl"
    assert (event["specversion"], event["type"], event["subject"]) == (
        "1.0",
        "tallybook.training.v1",
        "quick",
    )
    data = event["data"]
    assert 0 < data["device_seconds"] <= data["wall_seconds"]
    assert (data["model"], data["model_version"], data["device"]) == (
        "quick",
        "1",
        card["training"]["device"],
    )
    assert data["examples"] == card["data"]["counts"]["train"]
    assert data["code_version"] == card["code_version"]
    assert (data["pool_price_per_hour"], data["currency"]) == ("12.50", "CNY")


@pytest.mark.parametrize(
    ("negative", "positive", "code"),
    [("", "", "empty_data"), ("", "好", "one_class"), ("差", "好", "too_few_texts")],
)
def test_data_to_learn_nothing_from_ends_in_a_coded_error(
    tmp_path: Path, negative: str, positive: str, code: str
) -> None:
    (tmp_path / "neg.txt").write_text(negative, "utf-8")
    (tmp_path / "pos.txt").write_text(positive, "utf-8")
    places = ["--models-dir", str(tmp_path / "models"), "--training-dir", str(tmp_path / "costs")]
    told = refused("--data-dir", str(tmp_path), *places)
    assert told.startswith(f"error: {code}: ")
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / "costs").iterdir()) == []


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
