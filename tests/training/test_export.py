"""Exports: complete, loadable by strangers, numbered upwards, and never half visible."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from tokenizers import Tokenizer

from training import export
from training.errors import TrainingError
from training.export import export_model
from training.small_model import SmallClassifier, SmallConfig
from training.tokenizer import build_tokenizer

TEXTS = ["房间很大，早餐很好", "太差了，再也不来", "wifi 不错"]
CARD = {"task": "classification", "labels": [], "data": {"name": "test"}}


def made() -> tuple[SmallClassifier, Tokenizer]:
    tokenizer = build_tokenizer(TEXTS)
    config = SmallConfig(tokenizer.get_vocab_size(), width=16, heads=2, layers=2, bigram_bits=6, ngram_bits=8)
    model = SmallClassifier(config, seed=1)
    random = np.random.RandomState(1)
    model.ngram_ratio.assign(random.normal(size=(256, 1)))
    model.ngram_weight.assign(random.normal(size=(256, 1)))
    return model, tokenizer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(*made(), 512, tmp_path_factory.mktemp("models"), "reviews", CARD)


def numbered(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.isdigit())


def test_an_export_is_what_the_contract_says(exported: Path) -> None:
    assert (exported.parent.name, exported.name) == ("reviews", "1")
    assert {entry.name for entry in exported.iterdir()} >= {"saved_model.pb", "variables", "assets.extra"}
    assert {entry.name for entry in (exported / "assets.extra").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "model_card.json",
    }  # fmt: skip
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    assert {(name, spec.dtype, tuple(spec.shape)) for name, spec in inputs.items()} == {
        ("input_ids", tf.int32, (None, None)),
        ("attention_mask", tf.int32, (None, None)),
    }
    output = signature.structured_outputs["probabilities"]
    assert (output.dtype, output.shape[1]) == (tf.float32, 2)


def test_the_loaded_export_gives_the_probabilities_of_the_model(exported: Path) -> None:
    model, tokenizer = made()
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(TEXTS)
    ids = tf.constant([e.ids for e in encodings], tf.int32)
    mask = tf.constant([e.attention_mask for e in encodings], tf.int32)
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    found = serve(input_ids=ids, attention_mask=mask)["probabilities"].numpy()
    np.testing.assert_allclose(found, model.probabilities(ids, mask).numpy(), atol=1e-6)


def test_the_card_tells_what_is_served_and_where_it_comes_from(exported: Path) -> None:
    card = json.loads((exported / "assets.extra" / "model_card.json").read_text("utf-8"))
    tokenizer = (exported / "assets.extra" / "tokenizer.json").read_bytes()
    assert card["tokenizer_fingerprint"] == hashlib.sha256(tokenizer).hexdigest()
    assert (card["name"], card["version"], card["max_length_tokens"]) == ("reviews", 1, 512)
    assert {name: card[name] for name in CARD} == CARD
    assert card["framework"] == f"tensorflow {tf.__version__}"
    assert card["created_at"].endswith("+00:00")
    assert card["code_version"].startswith("training-sha256:")


def test_the_next_version_is_one_above_the_highest_whatever_else_lies_there(tmp_path: Path) -> None:
    for name in ("2", "10", "latest", ".export-left-by-a-kill"):
        (tmp_path / "reviews" / name).mkdir(parents=True)
    assert export_model(*made(), 512, tmp_path, "reviews", CARD).name == "11"
    assert numbered(tmp_path / "reviews") == ["10", "11", "2"]


def test_exports_at_the_same_time_get_different_versions(tmp_path: Path) -> None:
    parent = tmp_path / "reviews"

    def publish(number: int) -> Path:
        beside = parent / f".export-{number}"
        (beside / "assets.extra").mkdir(parents=True)
        return export._publish(beside, parent, {"number": number})

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(publish, range(24)))
    assert sorted(int(folder.name) for folder in found) == list(range(1, 25))
    for number, folder in enumerate(found):
        card = json.loads((folder / "assets.extra" / "model_card.json").read_text("utf-8"))
        assert card == {"version": int(folder.name), "number": number}


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "a" * 129])
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError) as caught:
        export_model(*made(), 512, tmp_path, name, CARD)
    assert caught.value.code == "invalid_model_name"
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(TrainingError, match="No space left") as caught:
        export_model(*made(), 512, tmp_path, "reviews", CARD)
    assert caught.value.code == "export_failed"
    assert list((tmp_path / "reviews").iterdir()) == []


KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from training import export
from training.small_model import SmallConfig, SmallClassifier
from training.tokenizer import build_tokenizer

tokenizer = build_tokenizer(["好"])
model = SmallClassifier(SmallConfig(tokenizer.get_vocab_size(), width=8, bigram_bits=4, ngram_bits=4), 1)
export.flush_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
export.export_model(model, tokenizer, 512, Path(sys.argv[1]), "reviews", {})
"""


def test_a_kill_at_the_last_moment_leaves_no_version_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    left = [entry.name for entry in (tmp_path / "reviews").iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".export-")
    assert export_model(*made(), 512, tmp_path, "reviews", CARD).name == "1"
    assert numbered(tmp_path / "reviews") == ["1"]


def test_a_models_dir_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(TrainingError) as caught:
        export_model(*made(), 512, tmp_path / "models", "reviews", CARD)
    assert caught.value.code == "export_failed"
