"""Real pretrained weights, exported to embed: against what transformers and torch compute of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from click.testing import CliRunner
from tokenizers import Tokenizer

from tests.training.checkpoints import minilm, write_checkpoint
from training.cli import export_embedding

REFERENCE = json.loads((Path(__file__).parent / "reference" / "minilm.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models_dir = tmp_path_factory.mktemp("models")
    options = ["--init-from", str(minilm()), "--model-name", "minilm", "--models-dir", str(models_dir)]
    done = CliRunner().invoke(export_embedding, options)
    assert done.stdout == f"exported {models_dir / 'minilm' / '1'}\n"
    return models_dir / "minilm" / "1"


def test_real_weights_embed_as_transformers_and_torch_do(exported: Path) -> None:
    tokenizer = Tokenizer.from_file(str(exported / "assets.extra" / "tokenizer.json"))
    encodings = tokenizer.encode_batch(REFERENCE["texts"])
    assert [encoding.ids for encoding in encodings] == REFERENCE["input_ids"]
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(REFERENCE["texts"])
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    found = serve(
        input_ids=tf.constant([e.ids for e in encodings], tf.int32),
        attention_mask=tf.constant([e.attention_mask for e in encodings], tf.int32),
    )["embeddings"].numpy()
    assert found.dtype == np.float32
    assert np.abs(found - np.array(REFERENCE["embeddings"])).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_card_of_an_embedding_says_so(exported: Path) -> None:
    card = json.loads((exported / "assets.extra" / "model_card.json").read_text("utf-8"))
    assert (card["task"], card["labels"], card["dimension"]) == ("embedding", [], 384)
    assert card["max_length_tokens"] == 512
    assert card["checkpoint"]["sha256"].startswith("53aa51172d14")


def test_what_can_not_be_exported_ends_in_a_coded_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", model_type="gpt2")
    options = ["--models-dir", str(tmp_path / "models"), "--init-from", str(folder), "--model-name"]
    for name, code in (("tiny", "checkpoint_unsupported"), ("../tiny", "invalid_model_name")):
        done = CliRunner().invoke(export_embedding, [*options, name])
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {code}: ")
    assert not (tmp_path / "models").exists()
