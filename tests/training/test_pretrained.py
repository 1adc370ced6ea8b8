"""Checkpoints as Hugging Face writes them: read whole, from a folder or the hub's cache, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.training.checkpoints import VOCABULARY, tiny_weights, write_checkpoint
from training.bert_classifier import BertClassifier
from training.errors import TrainingError
from training.pretrained import load_checkpoint


def refused(source: Path | str) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        load_checkpoint(str(source))
    return caught.value


def test_a_checkpoint_of_the_old_manner_is_read_with_its_own_tokenizer(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(write_checkpoint(tmp_path)))
    assert (checkpoint.config.width, checkpoint.config.layers, checkpoint.config.heads) == (16, 2, 4)
    tokens = checkpoint.tokenizer.encode("Ab é").tokens
    assert tokens == ["[CLS]", "a", "##b", "e", "[SEP]"]
    assert checkpoint.tokenizer.get_vocab_size() == len(VOCABULARY)
    classifier = BertClassifier(checkpoint.config, labels=3, seed=1)
    assert checkpoint.fill_classifier(classifier) == ["head"]
    np.testing.assert_array_equal(classifier.pooler.numpy(), tiny_weights()["bert.pooler.dense.weight"].T)


def test_a_tokenizer_that_cuts_and_pads_does_so_no_more(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    cutting = load_checkpoint(str(folder)).tokenizer
    cutting.enable_truncation(4)
    cutting.enable_padding(length=8)
    cutting.save(str(folder / "tokenizer.json"))
    found = load_checkpoint(str(folder)).tokenizer.encode("a b c d e")
    assert found.tokens == ["[CLS]", *"abcde", "[SEP]"]


def test_a_checkpoint_without_pooler_leaves_that_to_be_learnt(tmp_path: Path) -> None:
    weights = {name: value for name, value in tiny_weights().items() if "pooler" not in name}
    checkpoint = load_checkpoint(str(write_checkpoint(tmp_path, weights)))
    classifier = BertClassifier(checkpoint.config, labels=2, seed=1)
    assert checkpoint.fill_classifier(classifier) == ["pooler", "head"]


def test_a_name_is_looked_up_through_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    # The hub's cache as a download leaves it: found there, nothing is asked of the network.
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--tiny-bert"
    write_checkpoint(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = load_checkpoint("someone/tiny-bert")
    assert found.sha256 == load_checkpoint(f"someone/tiny-bert@{commit}").sha256
    lacking = refused("someone/unknown")
    assert lacking.code == "checkpoint_missing"
    assert "someone/unknown is no folder" in str(lacking)
    assert refused("no such name/at all").code == "checkpoint_missing"


def test_weights_of_another_architecture_are_refused_with_names_and_shapes(tmp_path: Path) -> None:
    error = refused(write_checkpoint(tmp_path / "deep", tiny_weights(layers=3)))
    assert error.code == "checkpoint_mismatch"
    assert "encoder.layer.2.attention.output.LayerNorm.bias [16] is not known" in str(error)
    assert "; and 8 more" in str(error)
    error = refused(write_checkpoint(tmp_path / "shallow", tiny_weights(layers=1)))
    assert "encoder.layer.1.attention.self.query.weight [16, 16] lacks" in str(error)
    error = refused(write_checkpoint(tmp_path / "wide", intermediate_size=48))
    assert "encoder.layer.0.intermediate.dense.weight is [32, 16], not [48, 16]" in str(error)
    error = refused(write_checkpoint(tmp_path / "few", type_vocab_size=1))
    assert "embeddings.token_type_embeddings.weight is [2, 16], not [1, 16]" in str(error)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, *(f"word{n}" for n in range(40))]), "utf-8")
    assert refused(folder).code == "checkpoint_mismatch"
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY[1:]), "utf-8")
    assert "has no [PAD]" in str(refused(folder))


def lost(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def told(**config: Any) -> Callable[[Path], object]:
    return lambda folder: write_checkpoint(folder, **config)


def torn(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("harm", "code", "says"),
    [
        (lost("config.json"), "checkpoint_unreadable", "config.json"),
        (lost("model.safetensors"), "checkpoint_unreadable", "only safetensors are read"),
        (lost("vocab.txt"), "checkpoint_unreadable", "tokenizer"),
        (torn, "checkpoint_unreadable", "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "checkpoint_unreadable", "config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "checkpoint_unsupported", "None"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "bert"})),
         "checkpoint_unreadable", "does not say 'vocab_size'"),
        (told(model_type="roberta"), "checkpoint_unsupported", "'roberta', not 'bert'"),
        (told(hidden_act="silu"), "checkpoint_unsupported", "known: gelu"),
        (told(position_embedding_type="relative_key"), "checkpoint_unsupported", "relative positions"),
        (told(num_attention_heads=3), "checkpoint_unsupported", "3 heads"),
        (told(hidden_size="wide"), "checkpoint_unreadable", "config.json"),
        (lambda f: save_file({"a": np.zeros(1, np.float32)}, f / "model.safetensors"),
         "checkpoint_mismatch", "embeddings.word_embeddings.weight [80, 16] lacks"),
    ],
)  # fmt: skip
def test_what_is_no_bert_or_broken_is_refused(
    tmp_path: Path, harm: Callable[[Path], object], code: str, says: str
) -> None:
    folder = write_checkpoint(tmp_path)
    harm(folder)
    error = refused(folder)
    assert error.code == code
    assert says in str(error)
