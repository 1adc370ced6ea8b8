"""Asks an exported model the same texts under two releases of TensorFlow, and compares the answers."""

from __future__ import annotations

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


def ask(model: Path) -> tuple[Any, Any]:
    """Token ids (padded) of some held-out texts, and the probabilities of their labels."""
    assets = model / "assets.extra"
    tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json"))
    texts = held_out_texts()[:TEXTS]
    theirs = AutoTokenizer.from_pretrained(str(assets))
    if [theirs(text)["input_ids"] for text in texts] != [tokenizer.encode(text).ids for text in texts]:
        sys.exit("error: transformers and tokenizers count differently")
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    ids = np.array([e.ids for e in encodings], np.int32)
    mask = np.array([e.attention_mask for e in encodings], np.int32)
    serve = tf.saved_model.load(str(model)).signatures["serving_default"]
    found = serve(input_ids=tf.constant(ids), attention_mask=tf.constant(mask))
    return ids, found["probabilities"].numpy()


def main(verb: str, model: Path, answers: Path) -> None:
    """`answer` writes the answers to a file; `compare` fails if they are not the same here."""
    ids, probabilities = ask(model)
    if verb == "answer":
        np.savez(answers, ids=ids, probabilities=probabilities, version=tf.__version__)
        return
    before = np.load(answers)
    if not np.array_equal(before["ids"], ids):
        sys.exit("error: the token ids differ")
    difference = float(np.abs(before["probabilities"] - probabilities).max())
    releases = f"TensorFlow {before['version']} and {tf.__version__}"
    print(f"{releases}: {len(ids)} texts, largest difference {difference:.1e}")  # noqa: T201 -- the result
    if difference > TOLERANCE:
        sys.exit(f"error: that is more than {TOLERANCE}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
