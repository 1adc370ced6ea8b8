"""Asks exported models the same texts under two releases of TensorFlow, and compares the answers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training.dataset import held_out_texts

TEXTS = 64
TOLERANCE = 1e-6
REFERENCE = Path(__file__).parents[1] / "tests" / "training" / "reference" / "minilm.json"
REFERENCE_TOLERANCE = 1e-4


def ask(model: Path, texts: list[str]) -> tuple[Any, Any]:
    """Token ids (padded) of the texts, and what the model answers: probabilities or embeddings."""
    assets = model / "assets.extra"
    tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(str(assets))
    if [theirs(text)["input_ids"] for text in texts] != [tokenizer.encode(text).ids for text in texts]:
        sys.exit("error: transformers and tokenizers count differently")
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    ids = np.array([e.ids for e in encodings], np.int32)
    mask = np.array([e.attention_mask for e in encodings], np.int32)
    serve = tf.saved_model.load(str(model)).signatures["serving_default"]
    [answer] = serve(input_ids=tf.constant(ids), attention_mask=tf.constant(mask)).values()
    return ids, answer.numpy()


def main(verb: str, folder: Path, models: list[Path]) -> None:
    """`answer` writes each model's answers to the folder; `compare` fails if they are not the same here.

    Embeddings are held against those of transformers and torch as well.
    """
    for model in models:
        card = json.loads((model / "assets.extra" / "model_card.json").read_text("utf-8"))
        print(f"{card['name']}:")  # noqa: T201
        check(verb, model, card["task"] == "embedding", folder / f"{card['name']}.npz")


def check(verb: str, model: Path, embeds: bool, answers: Path) -> None:
    """Write or compare the answers of one model."""
    reference = json.loads(REFERENCE.read_text("utf-8"))
    ids, found = ask(model, reference["texts"] if embeds else held_out_texts()[:TEXTS])
    if embeds:
        wanted = np.array(reference["embeddings"])
        _report(f"TensorFlow {tf.__version__} and torch", len(ids), found, wanted, REFERENCE_TOLERANCE)
    if verb == "answer":
        np.savez(answers, ids=ids, answers=found, version=tf.__version__)
        return
    before = np.load(answers)
    if not np.array_equal(before["ids"], ids):
        sys.exit("error: the token ids differ")
    releases = f"TensorFlow {before['version']} and {tf.__version__}"
    _report(releases, len(ids), found, before["answers"], TOLERANCE)


def _report(who: str, texts: int, found: Any, wanted: Any, tolerance: float) -> None:
    difference = float(np.abs(found - wanted).max())
    print(f"{who}: {texts} texts, largest difference {difference:.1e}")  # noqa: T201 -- the result
    if not difference <= tolerance:
        sys.exit(f"error: that is more than {tolerance}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(model) for model in sys.argv[3:]])
